"""Published days: which builds are read, whether they fit the encoder, and their rows by row group."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.day_names import DayRange, is_date
from recsys.encode import Encoder
from recsys.errors import ArtifactError, DataError, nearest
from recsys.idmap import IdMap, table_rows
from recsys.layout import encoded_arrow, label_column, observed_column
from recsys.publish import CURRENT, Published, read_version, resolve
from recsys.publish import versions as published_versions
from recsys.schema import Schema

logger = logging.getLogger(__name__)

# What Arrow raises for a damaged file: names of columns, too, may be other ones, or no text at all.
_UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)


@dataclass(frozen=True)
class Build:
    """The version of a day that is read; what a checkpoint records of its data."""

    day: str
    version: str
    rows: int
    labels_digest: str


@dataclass(frozen=True)
class RowGroup:
    file: Path
    index: int
    rows: int


class Form(Protocol):
    """What days of one kind hold, and how encoded rows come out of them."""

    @property
    def kind(self) -> str: ...

    @property
    def schema(self) -> Schema: ...

    @property
    def columns(self) -> pa.Schema:
        """What a file holds, at least."""
        ...

    def check(self, day: Published) -> None:
        """Raise ArtifactError for a day that is of another schema or encoder."""
        ...

    def read(self, groups: tuple[RowGroup, ...], columns: list[str]) -> pa.Table:
        """The named encoded columns of row groups, one chunk a column."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Days of rows that a build has encoded."""

    encoder: Encoder
    kind: str = "day"

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @property
    def columns(self) -> pa.Schema:
        return encoded_arrow(self.schema)

    def check(self, day: Published) -> None:
        _require_lineage(day, self.encoder)

    def read(self, groups: tuple[RowGroup, ...], columns: list[str]) -> pa.Table:
        return read_rows(groups, columns)


class Days:
    """The rows of some days: their builds, resolved once, and their row groups. See `open_days`.

    `id_maps` turn the hashes of unbounded tables into rows of those tables. Without them rows hold hashes, and so they
    do of the tables `unmapped`, which the maps lack.
    """

    def __init__(
        self,
        form: Form,
        builds: tuple[Build, ...],
        groups: tuple[RowGroup, ...],
        id_maps: Mapping[str, IdMap] | None = None,
    ) -> None:
        self.schema = form.schema
        self.builds = builds
        self.groups = groups
        self.rows = sum(group.rows for group in groups)
        self.id_maps = id_maps
        self._form = form

    def with_id_maps(self, id_maps: Mapping[str, IdMap]) -> "Days":
        """The same rows with their ids as these maps have them."""
        return Days(self._form, self.builds, self.groups, id_maps)

    @property
    def unmapped(self) -> frozenset[str]:
        """Unbounded tables whose ids `read` gives as hashes."""
        return frozenset(self.schema.unbounded) - (self.id_maps or {}).keys()

    def only(self, groups: tuple[RowGroup, ...]) -> "Days":
        """The same days with some of their row groups."""
        return Days(self._form, self.builds, groups, self.id_maps)

    def read(self, groups: tuple[RowGroup, ...], columns: list[str]) -> pa.Table:
        """The named encoded columns of row groups, one chunk a column, with the id maps applied where there are any.

        Raises DataError naming the file.
        """
        table = self.hashed(groups, columns)
        return table if self.id_maps is None else table_rows(table, self.schema, self.id_maps)

    def hashed(self, groups: tuple[RowGroup, ...], columns: list[str]) -> pa.Table:
        """The same with the hashes of unbounded tables, whatever the id maps."""
        return self._form.read(groups, columns)

    def groups_of(self, build: Build) -> tuple[RowGroup, ...]:
        """The row groups of one of these days."""
        place = (build.day, build.version)
        return tuple(group for group in self.groups if group.file.parts[-3:-1] == place)

    @property
    def labels_digest(self) -> str:
        """Digest of the label rules, the same for all of these days."""
        return self.builds[0].labels_digest

    def label_means(self, *, up_to_rows: int = 1_000_000) -> dict[str, float]:
        """Each task's mean label by sample weight over its observed rows among the first ones; 0 if it has none."""
        tasks = self.schema.task_names
        columns = [
            "weight",
            *(name for task in tasks for name in (label_column(task), observed_column(task))),
        ]
        sums, weights = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0.0)
        rows = 0
        for group in self.groups:
            table = self.read((group,), columns)
            weight_B = table.column("weight").to_numpy().astype(np.float64)
            for task in tasks:
                used_B = weight_B * table.column(observed_column(task)).to_numpy()
                weights[task] += float(used_B.sum())
                sums[task] += float(used_B @ table.column(label_column(task)).to_numpy())
            rows += group.rows
            if rows >= up_to_rows:
                break
        return {task: sums[task] / weights[task] if weights[task] else 0.0 for task in tasks}


