"""Text files as blocks of whole lines: unpacked while they are read, and cut into ranges that start at a line."""

from collections.abc import Iterator
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


def line_blocks(path: Path, within: ByteRange | None = None) -> Iterator[bytes]:
    """Blocks of whole lines of about BLOCK_BYTES; each ends with a line feed. A byte order mark is left out."""
    rest = b""
    first = within is None or within.start == 0
    for block in _byte_blocks(path, within):
        if first:
            block, first = block.removeprefix(_BYTE_ORDER_MARK), False
        whole, feed, tail = block.rpartition(b"\n")
        if feed:
            yield rest + whole + feed
            rest = tail
        else:
            rest += block
    if rest:
        yield rest + b"\n"


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
