"""CSV as tables of text: pyarrow reads, and a plain reader finds the row of whatever stops it."""

import codecs
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipelines.csv_faults import explain
from pipelines.csv_text import STAND_IN, CsvText, excerpt, first_line, is_wide, narrow, parsed
from pipelines.lines import ByteRange, cut_ranges, first_bytes, is_packed
from pipelines.sources import Csv, DataFile
from recsys.errors import DataError

_PARSED_BYTES = 8 << 20
_GATHERED_ROWS = 65_536
# Encodings in which a byte 10 is a line feed and nothing else.
_CUT_ENCODINGS = ("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252")


def csv_names(file: DataFile, settings: Csv) -> tuple[str, ...]:
    """Names of a file's columns, blanks around them removed. Raises DataError when the header is of no use."""
    _require_encoding(file, settings)
    if not settings.header:
        return settings.names
    line = first_line(file, settings)
    if settings.quote and line.count(settings.quote) % 2:
        raise DataError(
            f"{file.path}: the header line {excerpt(line, settings)} opens a quote and does not close it; "
            'write the header in one line, or set quote = "" under [csv]'
        )
    found = next(parsed([line], settings), [])
    if not found:
        raise DataError(
            f"{file.path}: the header line is empty; write the columns' names, or set header = false"
        )
    if settings.names and len(settings.names) != len(found):
        raise DataError(
            f"{file.path}: [csv] gives {len(settings.names)} names, the header {excerpt(line, settings)} "
            f"has {len(found)}; give each column its name"
        )
    return settings.names or tuple(name.strip() for name in found)


def read_csv(
    file: DataFile, settings: Csv, positions: Sequence[int], *, within: ByteRange | None = None
) -> Iterator[pa.Table]:
    """Tables of text, one column for each position in the file; fields that mean null are null.

    Raises DataError naming the row that cannot be read.
    """
    columns = len(csv_names(file, settings))
    wanted = [str(position) for position in positions]
    text = CsvText(file, settings, within)
    try:
        for table in _gathered(_batches(text, settings, columns, wanted)):
            yield pa.table([_cleaned(column, settings) for column in table.columns], names=wanted)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        explain(file, settings, columns, within)
        raise
    if text.quotes % 2:
        # An odd number of quotes may be an inch; one that swallows the rest of the file is not.
        explain(file, settings, columns, within)


def csv_ranges(file: DataFile, settings: Csv, *, part_bytes: int) -> list[ByteRange] | None:
    """The ranges of whole rows that a file can be read in.

    None when it is small or packed, or when a quoted field may hold a line end.
    """
    encoding = codecs.lookup(settings.encoding).name
    if is_packed(file.path) or encoding not in _CUT_ENCODINGS:
        return None
    if file.path.stat().st_size <= part_bytes:
        return None
    quote = settings.quote.encode()
    header = 1 if settings.header else 0

    def count(lines: bytes) -> int | None:
        nonlocal header
        if (quote and quote in lines) or _has_lone_returns(lines):
            return None
        rows = _count_lines(lines) - header
        header = 0
        return rows

    return cut_ranges(file.path, part_bytes=part_bytes, count=count)


def _has_lone_returns(lines: bytes) -> bool:
    return b"\r" in lines and lines.count(b"\r") != lines.count(b"\r\n")


def _count_lines(lines: bytes) -> int:
    """Lines that are not empty: pyarrow skips the others."""
    if lines[:1] in (b"\n", b"\r") or b"\n\n" in lines or (b"\r" in lines and b"\n\r" in lines):
        return sum(1 for line in lines.split(b"\n") if line.strip(b"\r"))
    return lines.count(b"\n")


def _batches(
    text: CsvText, settings: Csv, columns: int, wanted: list[str]
) -> Iterator[pa.RecordBatch]:
    if text.is_empty:
        return
    yield from pa.csv.open_csv(
        text,
        read_options=pa.csv.ReadOptions(
            block_size=_PARSED_BYTES, column_names=[str(place) for place in range(columns)]
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=narrow(settings),
            quote_char=settings.quote or False,
            newlines_in_values=bool(settings.quote),
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=False,
        ),
    )


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches put together, so that work per batch is shared by many rows."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(item) for item in waiting) >= _GATHERED_ROWS:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _cleaned(column: pa.ChunkedArray, settings: Csv) -> pa.ChunkedArray:
    if is_wide(settings) and settings.quote:
        # Inside quotes a delimiter is text.
        column = pc.replace_substring(column, STAND_IN, settings.delimiter)
    if settings.strip:
        column = pc.utf8_trim_whitespace(column)
    if not settings.nulls:
        return column
    null = pc.is_in(column, value_set=pa.array(settings.nulls, pa.string()))
    return pc.if_else(null, pa.scalar(None, pa.string()), column)


def _require_encoding(file: DataFile, settings: Csv) -> None:
    """Tell UTF-16 from one-byte text before a reader says something about zero bytes."""
    start = first_bytes(file.path, 1024)
    wide = codecs.lookup(settings.encoding).name.startswith(("utf-16", "utf-32"))
    looks_wide = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\x00" in start
    if looks_wide and not wide:
        raise DataError(
            f'{file.path}: the text looks like UTF-16, not {settings.encoding}; say encoding = "utf-16" under [csv]'
        )
    if wide and start and not looks_wide:
        raise DataError(
            f"{file.path}: the text does not look like {settings.encoding}; "
            'take encoding out of [csv], or say encoding = "latin-1"'
        )
