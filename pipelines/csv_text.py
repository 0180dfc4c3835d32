"""The text of a CSV file as its parsers get it: UTF-8, without the header, delimiters one byte wide."""

import csv
import io
import re
from collections.abc import Iterable, Iterator

from pipelines.lines import ByteRange, line_blocks
from pipelines.sources import Csv, DataFile
from recsys.errors import DataError

# Stands for a delimiter of several bytes, which pyarrow cannot split at: ASCII's own "unit separator".
STAND_IN = "\x1f"

_LINE_END = re.compile(rb"\r\n|\n|\r")


class CsvText(io.RawIOBase):
    """What pyarrow parses: lines in UTF-8 without the header, delimiters one character wide. Counts their quotes."""

    def __init__(self, file: DataFile, settings: Csv, within: ByteRange | None) -> None:
        self.quotes = 0
        self._blocks = narrow_blocks(file, settings, within)
        self._quote = settings.quote.encode()
        self._left = memoryview(b"")
        self._fill()

    @property
    def is_empty(self) -> bool:
        return not self._left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), len(self._left))
        if 1 < size < len(self._left) and self._left[size - 1] == ord("\r"):
            # pyarrow drops a line feed at which a read begins, and takes one that is alone for the end of the file.
            size -= 1
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        if not self._left:
            self._fill()
        return size

    def _fill(self) -> None:
        block = next((block for block in self._blocks if block), b"")
        if self._quote:
            self.quotes += block.count(self._quote)
        self._left = memoryview(block)


def narrow_blocks(file: DataFile, settings: Csv, within: ByteRange | None) -> Iterator[bytes]:
    """Blocks of whole lines without the header, their delimiters one character wide."""
    header = settings.header and (within is None or within.start == 0)
    wide, stand_in = settings.delimiter.encode(), STAND_IN.encode()
    for block in line_blocks(file.path, within, encoding=settings.encoding):
        if header:
            block, header = _without_first(block), False
        if is_wide(settings):
            if stand_in in block:
                raise DataError(
                    f"{file.path}: holds the control character 0x1F, which stands in for the delimiter "
                    f"{settings.delimiter!r}; take it out of the file, or separate fields by one character"
                )
            block = block.replace(wide, stand_in)
        yield block


def first_line(file: DataFile, settings: Csv) -> str:
    """The first line of a file, delimiters one character wide; empty when the file is."""
    block = next(line_blocks(file.path, encoding=settings.encoding), b"")
    line = _LINE_END.split(block, 1)[0].decode(errors="replace")
    return line.replace(settings.delimiter, STAND_IN) if is_wide(settings) else line


def parsed(lines: Iterable[str], settings: Csv) -> Iterator[list[str]]:
    """The fields of each row, by Python's own reader. Raises csv.Error."""
    return csv.reader(
        lines,
        delimiter=narrow(settings),
        quotechar=settings.quote or None,
        quoting=csv.QUOTE_MINIMAL if settings.quote else csv.QUOTE_NONE,
    )


def narrow(settings: Csv) -> str:
    """The one character, of one byte, at which the text is split."""
    return STAND_IN if is_wide(settings) else settings.delimiter


def is_wide(settings: Csv) -> bool:
    """Whether the delimiter has several bytes, so that STAND_IN takes its place."""
    return len(settings.delimiter.encode()) > 1


def excerpt(text: str, settings: Csv) -> str:
    """A line or row for people, cut short; bytes that are no UTF-8 as they are."""
    stated = text.replace(STAND_IN, settings.delimiter).strip("\r\n").replace("\n", "\\n")
    shown = stated.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return f"'{shown}'" if len(shown) <= 60 else f"'{shown[:57]}...'"


def _without_first(block: bytes) -> bytes:
    return _LINE_END.split(block, 1)[1]
