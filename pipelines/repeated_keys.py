"""Impression keys that occur more than once: how many, and where the first of them stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.files import Slice
from pipelines.rows import RowReader, Rows, Tally
from recsys.raw import one_array


@dataclass
class RepeatedKeys:
    """The keys of all rows of some parts, 8 bytes each: integers as they are, text by its 64-bit hash."""

    parts: list[tuple[Slice, ...]] = field(default_factory=list)
    keys: list[list[NDArray[np.int64]]] = field(default_factory=list)

    def begin(self, part: Sequence[Slice]) -> None:
        self.parts.append(tuple(part))
        self.keys.append([])

    def add(self, rows: Rows) -> None:
        """Take in the next rows of the part begun last."""
        self.keys[-1].append(rows.row_key_B)

    def problem(self, reader: RowReader) -> str | None:
        """What is wrong with the keys, in one sentence; the part with the first repeated one is read again."""
        batches = [keys for part in self.keys for keys in part]
        key_N = np.concatenate([np.empty(0, np.int64), *batches])
        repeats, first = _first_repeat(key_N)
        if not repeats:
            return None
        rows_of_parts = [sum(map(len, part)) for part in self.keys]
        ends = np.cumsum(rows_of_parts)
        number = int(np.searchsorted(ends, first, side="right"))
        place = first - int(ends[number] - rows_of_parts[number])
        column = reader.plan.schema.keys.impression
        assert column is not None, "keys are gathered where the schema has one"
        return (
            f"impression key {column!r}: rows that repeat the key of an earlier row: {repeats:,}, the first is "
            f"{_shown(reader, self.parts[number], place, column)}; give every impression a key of its own, "
            "or leave keys.impression out of the schema"
        )


def _first_repeat(key_N: NDArray[np.int64]) -> tuple[int, int]:
    """How many rows have the key of an earlier row, and the place of the first of them."""
    ordered_N = np.sort(key_N)
    again_N = ordered_N[1:][ordered_N[1:] == ordered_N[:-1]]
    if not len(again_N):
        return 0, 0
    place_M = np.flatnonzero(np.isin(key_N, np.unique(again_N)))
    _, earliest = np.unique(key_N[place_M], return_index=True)
    return len(again_N), int(np.delete(place_M, earliest)[0])


def _shown(reader: RowReader, part: Sequence[Slice], place: int, column: str) -> str:
    for rows in reader.read(part, Tally()):
        if place < rows.table.num_rows:
            value = one_array(rows.table.column(column))[place].as_py()
            return f"{value!r} ({rows.file.path}, row {rows.row_B[place] + 1})"
        place -= rows.table.num_rows
    raise AssertionError("a part is read again with the same rows")
