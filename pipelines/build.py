"""Fit the encoder on a pipeline's training rows; encode and publish all of its days.

Memory holds a part's rows, the side tables and the events of histories, however many rows there are.
"""

import hashlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.parts import PartFile, PartJob, PartResult
from pipelines.plan import Plan, load_plan
from pipelines.progress import Progress, progress
from pipelines.rows import RowReader, Rows, Tally, open_rows, side_files
from pipelines.staging import staging
from recsys.encode import Encoder, load_encoder
from recsys.errors import ArtifactError, DataError, nearest
from recsys.fitting import fit as fit_encoder
from recsys.publish import canonical_json, publication
from recsys.raw import RAW_DAY_KIND

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedDay:
    """A published day or split."""

    day: str
    rows: int
    version: str


@dataclass(frozen=True)
class BuildSummary:
    """What a build read, left out and published. `filtered` and `unmatched` count rows by filter and by side table."""

    days: tuple[PublishedDay, ...]
    rows_read: int
    filtered: dict[str, int]
    unmatched: dict[str, int]
    other_days: int
    seconds: float

    @property
    def rows(self) -> int:
        return sum(day.rows for day in self.days)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": self.rows}

    def render(self) -> str:
        """A short table for people."""
        lines = [f"{day.day:<12} {day.rows:>12,} rows" for day in self.days]
        per_second = self.rows_read / max(self.seconds, 1e-9)
        lines.append(
            f"read {self.rows_read:,} rows in {self.seconds:.1f} s ({per_second:,.0f} a second)"
        )
        lines += [
            f"left out by filter: {rows:,} rows, not {rule}" for rule, rows in self.filtered.items()
        ]
        lines += [
            f"without a match in {table}: {rows:,} rows" for table, rows in self.unmatched.items()
        ]
        lines += [f"of days not asked for: {self.other_days:,} rows"] if self.other_days else []
        return "\n".join(lines)


def fit(pipeline: Path, encoder_root: Path, *, previous: Path | None = None) -> Encoder:
    """Fit the encoder on the pipeline's training rows and publish it; with `previous`, extend that encoder.

    Raises ConfigError, DataError (naming file, row and column) or ArtifactError.
    """
    plan = load_plan(pipeline)
    extended = None if previous is None else load_encoder(previous)
    reader = open_rows(plan).with_histories()
    training = _TrainingRows(plan, reader)
    encoder = training.fit(extended)
    _require_fitted_names(plan, training.seen)
    encoder.save(encoder_root)
    logger.info("fit.done rows=%d digest=%s", training.rows, encoder.digest[:12])
    return encoder


def build(
    pipeline: Path,
    data_root: Path,
    *,
    encoder: Path,
    ray: bool = False,
    days: Sequence[str] | None = None,
) -> BuildSummary:
    """Encode the pipeline's rows and publish each day (or split) under `data_root`; with `days` only those.

    `ray` hands the same parts to a Ray Data job. Nothing is published unless every row was encoded; a build that was
    killed goes on with the parts that it had finished, if nothing that decides them has changed since.
    Raises ConfigError, DataError (naming file, row and column) or ArtifactError.
    """
    plan, fitted = load_plan(pipeline), load_encoder(encoder)
    _require_schema(plan, fitted, encoder)
    again = ["recsys", "build", str(pipeline), str(data_root), "--encoder", str(encoder)]
    return _build(plan, data_root, encoder=fitted, ray=ray, days=days, again=again)


def build_raw(
    pipeline: Path, data_root: Path, *, ray: bool = False, days: Sequence[str] | None = None
) -> BuildSummary:
    """Publish each day's rows under `data_root` as they are: typed, joined, labelled, with histories, not encoded.

    They are what `data.stream` of an experiment names. As `build` otherwise.
    """
    again = ["recsys", "build", str(pipeline), str(data_root), "--raw"]
    return _build(load_plan(pipeline), data_root, encoder=None, ray=ray, days=days, again=again)


