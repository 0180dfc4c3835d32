"""Why a CSV file cannot be read: the first row that is at fault, found by a plain reader."""

import csv
from collections.abc import Iterator

from pipelines.csv_text import excerpt, narrow_blocks, parsed
from pipelines.lines import ByteRange
from pipelines.sources import Csv, DataFile
from recsys.errors import DataError


def explain(file: DataFile, settings: Csv, columns: int, within: ByteRange | None) -> None:
    """Raise a DataError that names the first row that cannot be read; nothing, when all can be."""
    row = 0 if within is None else within.first_row
    lines = _Lines(narrow_blocks(file, settings, within), quote=settings.quote)
    rows = parsed(lines, settings)
    while True:
        where = f"{file.path}, row {row + 1}"
        try:
            fields = next(rows, None)
        except csv.Error as error:
            raise DataError(
                f"{where}: a field of more than {csv.field_size_limit():,} characters, most likely a quote that is "
                'never closed; close it, or set quote = "" under [csv] if quotes mean nothing'
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file.path}: holds bytes that are no {settings.encoding} ({error.reason}); "
                "correct encoding under [csv]"
            ) from error
        if fields is None:
            return
        if fields:
            _require_row(where, fields, settings, columns, is_open=lines.is_open)
            row += 1
        lines.is_open = False


def _require_row(
    where: str, fields: list[str], settings: Csv, columns: int, *, is_open: bool
) -> None:
    shown = excerpt(settings.delimiter.join(fields), settings)
    if is_open and fields[-1].endswith("\n"):
        raise DataError(
            f"{where}: a quote is opened and never closed, found {shown}; "
            'close it, or set quote = "" under [csv] if quotes mean nothing'
        )
    if len(fields) != columns:
        raise DataError(
            f"{where}: {_counted(len(fields), 'field')} where the file has {_counted(columns, 'column')}, "
            f"found {shown}; correct the row, or [csv] (delimiter, quote, names)"
        )
    if any(not field.isascii() and not _is_text(field) for field in fields):
        raise DataError(
            f'{where}: not UTF-8, found {shown}; say the file\'s encoding under [csv], such as encoding = "latin-1"'
        )


class _Lines:
    """Lines of blocks as text. `is_open` tells whether the quotes since it was last reset are odd in number."""

    def __init__(self, blocks: Iterator[bytes], *, quote: str) -> None:
        self.is_open = False
        self._quote = quote
        self._lines = (line for block in blocks for line in block.splitlines(keepends=True))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines).decode(errors="surrogateescape")
        if self._quote:
            self.is_open ^= bool(line.count(self._quote) % 2)
        return line


def _is_text(field: str) -> bool:
    """Whether all bytes of a field were UTF-8: bytes that are not became lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in field)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
