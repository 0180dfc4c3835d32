"""Side tables: every row meets at most one row of each, or their number, found by the values of its key columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from pipelines.rules import Rule
from pipelines.sources import FileSet
from recsys.errors import DataError
from recsys.raw import one_array
from recsys.schema import dtype_name


class Join(FileSet):
    """A side table, the key columns `on` that both sides have, and the `columns` to add (default: those needed).

    `where` leaves only those of its rows for which the rules are true. `count` names a column that is added in place
    of the table's own: how many of its rows have the key.
    """

    on: tuple[str, ...] = Field(min_length=1)
    columns: tuple[str, ...] | None = None
    where: tuple[Rule, ...] = ()
    count: str | None = None

    @field_validator("where", mode="before")
    @classmethod
    def _one_rule_or_several(cls, where: Any) -> Any:
        return (where,) if isinstance(where, Mapping) else where

    @model_validator(mode="after")
    def _columns_or_count(self) -> Self:
        if self.count is not None and self.columns is not None:
            raise ValueError(
                "count stands for all rows of a key and columns for one of them; write two joins, or leave one out"
            )
        return self

    @property
    def text(self) -> str:
        """The side table as a reader would say it, for reports: `items.csv, counted by item, where stock above 0`."""
        counted = f", counted by {' and '.join(self.on)}" if self.count else ""
        rules = " and ".join(rule.text for rule in self.where)
        return ", ".join(self.path) + counted + (f", where {rules}" if rules else "")


@dataclass(frozen=True)
class _Level:
    """The known values of one key column, and the known pairs of (number so far, place of the value)."""

    values: pa.Array
    pairs: pa.Array | None


@dataclass(frozen=True)
class SideTable:
    """A side table in memory. `levels` number the keys; `row_of_number` leads from a key's number to its row.

    A row without a match gets `absent` in every added column.
    """

    name: str
    on: tuple[str, ...]
    levels: tuple[_Level, ...]
    row_of_number: NDArray[np.int64]
    columns: pa.Table
    absent: int | None = None

    def join(self, table: pa.Table) -> tuple[pa.Table, int]:
        """The rows with this table's columns added, in the same order, and how many of them found no match."""
        keys = [one_array(table.column(name)) for name in self.on]
        for name, values, level in zip(self.on, keys, self.levels, strict=True):
            if not pa.types.is_null(values.type) and values.type != level.values.type:
                here, there = dtype_name(level.values.type), dtype_name(values.type)
                raise DataError(
                    f"{self.name}: key {name!r} is {here} here and {there} in the rows; "
                    "declare it under [columns] of the schema, so that both sides get one type"
                )
        typed = [
            values.cast(level.values.type) for values, level in zip(keys, self.levels, strict=True)
        ]
        row = pa.array(self.row_of_number).take(_numbered(typed, self.levels))
        for name in self.columns.column_names:
            values = one_array(self.columns.column(name)).take(row)
            if self.absent is not None:
                values = values.fill_null(self.absent)
            table = table.append_column(name, values)
        return table, row.null_count


def side_table(name: str, rows: pa.Table, *, on: Sequence[str]) -> SideTable:
    """The side table of some rows. Rows with a null key match nothing. Raises DataError when a key occurs twice."""
    for key in on:
        rows = rows.filter(rows.column(key).is_valid())
    keys = [one_array(rows.column(key)) for key in on]
    levels: list[_Level] = []
    for values in keys:
        # A level is numbered with the levels before it, so that pairs stay small integers.
        known = values.unique()
        pairs = _pairs(_numbered(keys, levels), values, known) if levels else None
        levels.append(_Level(known, None if pairs is None else pairs.unique()))
    number_N = _numbered(keys, levels).to_numpy(zero_copy_only=False)
    row_of_number, first = np.unique(number_N, return_index=True)
    if len(row_of_number) < rows.num_rows:
        twice = int(np.setdiff1d(np.arange(rows.num_rows), first)[0])
        shown = ", ".join(
            f"{key} = {values[twice].as_py()!r}" for key, values in zip(on, keys, strict=True)
        )
        raise DataError(
            f"{name}: {shown} occurs more than once, and each row may meet one row only; remove the repetition"
        )
    return SideTable(
        name, tuple(on), tuple(levels), first.astype(np.int64), rows.drop_columns(list(on))
    )


def count_table(name: str, rows: pa.Table, *, on: Sequence[str], count: pa.Field) -> SideTable:
    """The side table of how many of some rows have each key, as the column `count`; 0 for a key that none has."""
    counted = rows.group_by(list(on)).aggregate([([], "count_all")])
    keys = counted.select(list(on))
    counts = one_array(counted.column("count_all")).cast(count.type)
    return replace(side_table(name, keys.append_column(count, counts), on=on), absent=0)


def _numbered(keys: Sequence[pa.Array], levels: Sequence[_Level]) -> pa.Array:
    """A number for the key of each row, null for a key that is not known; over the first `len(levels)` key columns."""
    number = pc.index_in(keys[0], value_set=levels[0].values, skip_nulls=True)
    for values, level in zip(keys[1 : len(levels)], levels[1:], strict=True):
        number = pc.index_in(
            _pairs(number, values, level.values), value_set=level.pairs, skip_nulls=True
        )
    return number


def _pairs(number: pa.Array, values: pa.Array, known: pa.Array) -> pa.Array:
    place = pc.index_in(values, value_set=known, skip_nulls=True).cast(pa.int64())
    return pc.add(pc.multiply(number.cast(pa.int64()), len(known)), place)
