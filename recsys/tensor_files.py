"""Named tensors in safetensors files: small ones by one process at once, large ones by many, each its own blocks.

Several ranks write one file of the same format, so it does not say how many there were. All of them have to see it,
under the same path: on one machine, or on a file system that they share. A tensor larger than memory is written and
read block by block.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import ArtifactError
from recsys.ranks import is_first, wait_for_all

Shapes = Mapping[str, tuple[int, ...]]
_FLOAT32_BYTES = 4
# What is read, copied or written at once of a large tensor.
_BLOCK_BYTES = 16 * 2**20
# The format's own limit.
_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, eq=False)
class Block:
    """A block of the float32 tensor `name`: its numbers, and the index of its first one."""

    name: str
    first: tuple[int, ...]
    values: Tensor

    @property
    def index(self) -> tuple[slice, ...]:
        """Where it lies in the tensor."""
        sizes = zip(self.first, self.values.shape, strict=True)
        return tuple(slice(first, first + size) for first, size in sizes)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors. Raises OSError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, file)
    except safetensors.SafetensorError as error:
        # Which error of the system it was stands in its text alone.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ArtifactError when it cannot be read."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(file, error) from error
    return tensors


def write_blocks(file: Path, shapes: Shapes, blocks: Iterable[Block]) -> None:
    """Write float32 tensors of these shapes together with the other ranks, each its own blocks, as safetensors."""
    header, starts, size = _header(shapes)
    if is_first():
        with file.open("wb") as sink:
            sink.write(header)
            sink.flush()
            # Room for all of it now: a write through a map has no way to tell that there is none.
            os.posix_fallocate(sink.fileno(), 0, len(header) + size)
    wait_for_all()
    for block in blocks:
        _write_block(file, len(header) + starts[block.name], shapes[block.name], block)
    wait_for_all()


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A float32 tensor in a file, of which copies of parts are read. Its first number is at byte `start`."""

    file: Path
    start: int
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> Tensor:
        """The part of these slices. Memory is needed for its whole rows."""
        rows, *others = index if isinstance(index, tuple) else (index,)
        first, stop, _ = rows.indices(self.shape[0])
        width, count = prod(self.shape[1:]), max(0, stop - first)
        start = self.start + _FLOAT32_BYTES * width * first
        # Read, not mapped: pages of a map would count as this process's memory until others need it.
        found = np.fromfile(self.file, np.float32, count=count * width, offset=start)
        return torch.from_numpy(found.reshape(count, *self.shape[1:]))[(slice(None), *others)]

    def take(self, rows_N: Tensor) -> Tensor:
        """Copies of single rows."""
        return torch.from_numpy(self._map[rows_N.numpy()])

    @cached_property
    def _map(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.empty(self.shape, np.float32)
        if found.size:
            found = np.memmap(self.file, np.float32, "r", offset=self.start, shape=self.shape)
        return found


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The float32 tensors of a safetensors file, by name, unread. Raises ArtifactError when it cannot be read."""
    try:
        with file.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            entries = json.loads(source.read(min(length, _HEADER_BYTES)))
        entries.pop("__metadata__", None)
        found = {name: _stored(file, 8 + length, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(file, error) from error
    return found


def row_blocks(rows: slice, width: int) -> Iterator[slice]:
    """Slices of a run of rows of so many float32 numbers each, of 16 MiB or one row."""
    step = max(1, _BLOCK_BYTES // (_FLOAT32_BYTES * max(1, width)))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def _stored(file: Path, data: int, entry: Mapping[str, Any]) -> StoredTensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    fits = end - begin == _FLOAT32_BYTES * prod(shape) and data + end <= file.stat().st_size
    if entry["dtype"] != "F32" or not fits:
        raise ValueError(f"{entry['dtype']} {list(shape)}")
    return StoredTensor(file, data + begin, shape)


def _header(shapes: Shapes) -> tuple[bytes, dict[str, int], int]:
    """The file's header with its length in front, where each tensor starts behind it, and how much follows."""
    entries, starts, end = {}, {}, 0
    for name, shape in shapes.items():
        starts[name], end = end, end + _FLOAT32_BYTES * prod(shape)
        entries[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Readers map the file: numbers begin at a multiple of their size.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts, end


def _write_block(file: Path, start: int, shape: tuple[int, ...], block: Block) -> None:
    if not block.values.numel():
        return
    if block.values.shape[1:] != shape[1:]:
        stored = np.memmap(file, np.float32, "r+", offset=start, shape=shape)
        stored[block.index] = _numbers(block.values)
        stored.flush()
        return
    # Whole rows lie together. This is several times faster than to write through a map.
    width = prod(shape[1:])
    with file.open("r+b") as sink:
        sink.seek(start + _FLOAT32_BYTES * block.first[0] * width)
        for rows in row_blocks(slice(0, len(block.values)), width):
            sink.write(_numbers(block.values[rows]).data.cast("B"))


def _numbers(values: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().cpu().contiguous().numpy()
    assert found.dtype == np.float32
    return found


def _unreadable(file: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{file}: cannot be read ({error}); use another checkpoint")
