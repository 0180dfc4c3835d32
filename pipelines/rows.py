"""Typed, joined, labelled rows with their histories, each in its day or split: what is fitted on and encoded."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.agreement import require_columns
from pipelines.events import EventIndex, gather
from pipelines.files import RawBatch, Slice, column_names, cut_into_parts
from pipelines.joins import Join, SideTable, count_table, side_table
from pipelines.plan import Plan
from pipelines.progress import progress
from pipelines.rules import Rule, evaluate
from pipelines.sources import DataFile, find_files
from pipelines.splits import Assigned, by_column, by_place, by_rules, by_time, whole
from pipelines.typed import read_typed
from recsys.errors import ConfigError, DataError
from recsys.hashing import hash_ids
from recsys.raw import one_array, require_present
from recsys.schema import ARROW_TYPES

logger = logging.getLogger(__name__)

_FILE_SHIFT = 40

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rows:
    """Rows of one file with the schema's columns. `row_B` counts them within the file, from 0."""

    file: DataFile
    table: pa.Table
    row_B: NDArray[np.int64]
    row_key_B: NDArray[np.int64]
    assigned: Assigned

    def of(self, names: Callable[[str], bool]) -> "Rows":
        """Only the rows whose day or split is one of those that `names` accepts."""
        accepted = np.array([names(name) for name in self.assigned.names], dtype=bool)
        return (
            self if accepted.all() else self.take(np.flatnonzero(accepted[self.assigned.number_B]))
        )

    def take(self, index_N: NDArray[np.int64]) -> "Rows":
        assigned = Assigned(self.assigned.names, self.assigned.number_B[index_N])
        return Rows(
            self.file,
            self.table.take(pa.array(index_N)),
            self.row_B[index_N],
            self.row_key_B[index_N],
            assigned,
        )

    def checked(self, work: Callable[[pa.Table], Result]) -> Result:
        """What `work` makes of these rows; its DataError, if any, names the file and the first row that causes it."""
        try:
            return work(self.table)
        except DataError as error:
            raise self.located(error) from error

    def located(self, error: DataError) -> DataError:
        """The error of these rows with the file and, where it is one row's, the number of the row within the file."""
        if error.row is None:
            return DataError(f"{self.file.path}: {error}")
        return DataError(f"{self.file.path}, row {self.row_B[error.row] + 1}: {error.problem}")


@dataclass
class Tally:
    """What happened to the rows that were read. `filtered` and `unmatched` follow the order of filters and joins."""

    read: int = 0
    kept: int = 0
    filtered: list[int] = field(default_factory=list)
    unmatched: list[int] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.read += other.read
        self.kept += other.kept
        self.filtered = _added(self.filtered, other.filtered)
        self.unmatched = _added(self.unmatched, other.unmatched)