def _build(
    plan: Plan,
    data_root: Path,
    *,
    encoder: Encoder | None,
    ray: bool,
    days: Sequence[str] | None,
    again: Sequence[str],
) -> BuildSummary:
    started = time.monotonic()
    reader = open_rows(plan)
    # Before events are gathered: what is read from here on must be of this state.
    inputs = _inputs(reader)
    reader = reader.with_histories()
    wanted = None if days is None else frozenset(days)
    with staging(data_root, _key(reader, inputs, encoder, wanted)) as place:
        job = PartJob(reader, encoder, place, wanted)
        try:
            results = _write_parts(job, _in_ray if ray else _here)
        except KeyboardInterrupt as stop:
            command = [*again, *(["--ray"] if ray else [])]
            raise KeyboardInterrupt(
                f"{len(job.finished())} of {len(reader.parts)} parts are kept; go on with: "
                f"{shlex.join(command)}"
            ) from stop
        _require_unchanged(inputs, _inputs(reader))
        files = _by_day(results)
        _require_days(files, days, plan)
        published = tuple(
            _publish(plan, job, day, day_files, data_root)
            for day, day_files in sorted(files.items())
        )
    return _summary(plan, results, published, time.monotonic() - started)


def _write_parts(
    job: PartJob, write: Callable[[PartJob, Sequence[int], Progress], Iterable[PartResult]]
) -> list[PartResult]:
    """Results of all parts in their order; parts that an earlier process finished are not written again."""
    results, parts = job.finished(), len(job.reader.parts)
    if results:
        logger.info("build.resumed parts=%d/%d", len(results), parts)
    missing = [number for number in range(parts) if number not in results]
    with progress("build", parts=parts, done=len(results)) as shown:
        for result in write(job, missing, shown) if missing else ():
            results[result.number] = result
            shown.finish_part()
    return [results[number] for number in range(parts)]


def _here(job: PartJob, numbers: Sequence[int], shown: Progress) -> Iterator[PartResult]:
    for number in numbers:
        yield job.write(number, on_rows=shown.rows_read)


def _in_ray(job: PartJob, numbers: Sequence[int], shown: Progress) -> Iterator[PartResult]:
    # Ray takes half a second to import; only a build that asks for it pays.
    from pipelines.ray_build import write_parts

    for result in write_parts(job, numbers):
        shown.rows_read(result.tally.read)
        yield result


def _inputs(reader: RowReader) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time of change in nanoseconds of each file of the sources and side tables."""
    files = [*reader.files]
    for join in reader.plan.settings.joins:
        files += side_files(reader.plan, join)
    states = [(os.path.abspath(file.path), file.path.stat()) for file in files]
    return [(path, state.st_size, state.st_mtime_ns) for path, state in states]


def _require_unchanged(
    before: Sequence[tuple[str, int, int]], after: Sequence[tuple[str, int, int]]
) -> None:
    """Nothing, when all files are as they were: else the parts of a build are of different contents."""
    changed = min(set(before) ^ set(after), default=None)
    if changed is not None:
        raise DataError(
            f"{changed[0]}: changed while it was read, so nothing is published; build again once it is complete"
        )


def _key(
    reader: RowReader,
    inputs: Sequence[tuple[str, int, int]],
    encoder: Encoder | None,
    days: frozenset[str] | None,
) -> str:
    """What stands for all that decides the content of a build's files: settings, schema, encoder, inputs, versions."""
    plan = reader.plan
    parts = [
        [(piece.file.index, piece.first_row, piece.row_groups) for piece in part]
        for part in reader.parts
    ]
    tree = {
        "settings": plan.settings.model_dump(mode="json"),
        "data_digest": plan.schema.data_digest,
        "encoder_digest": None if encoder is None else encoder.digest,
        "files": inputs,
        "parts": parts,
        "days": None if days is None else sorted(days),
        "code": _code_digest(),
        "libraries": [np.__version__, pa.__version__],
    }
    return hashlib.sha256(canonical_json(tree)).hexdigest()[:16]