def open_days(
    directory: Path,
    days: DayRange | Sequence[str],
    *,
    encoder: Encoder,
    versions: Mapping[str, str] | None = None,
    labels_digest: str | None = None,
) -> Days:
    """The named days under a directory, each resolved to its current build, or to the version given for it.

    A range means the published days in it; a warning names the others.

    Days that were built by different rules of `pipeline.toml` are read with a warning that names the first of each.
    Raises ArtifactError for a day that is missing, damaged, encoded for another schema or by another encoder, or
    labelled by other rules than the first (than those of `labels_digest` if given), and DataError for one that cannot
    be read or when there are no rows at all.
    """
    form = Encoded(encoder)
    return open_form(directory, days, form, versions=versions, labels_digest=labels_digest)


def open_form(
    directory: Path,
    days: DayRange | Sequence[str],
    form: Form,
    *,
    versions: Mapping[str, str] | None = None,
    labels_digest: str | None = None,
) -> Days:
    """As `open_days`, of days in a form."""
    names = _published_in(directory, days) if isinstance(days, DayRange) else days
    builds: list[Build] = []
    groups: list[RowGroup] = []
    day_of_rules: dict[str, str] = {}
    for name in names:
        _require_published(directory, name)
        path = directory / name if versions is None else directory / name / versions[name]
        day = resolve(path, kind=form.kind)
        form.check(day)
        day_of_rules.setdefault(str(day.metadata.get("rules_digest")), name)
        found = [
            group
            for file in sorted(day.path.glob("part-*.parquet"))
            for group in _row_groups(file, form.columns)
        ]
        rows = sum(group.rows for group in found)
        if rows != day.metadata["rows"]:
            raise DataError(
                f"{day.path}: holds {rows} rows, its manifest says {day.metadata['rows']}; build it again"
            )
        builds.append(Build(name, day.version, rows, str(day.metadata["labels_digest"])))
        if builds[-1].labels_digest != (labels_digest or builds[0].labels_digest):
            first = "the days trained on were" if labels_digest else f"{names[0]} was"
            raise ArtifactError(
                f"{day.path}: labelled by other rules of pipeline.toml than {first}; build both by the same rules"
            )
        groups += [group for group in found if group.rows]
    if not groups:
        raise DataError(
            f"{directory}: {', '.join(names)} hold no rows; build days with rows, or name others"
        )
    if len(day_of_rules) > 1:
        # Not refused: another source changes the digest too, and the labels may still mean the same.
        logger.warning(
            "days.rules_differ directory=%s days=%s hint='built by different rules of pipeline.toml; "
            "build all of them again unless that is meant'",
            directory,
            ",".join(day_of_rules.values()),
        )
    return Days(form, tuple(builds), tuple(groups))


def version_to_read(directory: Path, build: Build) -> str:
    """The version of a day to go on with: the newest that holds the files of the build read so far, bit for bit.

    A day whose files were damaged and that was built again is another version of the same rows.
    """
    day = directory / build.day
    try:
        begun = read_version(day / build.version, kind="day", verify="manifest")
    except ArtifactError:
        return build.version
    for version in reversed(published_versions(day)):
        try:
            found = read_version(day / version, kind="day")
        except ArtifactError:
            continue
        if found.files == begun.files:
            return version
    return build.version