@dataclass(frozen=True)
class RowReader:
    """Reads parts of a plan's files as rows. Everything it holds is plain data, so that workers can share it."""

    plan: Plan
    files: tuple[DataFile, ...]
    parts: tuple[tuple[Slice, ...], ...]
    columns: tuple[str, ...]
    side_tables: tuple[SideTable, ...]
    events: EventIndex | None = None

    def read(self, part: Sequence[Slice], tally: Tally) -> Iterator[Rows]:
        """The rows of a part that pass the filters, batch by batch in file order; counts go into `tally`."""
        assert self.events or not self.plan.events, "with_histories() comes before read()"
        for batch in self._joined(part, tally):
            place_B = np.arange(
                batch.first_row, batch.first_row + batch.table.num_rows, dtype=np.int64
            )
            table = batch.table if self.events is None else self.events.add_columns(batch.table)
            keep = self._kept(table, tally)
            if keep is not None:
                table, place_B = table.filter(keep), place_B[keep.to_numpy(zero_copy_only=False)]
            tally.kept += table.num_rows
            if table.num_rows:
                yield self._assigned(batch.file, table.combine_chunks(), place_B)

    def with_histories(self) -> "RowReader":
        """The same reader with all events gathered: one pass over the rows."""
        if not self.plan.events:
            return self
        return replace(self, events=gather(self.plan, self._tables()))

    def _tables(self) -> Iterator[pa.Table]:
        with progress("events", parts=len(self.parts)) as shown:
            for part in self.parts:
                tally = Tally()
                for batch in self._joined(part, tally):
                    shown.rows_read(tally.read)
                    yield batch.table
                shown.finish_part()

    def _joined(self, part: Sequence[Slice], tally: Tally) -> Iterator[RawBatch]:
        """Typed batches with side tables' columns and labels."""
        settings = self.plan.settings
        for piece in part:
            for batch in read_typed(
                piece, self.columns, schema=self.plan.schema, timestamps=settings.timestamps
            ):
                table = batch.table
                unmatched: list[int] = []
                for side in self.side_tables:
                    table, missing = side.join(table)
                    unmatched.append(missing)
                tally.add(Tally(read=table.num_rows, unmatched=unmatched))
                yield RawBatch(batch.file, batch.first_row, self._with_labels(table))

    def _with_labels(self, table: pa.Table) -> pa.Table:
        for name, rule in self.plan.rule_labels.items():
            answer = self._answer(rule, table, f"labels.{name}")
            dtype = ARROW_TYPES[self.plan.schema.columns.get(name, "bool")]
            table = table.append_column(name, answer.cast(dtype))
        return table

    def _kept(self, table: pa.Table, tally: Tally) -> pa.Array | None:
        """Which rows pass all filters; each filter counts what it takes of those that the ones before it left."""
        keep: pa.Array | None = None
        dropped: list[int] = []
        for number, rule in enumerate(self.plan.settings.filters):
            answer = self._answer(rule, table, f"filters[{number}]").fill_null(False)
            before = table.num_rows if keep is None else keep.true_count
            keep = answer if keep is None else pc.and_(keep, answer)
            dropped.append(before - keep.true_count)
        tally.add(Tally(filtered=dropped))
        return keep

    def _answer(self, rule: Rule, table: pa.Table, where: str) -> pa.Array:
        return evaluate(
            rule, one_array(table.column(rule.column)), where=f"{self.plan.path}: {where}"
        )

    def _assigned(self, file: DataFile, table: pa.Table, row_B: NDArray[np.int64]) -> Rows:
        place_B = (np.int64(file.index) << _FILE_SHIFT) + row_B
        key_column = self.plan.schema.keys.impression
        rows = Rows(file, table, row_B, place_B, whole("", table.num_rows))
        if key_column is not None:
            rows = replace(rows, row_key_B=rows.checked(partial(_impression_keys, name=key_column)))
        assigned = rows.checked(lambda some: self._split(file, some, place_B))
        return replace(rows, table=table.select(list(self.plan.schema.columns)), assigned=assigned)

    def _split(self, file: DataFile, table: pa.Table, place_B: NDArray[np.int64]) -> Assigned:
        split, keys = self.plan.settings.split, self.plan.schema.keys
        if split.by == "time":
            assert keys.time is not None, "checked when the plan was made"
            return by_time(one_array(table.column(keys.time)))
        if split.by == "rules":
            return by_rules(
                {
                    name: self._answer(rule, table, f"split.rules.{name}")
                    for name, rule in split.rules.items()
                }
            )
        if isinstance(file.split, str):
            return whole(file.split, table.num_rows)
        shares = split.parts if file.split is None else file.split
        if split.column is None:
            return by_place(place_B, shares, seed=split.seed)
        return by_column(one_array(table.column(split.column)), shares, seed=split.seed)