def _code_digest() -> str:
    """SHA-256 over our own sources: an update in between must not mix its parts with those of the code before."""
    here = Path(__file__).parent
    files = sorted([*here.rglob("*.py"), *(here.parent / "recsys").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _TrainingRows:
    """Feeds training rows to the fit and remembers which ones it looks at, so that an error can name them."""

    def __init__(self, plan: Plan, reader: RowReader) -> None:
        self.plan = plan
        self.reader = reader
        self.seen: set[str] = set()
        self.rows = 0
        self._looked_at: Rows | None = None
        self._read_all = False

    def fit(self, previous: Encoder | None) -> Encoder:
        try:
            return fit_encoder(self.plan.schema, self._batches(), previous=previous)
        except DataError as error:
            if self._read_all and self.rows == 0:
                raise self._nothing() from error
            if self._looked_at is None:
                raise
            raise self._looked_at.located(error) from error

    def _nothing(self) -> DataError:
        _require_fitted_names(self.plan, self.seen)
        if not self.seen:
            return DataError(
                f"{self.plan.path}: no row is left to fit on; check the source and the filters"
            )
        found = ", ".join(sorted(self.seen))
        return DataError(
            f"{self.plan.path}: no row is of the days or splits that fit_on names; found {found}; correct fit_on"
        )

    def _batches(self) -> Iterator[pa.Table]:
        with progress("fit", parts=len(self.reader.parts)) as shown:
            for part in self.reader.parts:
                tally = Tally()
                for rows in self.reader.read(part, tally):
                    shown.rows_read(tally.read)
                    yield from self._training(rows)
                shown.finish_part()
        self._read_all = True

    def _training(self, rows: Rows) -> Iterator[pa.Table]:
        self.seen.update(rows.assigned.names)
        training = rows.of(self.plan.fits_on)
        if training.table.num_rows:
            self.rows += training.table.num_rows
            self._looked_at = training
            yield training.table
            self._looked_at = None


def _require_fitted_names(plan: Plan, seen: Iterable[str]) -> None:
    known = sorted(seen)
    for name in plan.settings.fit_on if isinstance(plan.settings.fit_on, tuple) else ():
        if name not in known:
            raise DataError(
                f"{plan.path}: fit_on names {name!r}, which has no rows{nearest(name, known)}; found {', '.join(known)}"
            )


def _require_schema(plan: Plan, encoder: Encoder, path: Path) -> None:
    if encoder.schema.data_digest != plan.schema.data_digest:
        raise ArtifactError(
            f"{path}: the encoder was fitted for another schema (data digest {encoder.schema.data_digest[:12]}, "
            f"{plan.settings.schema_file} has {plan.schema.data_digest[:12]}); run fit again"
        )


def _require_days(files: dict[str, list[PartFile]], days: Sequence[str] | None, plan: Plan) -> None:
    if not files and days is None:
        raise DataError(f"{plan.path}: no row is left to publish; check the source and the filters")
    for day in days or ():
        if day not in files:
            raise DataError(
                f"{plan.path}: {day!r} has no rows{nearest(day, files)}; check the source and the filters"
            )


def _by_day(results: Iterable[PartResult]) -> dict[str, list[PartFile]]:
    files: dict[str, list[PartFile]] = {}
    for result in results:
        for file in result.files:
            files.setdefault(file.day, []).append(file)
    return files


def _publish(
    plan: Plan, job: PartJob, day: str, files: Sequence[PartFile], data_root: Path
) -> PublishedDay:
    rows = sum(file.rows for file in files)
    metadata = {
        "day": day,
        "rows": rows,
        "data_digest": plan.schema.data_digest,
        "labels_digest": plan.labels_digest,
        "rules_digest": plan.rules_digest,
    }
    if job.encoder is not None:
        metadata["encoder_digest"] = job.encoder.digest
    kind = RAW_DAY_KIND if job.encoder is None else "day"
    with publication(data_root / day, kind=kind, metadata=metadata) as draft:
        for number, file in enumerate(files):
            _place(job.staging / file.name, draft.path / f"part-{number:05d}.parquet")
    assert draft.published is not None
    return PublishedDay(day, rows, draft.published.version)


def _place(staged: Path, published: Path) -> None:
    """A staged file under its published name too: a build killed in between finds its parts again."""
    try:
        os.link(staged, published)
    except OSError:
        # No links on this file system: such a build writes the part again.
        os.replace(staged, published)


def _summary(
    plan: Plan, results: Sequence[PartResult], days: tuple[PublishedDay, ...], seconds: float
) -> BuildSummary:
    tally = Tally()
    for result in results:
        tally.add(result.tally)
    rules = [rule.text for rule in plan.settings.filters]
    tables = [join.text for join in plan.settings.joins]
    summary = BuildSummary(
        days,
        tally.read,
        dict(zip(rules, tally.filtered, strict=True)),
        dict(zip(tables, tally.unmatched, strict=True)),
        sum(result.other_days for result in results),
        seconds,
    )
    logger.info(
        "build.done rows=%d read=%d days=%d seconds=%.1f",
        summary.rows,
        summary.rows_read,
        len(days),
        seconds,
    )
    return summary
