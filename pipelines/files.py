"""Files as record batches: their columns, how they are cut into parts, how they are read.

A part is the unit of work of a build: some row groups of Parquet files, or some lines of one text file. Parts depend on
the files alone, so that the same rows come in the same order however many processes read them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.csv_files import csv_names, csv_ranges, read_csv
from pipelines.jsonl_files import jsonl_names, jsonl_ranges, read_jsonl
from pipelines.lines import ByteRange, is_packed
from pipelines.sources import DataFile, Format, repeated
from recsys.errors import DataError, nearest

BATCH_ROWS = 65_536
PART_ROWS = 2 * BATCH_ROWS
PART_BYTES = 32 << 20


@dataclass(frozen=True)
class Slice:
    """A file, some row groups of a Parquet file, or some lines of a text file. `first_row` rows stand before it."""

    file: DataFile
    first_row: int = 0
    row_groups: tuple[int, ...] | None = None
    within: ByteRange | None = None


@dataclass(frozen=True)
class RawBatch:
    """Some rows of a file as the file types them (CSV: text, nulls marked), renamed, from `first_row` on.

    `stated` names the columns that the file's folders state: text, whatever the format.
    """

    file: DataFile
    first_row: int
    table: pa.Table
    stated: frozenset[str] = frozenset()


def column_names(file: DataFile) -> tuple[str, ...]:
    """Names of a file's columns after renaming, then of what its folders state. Raises DataError."""
    with _readable(file):
        names = _names(file)
        names += tuple(name for name in file.folders if name not in names)
    unknown = next((name for name in file.rename if name not in names), None)
    # The first rows of JSON lines need not have every key.
    if unknown is not None and file.format != "jsonl":
        raise DataError(
            f"{file.path}: rename names column {unknown!r}, which the file lacks{nearest(unknown, names)}"
        )
    return tuple(map(file.renamed, names))


def occurs_twice(file: DataFile, name: str) -> DataError:
    """The error for a column of which nobody can tell which one is meant."""
    names = enumerate(column_names(file), start=1)
    listed = " and ".join(str(place) for place, other in names if other == name)
    advice = (
        "give each column a name of its own by names = [...] under [csv], which replaces the header"
        if file.csv
        else "write the file with a name for each column"
    )
    return DataError(
        f"{file.path}: column {name!r} occurs twice or more, as columns {listed}; {advice}"
    )


def cut_into_parts(
    files: Sequence[DataFile], *, part_rows: int = PART_ROWS, part_bytes: int = PART_BYTES
) -> list[tuple[Slice, ...]]:
    """Slices in reading order, grouped so that a part has about `part_rows` rows of Parquet, or `part_bytes` of text.

    A text file is one part where it is packed, or where a quoted field may hold a line end.
    """
    parts: list[tuple[Slice, ...]] = []
    waiting: list[Slice] = []
    rows = 0
    for file in files:
        if file.format != "parquet":
            parts += [tuple(waiting)] if waiting else []
            parts += [(piece,) for piece in _text_slices(file, part_bytes)]
            waiting, rows = [], 0
            continue
        for piece, piece_rows in _row_group_slices(file, part_rows):
            if waiting and rows + piece_rows > part_rows:
                parts.append(tuple(waiting))
                waiting, rows = [], 0
            waiting.append(piece)
            rows += piece_rows
    return [*parts, tuple(waiting)] if waiting else parts