def open_rows(plan: Plan) -> RowReader:
    """A reader of the plan's files, side tables loaded, every needed column found. Raises ConfigError, DataError."""
    settings = plan.settings
    where = str(plan.path)
    files = find_files(
        settings.all_sources, folder=plan.path.parent, shared_csv=settings.csv, where=where
    )
    given = set(column_names(files[0]))
    side_tables: list[SideTable] = []
    for number, join in enumerate(settings.joins):
        side = _load_side_table(plan, join, given, where=f"{where}: joins[{number}]")
        side_tables.append(side)
        given |= set(side.columns.column_names)
    joined = {name for side in side_tables for name in side.columns.column_names}
    keys = [name for join in settings.joins for name in join.on]
    columns = tuple(dict.fromkeys(name for name in (*plan.needed, *keys) if name not in joined))
    require_columns(files, columns)
    parts = tuple(cut_into_parts(files))
    if not parts:
        raise DataError(f"{where}: the source's files hold no rows; check what wrote them")
    return RowReader(plan, files, parts, columns, tuple(side_tables))


def side_files(plan: Plan, join: Join) -> tuple[DataFile, ...]:
    """The files of a side table. Raises ConfigError or DataError naming what is missing."""
    where, settings = str(plan.path), plan.settings
    return find_files([join], folder=plan.path.parent, shared_csv=settings.csv, where=where)


def _load_side_table(plan: Plan, join: Join, given: set[str], *, where: str) -> SideTable:
    files = side_files(plan, join)
    made = join.columns or ((join.count,) if join.count else ())
    twice = next((name for name in made if name in given), None)
    if twice is not None:
        raise ConfigError(
            f"{where}: column {twice!r} is in the rows already; rename one of the two, or leave it out"
        )
    if join.count is not None:
        rows = _side_rows(plan, join, files, join.on, where=where)
        count = pa.field(join.count, ARROW_TYPES[plan.schema.columns.get(join.count, "int64")])
        return count_table(str(files[0].path), rows, on=join.on, count=count)
    keys_of_joins = [name for other in plan.settings.joins for name in other.on]
    offered = set(column_names(files[0])) - given - set(join.on)
    added = join.columns or tuple(
        dict.fromkeys(name for name in (*plan.needed, *keys_of_joins) if name in offered)
    )
    if not added:
        raise ConfigError(
            f"{where}: {files[0].path} offers no column that the schema, a rule or another join needs; remove the join"
        )
    rows = _side_rows(plan, join, files, (*join.on, *added), where=where)
    return side_table(str(files[0].path), rows, on=join.on)


def _side_rows(
    plan: Plan, join: Join, files: Sequence[DataFile], columns: Sequence[str], *, where: str
) -> pa.Table:
    """Those columns of a side table's rows for which the join's `where` is true."""
    wanted = tuple(dict.fromkeys([*columns, *(rule.column for rule in join.where)]))
    tables: list[pa.Table] = []
    remedy = f"correct on, columns or where of {where}, or rename a column"
    require_columns(files, wanted, remedy=remedy)
    for part in cut_into_parts(files):
        for piece in part:
            batches = read_typed(
                piece, wanted, schema=plan.schema, timestamps=plan.settings.timestamps
            )
            tables += [batch.table for batch in batches]
    if not tables:
        raise DataError(f"{files[0].path}: the side table holds no rows; check what wrote it")
    # JSON lines type a column by the rows at hand: nothing but nulls, or whole numbers only.
    rows = pa.concat_tables(tables, promote_options="permissive")
    for rule in join.where:
        answer = evaluate(rule, one_array(rows.column(rule.column)), where=f"{where}.where")
        rows = rows.filter(answer.fill_null(False))
    return rows.select(list(columns))


def _impression_keys(table: pa.Table, *, name: str) -> NDArray[np.int64]:
    """Integers as they are, text by its hash."""
    values = one_array(table.column(name))
    require_present(
        values,
        f"the impression key {name!r} is null; every row needs one, fill it or filter the row",
    )
    if pa.types.is_string(values.type):
        return hash_ids(values).view(np.int64)
    keys: NDArray[np.int64] = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return keys


def _added(left: list[int], right: list[int]) -> list[int]:
    return [one + other for one, other in zip_longest(left, right, fillvalue=0)]
