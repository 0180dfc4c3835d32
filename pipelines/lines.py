"""Text files as blocks of whole lines: unpacked while they are read, and cut into ranges that start at a line."""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

BLOCK_BYTES = 4 << 20
PACKED_SUFFIXES = (".gz", ".bz2", ".zst")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `stop` of a plain file, whole lines. `first_row` rows of the file stand before them."""

    start: int
    stop: int
    first_row: int


def line_blocks(
    path: Path, within: ByteRange | None = None, *, encoding: str = "utf-8"
) -> Iterator[bytes]:
    """Blocks of whole lines in UTF-8, of about BLOCK_BYTES; each ends with a line feed, none has a byte order mark.

    Text of another encoding is translated; UTF-8 is passed on as it is. Raises UnicodeDecodeError.
    """
    held = rest = b""
    first = within is None or within.start == 0
    for block in _in_utf8(_byte_blocks(path, within), encoding):
        if first:
            block, first = block.removeprefix(_BYTE_ORDER_MARK), False
        whole, feed, tail = block.rpartition(b"\n")
        if not feed:
            rest += block
            continue
        # Held back, so that a last line without its line feed is not alone in a block.
        if held:
            yield held
        held, rest = rest + whole + feed, tail
    if held or rest:
        yield held + rest + (b"\n" if rest else b"")


def cut_ranges(
    path: Path, *, part_bytes: int, count: Callable[[bytes], int | None]
) -> list[ByteRange] | None:
    """A plain file in ranges of whole lines, about `part_bytes` each.

    `count` says how many rows whole lines hold, None when they cannot be told apart from other lines. Then, and where
    a line is longer than a part, the file cannot be cut and the answer is None.
    """
    ranges: list[ByteRange] = []
    start = row = 0
    with path.open("rb") as file:
        while True:
            file.seek(start)
            chunk = file.read(part_bytes)
            if not chunk:
                return ranges
            size = chunk.rfind(b"\n") + 1 if len(chunk) == part_bytes else len(chunk)
            rows = count(chunk[:size])
            if size == 0 or rows is None:
                return None
            ranges.append(ByteRange(start, start + size, row))
            start, row = start + size, row + rows


def first_bytes(path: Path, size: int) -> bytes:
    """The first `size` unpacked bytes of a file, or all that there are."""
    with pa.input_stream(str(path)) as stream:
        found: bytes = stream.read(size)
    return found


def count_rows(block: bytes) -> int:
    """How many lines of a block hold more than blanks."""
    # A line that starts with white space may be blank: only then is each looked at.
    if block[:1] in b"\n\r\t " or any(
        blank in block for blank in (b"\n\n", b"\n\r", b"\n\t", b"\n ")
    ):
        return sum(1 for line in block.split(b"\n") if line.strip())
    return block.count(b"\n")


def is_packed(path: Path) -> bool:
    """Whether a file is unpacked while it is read, so that nobody can start in its middle."""
    return path.suffix in PACKED_SUFFIXES


def _in_utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in blocks:
        yield decoder.decode(block).encode()
    yield decoder.decode(b"", final=True).encode()


def _byte_blocks(path: Path, within: ByteRange | None) -> Iterator[bytes]:
    if within is None:
        with pa.input_stream(str(path)) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
        return
    with path.open("rb") as file:
        file.seek(within.start)
        left = within.stop - within.start
        while block := file.read(min(BLOCK_BYTES, left)):
            left -= len(block)
            yield block
