"""Encode one part of the input and write its rows, day by day, as Parquet files into the staging directory.

```
part-000012.json                  a finished part; there once its files are on disk
2026-10-03/000012-000000.parquet
```

This is all the work of a build that grows with the rows. It runs in this process or in a Ray worker; a part's files
depend on the part alone, so both write the same bytes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import PART_ROWS
from pipelines.rows import RowReader, Rows, Tally
from pipelines.staging import put
from recsys.encode import Encoder
from recsys.raw import RAW_ROW_KEY
from recsys.schema import Schema

ROW_GROUP_ROWS = 65_536
_MOST_WAITING_ROWS = 4 * PART_ROWS


@dataclass(frozen=True)
class PartFile:
    """A file of encoded rows of one day, under the staging directory."""

    day: str
    name: str
    rows: int
    size_bytes: int


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
    """Everything that the work on any part needs. `days` limits what is written; None writes all.

    Without an encoder rows are written as they are, with their keys.
    """

    reader: RowReader
    encoder: Encoder | None
    staging: Path
    days: frozenset[str] | None = None

    def finished(self) -> dict[int, PartResult]:
        """Results of the parts whose files all lie in the staging directory."""
        results = [
            PartResult.from_json(json.loads(file.read_bytes()))
            for file in self.staging.glob("part-*.json")
        ]
        return {result.number: result for result in results if self._has_all_of(result)}

    def write(
        self, number: int, *, on_rows: Callable[[int], object] = lambda rows: None
    ) -> PartResult:
        """Read, encode and write one part, and record it as finished. `on_rows` hears how many rows are read so far.

        Raises DataError naming file and row of what cannot be encoded.
        """
        tally = Tally()
        writer = _DayFiles(self.staging, number)
        other_days = 0
        for rows in self.reader.read(self.reader.parts[number], tally):
            on_rows(tally.read)
            wanted = rows if self.days is None else rows.of(self.days.__contains__)
            other_days += rows.table.num_rows - wanted.table.num_rows
            if wanted.table.num_rows:
                self._write(wanted, writer)
        result = PartResult(number, tally, tuple(writer.finish()), other_days)
        on_rows(tally.read)
        record = json.dumps(result.to_json())
        put(self.staging / f"part-{number:06d}.json", lambda file: file.write_text(record))
        return result

    def _has_all_of(self, result: PartResult) -> bool:
        sizes = {file.name: file.size_bytes for file in result.files}
        paths = {name: self.staging / name for name in sizes}
        return all(
            path.is_file() and path.stat().st_size == sizes[name] for name, path in paths.items()
        )

    def _made_of(self, rows: Rows) -> pa.Table:
        if self.encoder is None:
            return raw_rows(rows, self.reader.plan.schema)
        return encode_rows(self.encoder, rows)

    def _write(self, rows: Rows, writer: "_DayFiles") -> None:
        encoded = self._made_of(rows)
        names, number_B = rows.assigned.names, rows.assigned.number_B
        for day in np.unique(number_B):
            index_N = np.flatnonzero(number_B == day)
            whole = len(index_N) == encoded.num_rows
            writer.add(names[day], encoded if whole else encoded.take(pa.array(index_N)))


def encode_rows(encoder: Encoder, rows: Rows) -> pa.Table:
    """Encoded rows with their row keys. Raises DataError naming the file and the first row that cannot be encoded."""
    return rows.checked(partial(encoder.encode, row_key=rows.row_key_B))


def raw_rows(rows: Rows, schema: Schema) -> pa.Table:
    """Raw rows, of the schema's types, with their row keys."""
    typed = rows.table.cast(schema.raw_arrow(labels=True))
    return typed.append_column(RAW_ROW_KEY, pa.array(rows.row_key_B))


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
        # The feed verifies page checksums, so a flipped byte is an error that names the file.
        write = partial(
            pq.write_table,
            table,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            write_page_checksum=True,
        )
        path = self.staging / name
        put(path, write)
        self.files.append(PartFile(day, name, table.num_rows, path.stat().st_size))