def read(
    piece: Slice, columns: Sequence[str], *, declared: Mapping[str, pa.DataType] | None = None
) -> Iterator[RawBatch]:
    """Batches of at most about BATCH_ROWS rows with the named columns (after renaming), in file order.

    `declared` types tell which kinds of JSON values are right; no other format asks, and none converts to them.
    Raises DataError.
    """
    file = piece.file
    twice = repeated(columns)
    if twice is not None:
        raise occurs_twice(file, twice)
    stated = frozenset(_stated(file, columns))
    wanted = [file.original(name) for name in columns if name not in stated]
    types = {file.original(name): found for name, found in (declared or {}).items()}
    row = piece.first_row
    for table in _tables(piece, wanted, types):
        arrays = {
            name: _repeated(file.folders[file.original(name)], table.num_rows)
            if name in stated
            else table.column(file.original(name))
            for name in columns
        }
        whole = pa.table(arrays) if arrays else table
        for start in range(0, table.num_rows, BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            yield RawBatch(file, row, batch, stated)
            row += batch.num_rows


def _stated(file: DataFile, columns: Sequence[str]) -> Iterator[str]:
    """Those columns that the folders of a file state and the file itself lacks."""
    asked = [name for name in columns if file.original(name) in file.folders]
    if asked:
        with _readable(file):
            own = _names(file)
        yield from (name for name in asked if file.original(name) not in own)


def _repeated(value: str | None, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)


def _tables(
    piece: Slice, wanted: list[str], declared: Mapping[str, pa.DataType]
) -> Iterator[pa.Table]:
    with _readable(piece.file):
        if piece.file.format == "jsonl":
            yield from read_jsonl(piece.file, wanted, within=piece.within, declared=declared)
        elif piece.file.csv is not None:
            names = _names(piece.file)
            places = [names.index(name) for name in wanted]
            for table in read_csv(piece.file, piece.file.csv, places, within=piece.within):
                yield table.rename_columns(wanted)
        else:
            yield from _read_parquet(piece, wanted)


def _names(file: DataFile) -> tuple[str, ...]:
    if file.format == "jsonl":
        return jsonl_names(file)
    return tuple(parquet_schema(file).names) if file.csv is None else csv_names(file, file.csv)


def _read_parquet(piece: Slice, wanted: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(piece.file.path) as parquet:
        groups = (
            list(range(parquet.num_row_groups))
            if piece.row_groups is None
            else list(piece.row_groups)
        )
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=wanted):
            yield pa.Table.from_batches([batch])


def parquet_schema(file: DataFile) -> pa.Schema:
    """The types of a Parquet file's columns. Raises DataError when it cannot be read."""
    with _readable(file):
        return pq.read_schema(file.path)


def _text_slices(file: DataFile, part_bytes: int) -> list[Slice]:
    with _readable(file):
        ranges = (
            jsonl_ranges(file, part_bytes=part_bytes)
            if file.csv is None
            else csv_ranges(file, file.csv, part_bytes=part_bytes)
        )
    if ranges is None:
        return [Slice(file)]
    return [Slice(file, found.first_row, within=found) for found in ranges]


def _row_group_slices(file: DataFile, part_rows: int) -> Iterator[tuple[Slice, int]]:
    with _readable(file):
        metadata = pq.read_metadata(file.path)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    groups: list[int] = []
    start = rows = 0
    for group, size in enumerate(sizes):
        if groups and rows + size > part_rows:
            yield Slice(file, start, tuple(groups)), rows
            start, groups, rows = start + rows, [], 0
        groups.append(group)
        rows += size
    if groups:
        yield Slice(file, start, tuple(groups)), rows


@dataclass(frozen=True)
class _Kind:
    name: str
    hint: str


_KINDS: dict[Format, _Kind] = {
    "parquet": _Kind("Parquet", "the copy is damaged, or no Parquet"),
    "csv": _Kind("CSV", "check [csv] (header, names, delimiter, quote, encoding)"),
    "jsonl": _Kind("JSON lines", "the copy is damaged, or packed otherwise than its name says"),
}


# How files of other kinds begin, and what to do about them.
_BEGINNINGS: tuple[tuple[bytes, Format | None, str], ...] = (
    (b"PAR1", "parquet", 'a Parquet file; say format = "parquet"'),
    (b"\x1f\x8b", None, "packed by gzip; give it a name that ends in .gz"),
    (b"BZh", None, "packed by bzip2; give it a name that ends in .bz2"),
    (b"\x28\xb5\x2f\xfd", None, "packed by zstd; give it a name that ends in .zst"),
    (b"PK\x03\x04", None, "a zip archive or an Excel workbook; unpack it, or save it as CSV"),
    (b"%PDF", None, "a PDF; export the table in it as CSV"),
)


def _require_kind(file: DataFile) -> None:
    """Refuse a file that is plainly of another kind: a reader's own words would not say so."""
    if is_packed(file.path):
        return
    with file.path.open("rb") as opened:
        start = opened.read(4)
    if file.format == "parquet" and not start.startswith(
        (b"PAR1", *(item[0] for item in _BEGINNINGS))
    ):
        raise DataError(
            f"{file.path}: not readable as Parquet (it begins with {start!r}); correct format, or copy the file again"
        )
    for beginning, format_, what in _BEGINNINGS:
        if start.startswith(beginning) and file.format != format_:
            raise DataError(f"{file.path}: is {what}")


@contextmanager
def _readable(file: DataFile) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as one sentence that names the file."""
    kind = _KINDS[file.format]
    try:
        if file.path.stat().st_size == 0:
            raise DataError(
                f"{file.path}: the file is empty (0 bytes); write it again or take it out of the source"
            )
        _require_kind(file)
        yield
    except FileNotFoundError as error:
        raise DataError(f"{file.path}: no such file; check the path") from error
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = kind.hint
        if "Truncated compressed" in reason or "incorrect header check" in reason:
            hint = "the copy is incomplete or damaged, or the file is not packed as its name says; copy it again"
        raise DataError(
            f"{file.path}: not readable as {kind.name} ({reason[:300]}); {hint}"
        ) from error
