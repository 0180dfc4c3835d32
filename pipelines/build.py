"""Fit the encoder on a pipeline's training rows; encode and publish all of its days.

Memory holds a part's rows, the side tables and the events of histories, however many rows there are.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.parts import PartFile, PartJob, PartResult
from pipelines.plan import Plan, load_plan
from pipelines.progress import tracked
from pipelines.rows import RowReader, Rows, Tally, open_rows
from recsys.encode import Encoder, load_encoder
from recsys.errors import ArtifactError, DataError, nearest
from recsys.fitting import fit as fit_encoder
from recsys.publish import publication, remove_abandoned

logger = logging.getLogger(__name__)

_STAGING_PREFIX = ".building-"


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

    `ray` hands the same parts to a Ray Data job. Nothing is published unless every row was encoded.
    Raises ConfigError, DataError (naming file, row and column) or ArtifactError.
    """
    started = time.monotonic()
    plan, fitted = load_plan(pipeline), load_encoder(encoder)
    _require_schema(plan, fitted, encoder)
    reader = open_rows(plan).with_histories()
    with _staging(data_root) as staging:
        job = PartJob(reader, fitted, staging, None if days is None else frozenset(days))
        results = _in_ray(job) if ray else map(job.write, range(len(reader.parts)))
        ordered = sorted(
            tracked(results, total=len(reader.parts), what="build"),
            key=lambda result: result.number,
        )
        files = _by_day(ordered)
        _require_days(files, days, plan)
        published = tuple(
            _publish(plan, job, day, day_files, data_root)
            for day, day_files in sorted(files.items())
        )
    return _summary(plan, ordered, published, time.monotonic() - started)


def _in_ray(job: PartJob) -> Iterator[PartResult]:
    # Ray takes half a second to import; only a build that asks for it pays.
    from pipelines.ray_build import write_parts

    return write_parts(job)


@contextmanager
def _staging(data_root: Path) -> Iterator[Path]:
    """A directory beside the days, on the same file system, for files that are not published yet."""
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(data_root, prefix=_STAGING_PREFIX)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=data_root))
    except OSError as error:
        raise ArtifactError(
            f"{data_root}: cannot be written ({error.strerror}); choose another place"
        ) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _TrainingRows:
    """Feeds training rows to the fit and remembers which ones it looks at, so that an error can name them."""

    def __init__(self, plan: Plan, reader: RowReader) -> None:
        self.plan = plan
        self.reader = reader
        self.seen: set[str] = set()
        self.rows = 0
        self._looked_at: Rows | None = None

    def fit(self, previous: Encoder | None) -> Encoder:
        try:
            return fit_encoder(self.plan.schema, self._batches(), previous=previous)
        except DataError as error:
            if self._looked_at is None:
                raise
            raise self._looked_at.located(error) from error

    def _batches(self) -> Iterator[pa.Table]:
        for part in tracked(self.reader.parts, total=len(self.reader.parts), what="fit"):
            for rows in self.reader.read(part, Tally()):
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
                f"{plan.path}: fit_on names {name!r}, which has no rows{nearest(name, known)}; found {known}"
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
        "encoder_digest": job.encoder.digest,
        "labels_digest": plan.labels_digest,
        "rules_digest": plan.rules_digest,
    }
    with publication(data_root / day, kind="day", metadata=metadata) as draft:
        for number, file in enumerate(files):
            os.replace(job.staging / file.name, draft.path / f"part-{number:05d}.parquet")
    assert draft.published is not None
    return PublishedDay(day, rows, draft.published.version)


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
