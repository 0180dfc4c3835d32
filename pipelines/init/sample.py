"""A bounded sample of files' rows, evenly spread over them, and how many rows they hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import Slice, column_names, read
from pipelines.init.formats import Found
from pipelines.sources import DataFile

SAMPLE_ROWS = 262_144
_SAMPLE_CELLS = 12_000_000
_PIECE_ROWS = 1024
_PARQUET_CELLS = 200_000_000


@dataclass(frozen=True)
class Sample:
    """Some rows of files of the same columns, as the files type them (CSV: text). `rows` is how many there are."""

    files: tuple[Found, ...]
    table: pa.Table
    file_B: pa.Array
    rows: int

    @property
    def is_whole(self) -> bool:
        return bool(self.table.num_rows == self.rows)


@dataclass
class _Spread:
    """Every n-th piece of what is added, n doubling so that the kept rows stay below a limit."""

    limit: int
    stride: int = 1
    seen: int = 0
    rows: int = 0
    pieces: list[tuple[int, int, pa.Table]] = field(default_factory=list)

    def add(self, table: pa.Table, *, file: int) -> None:
        for start in range(0, table.num_rows, _PIECE_ROWS):
            if self.seen % self.stride == 0:
                # A copy, so that the piece does not hold the whole batch that it was cut from.
                end = min(start + _PIECE_ROWS, table.num_rows)
                piece = table.take(pa.array(range(start, end), pa.int64()))
                self.pieces.append((self.seen, file, piece))
            self.seen += 1
        self.rows += table.num_rows
        while len(self.pieces) * _PIECE_ROWS > max(self.limit, 2 * _PIECE_ROWS):
            self.stride *= 2
            self.pieces = [piece for piece in self.pieces if piece[0] % self.stride == 0]


def sample(files: Sequence[Found], *, limit: int = SAMPLE_ROWS) -> Sample:
    """About `limit` rows spread over files of the same columns (fewer where columns are many). Raises DataError."""
    columns = len(files[0].columns)
    spread = _Spread(min(limit, max(_SAMPLE_CELLS // max(columns, 1), _PIECE_ROWS)))
    known = 0
    for number, found in enumerate(files):
        file = DataFile(found.path, number, found.format, found.csv, {})
        names = column_names(file)
        whole, slices = _slices(found, file, share=len(files))
        known += whole
        before = spread.rows
        for piece in slices:
            for batch in read(piece, names):
                spread.add(batch.table.select(files[0].columns), file=number)
        known += 0 if whole else spread.rows - before
    tables = [table for _, _, table in spread.pieces]
    owners = [pa.array([owner] * table.num_rows, pa.int32()) for _, owner, table in spread.pieces]
    if not tables:
        empty = pa.table({name: pa.array([], pa.string()) for name in files[0].columns})
        return Sample(tuple(files), empty, pa.array([], pa.int32()), 0)
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    return Sample(tuple(files), table, pa.concat_arrays(owners), known)


def _slices(found: Found, file: DataFile, *, share: int) -> tuple[int, list[Slice]]:
    """The rows of a Parquet file and what to read of it; 0 and the whole file for others, whose rows are counted."""
    if found.format != "parquet":
        return 0, [Slice(file)]
    metadata = pq.read_metadata(found.path)
    cells = metadata.num_rows * max(metadata.num_columns, 1)
    groups = list(range(metadata.num_row_groups))
    step = max(1, min(len(groups), round(cells * share / _PARQUET_CELLS)))
    chosen = tuple(dict.fromkeys([*groups[::step], *groups[-1:]]))
    return metadata.num_rows, [Slice(file, 0, chosen)] if chosen else []
