"""Encode one part of the input and write its rows, day by day, as Parquet files.

This is all the work of a build that grows with the rows. It runs in this process or in a Ray worker; a part's files
depend on the part alone, so both write the same bytes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import PART_ROWS
from pipelines.rows import RowReader, Rows, Tally
from recsys.encode import Encoder

ROW_GROUP_ROWS = 65_536
_MOST_WAITING_ROWS = 4 * PART_ROWS


@dataclass(frozen=True)
class PartFile:
    """A file of encoded rows of one day, under the staging directory."""

    day: str
    name: str
    rows: int


@dataclass(frozen=True)
class PartResult:
    """What became of one part. `other_days` counts rows of days that were not asked for."""

    number: int
    tally: Tally
    files: tuple[PartFile, ...]
    other_days: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "PartResult":
        files = tuple(PartFile(**item) for item in tree["files"])
        return cls(tree["number"], Tally(**tree["tally"]), files, tree["other_days"])


@dataclass(frozen=True)
class PartJob:
    """Everything that the work on any part needs. `days` limits what is written; None writes all."""

    reader: RowReader
    encoder: Encoder
    staging: Path
    days: frozenset[str] | None = None

    def write(self, number: int) -> PartResult:
        """Read, encode and write one part. Raises DataError naming file and row of what cannot be encoded."""
        tally = Tally()
        writer = _DayFiles(self.staging, number)
        other_days = 0
        for rows in self.reader.read(self.reader.parts[number], tally):
            wanted = rows if self.days is None else rows.of(self.days.__contains__)
            other_days += rows.table.num_rows - wanted.table.num_rows
            if wanted.table.num_rows:
                self._write(wanted, writer)
        return PartResult(number, tally, tuple(writer.finish()), other_days)

    def _write(self, rows: Rows, writer: "_DayFiles") -> None:
        encoded = encode_rows(self.encoder, rows)
        names, number_B = rows.assigned.names, rows.assigned.number_B
        for day in np.unique(number_B):
            index_N = np.flatnonzero(number_B == day)
            whole = len(index_N) == encoded.num_rows
            writer.add(names[day], encoded if whole else encoded.take(pa.array(index_N)))


def encode_rows(encoder: Encoder, rows: Rows) -> pa.Table:
    """Encoded rows with their row keys. Raises DataError naming the file and the first row that cannot be encoded."""
    return rows.checked(partial(encoder.encode, row_key=rows.row_key_B))


@dataclass
class _DayFiles:
    """Collects encoded rows of each day and writes them, a file at a time, in the order they came."""

    staging: Path
    part: int
    waiting: dict[str, list[pa.Table]] = field(default_factory=dict)
    waiting_rows: dict[str, int] = field(default_factory=dict)
    files: list[PartFile] = field(default_factory=list)

    def add(self, day: str, table: pa.Table) -> None:
        self.waiting.setdefault(day, []).append(table)
        self.waiting_rows[day] = self.waiting_rows.get(day, 0) + table.num_rows
        if self.waiting_rows[day] >= PART_ROWS:
            self._write(day)
        elif sum(self.waiting_rows.values()) > _MOST_WAITING_ROWS:
            # Many days at once: the fullest one goes out early, so that memory stays bounded.
            self._write(max(self.waiting_rows, key=lambda name: (self.waiting_rows[name], name)))

    def finish(self) -> list[PartFile]:
        for day in sorted(self.waiting):
            self._write(day)
        return self.files

    def _write(self, day: str) -> None:
        table = pa.concat_tables(self.waiting.pop(day)).combine_chunks()
        del self.waiting_rows[day]
        name = f"{day}/{self.part:06d}-{len(self.files):06d}.parquet"
        path = self.staging / name
        path.parent.mkdir(exist_ok=True)
        # The feed verifies page checksums, so a flipped byte is an error that names the file.
        pq.write_table(
            table, path, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True
        )
        self.files.append(PartFile(day, name, table.num_rows))