def _require_published(directory: Path, name: str) -> None:
    if (directory / name).is_dir() or not directory.is_dir():
        return
    known = _published(directory)
    held = f"it holds {known[0]} to {known[-1]}" if known else "it holds no day"
    raise ArtifactError(
        f"{directory}: no day or split {name!r}{nearest(name, known)}; {held}; build it, "
        "or list the days without it where the source has no rows for it"
    )


def _published_in(directory: Path, days: DayRange) -> tuple[str, ...]:
    """The published days of a range. A log may lack a day in between, but what it lacks at an end was hardly meant."""
    published = [name for name in _published(directory) if is_date(name)]
    if not published:
        raise ArtifactError(
            f"{directory}: no day is published, so there is none from {days}; build the days, "
            "or name splits, such as train, in place of days"
        )
    if str(days.first) < published[0] or str(days.last) > published[-1]:
        raise ArtifactError(
            f"{directory}: the days from {days} go beyond those published, from {published[0]} to {published[-1]}; "
            "build the others, or change the range"
        )
    found = tuple(name for name in days.names if name in set(published))
    if not found:
        raise ArtifactError(
            f"{directory}: no day from {days} is published; build them, or change the range"
        )
    missing = [name for name in days.names if name not in found]
    if missing:
        logger.warning(
            "days.missing directory=%s range='%s' days=%s hint='not published; "
            "build them unless the source has no rows of these days'",
            directory,
            days,
            ",".join(missing),
        )
    return found


def _published(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(item.name for item in directory.iterdir() if (item / CURRENT).is_file())


def read_rows(groups: tuple[RowGroup, ...], columns: list[str]) -> pa.Table:
    """The named columns of row groups, one chunk a column. Raises DataError naming the file that cannot be read."""
    tables: list[pa.Table] = []
    for file in dict.fromkeys(group.file for group in groups):
        indices = [group.index for group in groups if group.file == file]
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                table = parquet.read_row_groups(indices, columns=columns)
                tables.append(table.select(columns))
        except _UNREADABLE as error:
            raise DataError(
                f"{file}: cannot be read ({_first_line(error)}); build the day again, then run the same command again "
                "(recsys train with --resume)"
            ) from error
    return pa.concat_tables(tables).combine_chunks()


def _require_lineage(day: Published, encoder: Encoder) -> None:
    found = day.metadata
    if found["data_digest"] != encoder.schema.data_digest:
        raise ArtifactError(
            f"{day.path}: encoded for another schema (data digest {found['data_digest'][:12]}, the schema has "
            f"{encoder.schema.data_digest[:12]}); build the day again with this schema"
        )
    if not encoder.accepts(found["encoder_digest"]):
        raise ArtifactError(
            f"{day.path}: encoded by encoder {found['encoder_digest'][:12]}, which {encoder.digest[:12]} does not "
            "extend; build the day again with this encoder, or name the one it was built with"
        )


def _row_groups(file: Path, columns: pa.Schema) -> list[RowGroup]:
    try:
        with pq.ParquetFile(file) as parquet:
            found, metadata = parquet.schema_arrow, parquet.metadata
            groups = [
                RowGroup(file, index, metadata.row_group(index).num_rows)
                for index in range(metadata.num_row_groups)
            ]
    except _UNREADABLE as error:
        raise DataError(
            f"{file}: not a readable Parquet file ({_first_line(error)}); build the day again"
        ) from error
    for field in columns:
        if field.name not in found.names:
            raise DataError(f"{file}: column {field.name!r} is missing; build the day again")
        if found.field(field.name).type != field.type:
            raise DataError(
                f"{file}: column {field.name!r} is {found.field(field.name).type}, the schema says {field.type}; "
                "build the day again"
            )
    return groups


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
