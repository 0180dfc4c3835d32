"""Files as record batches: their columns, how they are cut into parts, how they are read.

A part is the unit of work of a build: some row groups of Parquet files, or one CSV file. Parts depend on the files
alone, so that the same rows come in the same order however many processes read them.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.jsonl_files import has_key, jsonl_names, read_jsonl
from pipelines.sources import Csv, DataFile, Format, repeated
from recsys.errors import DataError, nearest

BATCH_ROWS = 65_536
PART_ROWS = 2 * BATCH_ROWS
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Slice:
    """A file, or some row groups of a Parquet file. `first_row` numbers the rows before it, from 0."""

    file: DataFile
    first_row: int = 0
    row_groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RawBatch:
    """Some rows of a file as the file types them (CSV: text, nulls marked), renamed, from `first_row` on."""

    file: DataFile
    first_row: int
    table: pa.Table


def column_names(file: DataFile) -> tuple[str, ...]:
    """Names of a file's columns after renaming. Raises DataError when it cannot be read or a name occurs twice."""
    with _readable(file):
        names = _names(file)
    unknown = next((name for name in file.rename if name not in names), None)
    if unknown is not None:
        raise DataError(
            f"{file.path}: rename names column {unknown!r}, which the file lacks{nearest(unknown, names)}"
        )
    renamed = tuple(map(file.renamed, names))
    twice = repeated(renamed)
    if twice is not None:
        raise DataError(
            f"{file.path}: column {twice!r} occurs twice; correct the header or rename one"
        )
    return renamed


def require_columns(file: DataFile, needed: Sequence[str]) -> None:
    """Nothing, when a file has all needed columns; raises DataError naming the first that it lacks."""
    names = column_names(file)
    missing = next((name for name in needed if name not in names), None)
    if missing is not None and not _is_rare_key(file, missing):
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise DataError(
            f"{file.path}: no column {missing!r}{nearest(missing, names)}; the file has {listed}. "
            "Correct [columns] or the rule that names it, rename a column, or add a join"
        )


def _is_rare_key(file: DataFile, name: str) -> bool:
    original = next((old for old, new in file.rename.items() if new == name), name)
    return file.format == "jsonl" and has_key(file, original)


def cut_into_parts(
    files: Sequence[DataFile], *, part_rows: int = PART_ROWS
) -> list[tuple[Slice, ...]]:
    """Slices in reading order, grouped so that a part has about `part_rows` rows; a file of text is one part."""
    parts: list[tuple[Slice, ...]] = []
    waiting: list[Slice] = []
    rows = 0
    for file in files:
        if file.format != "parquet":
            parts += [tuple(waiting)] if waiting else []
            parts.append((Slice(file),))
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
    original = {new: old for old, new in file.rename.items()}
    wanted = [original.get(name, name) for name in columns]
    types = {original.get(name, name): found for name, found in (declared or {}).items()}
    row = piece.first_row
    for table in _tables(piece, wanted, types):
        renamed = table.select(wanted).rename_columns(list(columns))
        for start in range(0, renamed.num_rows, BATCH_ROWS):
            batch = renamed.slice(start, BATCH_ROWS)
            yield RawBatch(file, row, batch)
            row += batch.num_rows


def _tables(
    piece: Slice, wanted: list[str], declared: Mapping[str, pa.DataType]
) -> Iterator[pa.Table]:
    with _readable(piece.file):
        if piece.file.format == "jsonl":
            yield from read_jsonl(piece.file, wanted, declared=declared)
        elif piece.file.csv is not None:
            yield from _read_csv(piece.file, piece.file.csv, wanted)
        else:
            yield from _read_parquet(piece, wanted)


def _names(file: DataFile) -> tuple[str, ...]:
    if file.format == "jsonl":
        return jsonl_names(file)
    return _parquet_names(file) if file.csv is None else _csv_names(file, file.csv)


def _read_parquet(piece: Slice, wanted: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(piece.file.path) as parquet:
        groups = (
            list(range(parquet.num_row_groups))
            if piece.row_groups is None
            else list(piece.row_groups)
        )
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=wanted):
            yield pa.Table.from_batches([batch])


def _read_csv(file: DataFile, settings: Csv, wanted: list[str]) -> Iterator[pa.Table]:
    names = _csv_names(file, settings)
    reader = pa.csv.open_csv(
        str(file.path),
        read_options=pa.csv.ReadOptions(
            block_size=_BLOCK_BYTES,
            column_names=list(names),
            skip_rows=1 if settings.header else 0,
            encoding=settings.encoding,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=settings.delimiter,
            quote_char=settings.quote or False,
            newlines_in_values=True,
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=False,
        ),
    )
    for table in _gathered(reader):
        yield pa.table(
            [_cleaned(column, settings) for column in table.columns], names=table.column_names
        )


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches put together, so that work per batch is shared by many rows."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(item) for item in waiting) >= BATCH_ROWS:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _cleaned(column: pa.ChunkedArray, settings: Csv) -> pa.ChunkedArray:
    if settings.strip:
        column = pc.utf8_trim_whitespace(column)
    if not settings.nulls:
        return column
    null = pc.is_in(column, value_set=pa.array(settings.nulls, pa.string()))
    return pc.if_else(null, pa.scalar(None, pa.string()), column)


def _csv_names(file: DataFile, settings: Csv) -> tuple[str, ...]:
    if not settings.header:
        return settings.names
    encoding = "utf-8-sig" if settings.encoding.lower() in ("utf-8", "utf8") else settings.encoding
    with pa.input_stream(str(file.path)) as stream:
        line = io.TextIOWrapper(stream, encoding=encoding).readline()
    reader = csv.reader(
        [line],
        delimiter=settings.delimiter,
        quotechar=settings.quote or None,
        quoting=csv.QUOTE_MINIMAL if settings.quote else csv.QUOTE_NONE,
    )
    names = next(reader, [])
    if not names:
        raise DataError(
            f"{file.path}: the header line is empty; write the columns' names, or set header = false"
        )
    return tuple(name.strip() for name in names) if settings.strip else tuple(names)


def _parquet_names(file: DataFile) -> tuple[str, ...]:
    return tuple(pq.read_schema(file.path).names)


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


@contextmanager
def _readable(file: DataFile) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as one sentence that names the file."""
    kind = _KINDS[file.format]
    try:
        if file.path.stat().st_size == 0:
            raise DataError(
                f"{file.path}: the file is empty (0 bytes); write it again or take it out of the source"
            )
        yield
    except FileNotFoundError as error:
        raise DataError(f"{file.path}: no such file; check the path") from error
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{file.path}: not readable as {kind.name} ({reason[:300]}); {kind.hint}"
        ) from error
