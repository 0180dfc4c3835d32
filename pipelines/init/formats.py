"""How given files are written: Parquet, JSON lines or CSV, and a CSV file's encoding, delimiter, quotes and header."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.init import names
from pipelines.jsonl_files import jsonl_names
from pipelines.sources import Csv, DataFile, Format
from recsys.errors import DataError

_HEAD_BYTES = 1 << 20
_DECODED_BYTES = 64 << 20
_LOOKED_AT_LINES = 400
_DELIMITERS = ("\t", ",", ";", "|", "::")
_COMPRESSED = (".gz", ".bz2", ".zst")
_DATA_SUFFIXES = (
    ".parquet",
    ".pq",
    ".csv",
    ".tsv",
    ".txt",
    ".dat",
    ".data",
    ".test",
    ".jsonl",
    ".ndjson",
    ".json",
)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Found:
    """A file and how it is written. `csv` only for CSV; `columns` in order, made up where there is no header."""

    path: Path
    format: Format
    csv: Csv | None
    columns: tuple[str, ...]

    @property
    def has_names(self) -> bool:
        """Whether the columns' names are the file's own."""
        return self.csv is None or self.csv.header


def expand(files: Sequence[Path]) -> list[Path]:
    """Files in the order given; a folder stands for the data files in it. Raises DataError naming what is no file."""
    found: list[Path] = []
    for path in files:
        if path.is_dir():
            inside = sorted(
                item
                for item in path.rglob("*")
                if _is_data(item.relative_to(path)) and item.is_file()
            )
            if not inside:
                raise DataError(
                    f"{path}: this folder holds no data file; give Parquet, CSV or JSON lines"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file; check the path")
    if not found:
        raise DataError("no file given; name the files that hold your rows")
    return list(dict.fromkeys(found))


def look_at(path: Path) -> Found:
    """A file's format and columns, from its first bytes. Raises DataError when it is empty or not readable."""
    head = _head(path)
    if head[:4] == b"PAR1":
        return Found(path, "parquet", None, _parquet_columns(path))
    encoding = _encoding(path, head)
    text = head.decode(encoding, errors="ignore").lstrip("\ufeff")
    if not text.strip():
        raise DataError(f"{path}: the file holds no rows; give a file with rows")
    if text.lstrip()[0] in "{[":
        return Found(path, "jsonl", None, jsonl_names(DataFile(path, 0, "jsonl", None, {})))
    settings, columns = _csv(text, encoding, path)
    return Found(path, "csv", settings, columns)


def _is_data(path: Path) -> bool:
    if any(part.startswith((".", "_")) for part in path.parts):
        return False
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    readme = path.name.lower().startswith(("readme", "license"))
    return (
        bool(suffixes)
        and suffixes[-1] in _DATA_SUFFIXES
        and not readme
        and "readme" not in path.name.lower()
    )


def _head(path: Path) -> bytes:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes); give a file with rows")
        with pa.input_stream(str(path)) as stream:
            head: bytes = stream.read(_HEAD_BYTES)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read ({str(error).splitlines()[0][:200]}); check the file"
        ) from error
    return head


def _parquet_columns(path: Path) -> tuple[str, ...]:
    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not readable as Parquet; the copy is damaged, copy the file again"
        ) from error


def _encoding(path: Path, head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    decoder = codecs.getincrementaldecoder("utf-8")()
    with pa.input_stream(str(path)) as stream:
        seen = 0
        while seen < _DECODED_BYTES and (block := stream.read(_HEAD_BYTES)):
            seen += len(block)
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                return "latin-1"
    return "utf-8"


def _csv(text: str, encoding: str, path: Path) -> tuple[Csv, tuple[str, ...]]:
    """Settings and column names of a CSV text; the last line may be cut off."""
    lines = text.splitlines()
    lines = lines[:-1] if len(lines) > 1 and len(text) >= _HEAD_BYTES // 4 else lines
    delimiter, quote, rows = _best_reading([line for line in lines[:_LOOKED_AT_LINES] if line])
    strip = _is_padded(rows)
    cells = [[cell.strip() for cell in row] if strip else row for row in rows]
    header = _has_header(cells)
    found = tuple(cells[0]) if header else tuple(f"c{number}" for number in range(len(cells[0])))
    settings = Csv(
        header=header,
        names=() if header else found,
        delimiter=delimiter,
        strip=strip,
        quote=quote,
        encoding=encoding,
    )
    if header:
        _require_distinct(found, path)
    return settings, found


def _best_reading(lines: Sequence[str]) -> tuple[str, str, list[list[str]]]:
    """Delimiter, quote and rows of the reading whose lines have the same number of fields, and most of them."""
    best: tuple[float, int, str, str, list[list[str]]] = (
        0.0,
        0,
        ",",
        '"',
        [[line] for line in lines],
    )
    for delimiter, quote in _readings(lines):
        rows = list(_rows(lines, delimiter, quote))
        if not rows:
            continue
        fields, count = Counter(len(row) for row in rows).most_common(1)[0]
        # What agrees in (nearly) every line beats what has more fields in some.
        agreement = round(count / len(rows), 2)
        if fields > 1 and (agreement, fields) > best[:2]:
            best = (
                agreement,
                fields,
                delimiter,
                quote,
                [row for row in rows if len(row) == fields],
            )
    return best[2:]


def _readings(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    text = "\n".join(lines)
    for delimiter in _DELIMITERS:
        if delimiter in text:
            yield delimiter, '"'
            if '"' in text:
                yield delimiter, ""
            if f"{delimiter}'" in text:
                yield delimiter, "'"


def _rows(lines: Sequence[str], delimiter: str, quote: str) -> Iterator[list[str]]:
    if len(delimiter) > 1:
        yield from (line.split(delimiter) for line in lines)
        return
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
    )
    yield from (row for row in reader if row)


def _is_padded(rows: Sequence[Sequence[str]]) -> bool:
    """Whether blanks stand around the fields: in the header, or in most lines."""
    if any(cell != cell.strip() for cell in rows[0]):
        return True
    padded = sum(any(cell != cell.strip() for cell in row) for row in rows)
    return padded * 2 > len(rows)


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line names columns: no numbers, nothing twice, and unlike the lines below it."""
    first, below = rows[0], rows[1:]
    if any(_NUMBER.fullmatch(cell) for cell in first):
        return False
    if not below:
        return True
    columns = [[row[place] for row in below] for place in range(len(first))]
    typed = [_mostly_numbers(values) for values in columns]
    if any(typed):
        return True
    known = sum(
        names.is_user(cell) or names.is_item(cell) or names.is_time(cell) or names.is_outcome(cell)
        for cell in first
    )
    # A header's names do not come up again as values.
    repeated = sum(cell in values for cell, values in zip(first, columns, strict=True))
    return known > 0 or repeated == 0


def _mostly_numbers(values: Sequence[str]) -> bool:
    filled = [value for value in values if value]
    return bool(filled) and sum(
        _NUMBER.fullmatch(value) is not None for value in filled
    ) > 0.9 * len(filled)


def _require_distinct(found: Sequence[str], path: Path) -> None:
    twice = next((name for name, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        places = [str(number) for number, name in enumerate(found, start=1) if name == twice]
        raise DataError(
            f"{path}: column {twice!r} occurs twice in the header (columns {', '.join(places)}); rename one of them"
        )
