"""Named tensors in safetensors files: small ones by one process at once, large ones by many, each its own blocks.

Several ranks write one file of the same format, so it does not say how many there were. All of them have to see it,
under the same path: on one machine, or on a file system that they share.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from recsys.errors import ArtifactError
from recsys.ranks import is_first, wait_for_all

Shapes = Mapping[str, tuple[int, ...]]
_FLOAT32_BYTES = 4


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
    """Write named tensors as safetensors."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, file)


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
            sink.truncate(len(header) + size)
    wait_for_all()
    for block in blocks:
        _write_block(file, len(header) + starts[block.name], shapes[block.name], block)
    wait_for_all()


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file, of which parts are read."""

    shape: tuple[int, ...]
    _slice: Any

    def __getitem__(self, index: Any) -> Tensor:
        found: Tensor = self._slice[index]
        return found


@contextmanager
def stored_tensors(file: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a safetensors file, by name, unread. Raises ArtifactError when it cannot be read."""
    try:
        opened = safetensors.safe_open(file, "pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(file, error) from error
    with opened as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        yield {name: StoredTensor(tuple(item.get_shape()), item) for name, item in slices.items()}


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
    values = block.values.detach().cpu().contiguous().numpy()
    assert values.dtype == np.float32
    if not values.size:
        return
    if block.values.shape[1:] != shape[1:]:
        stored = np.memmap(file, np.float32, "r+", offset=start, shape=shape)
        stored[block.index] = values
        stored.flush()
        return
    # Whole rows lie together. This is several times faster than to write through a map.
    with file.open("r+b") as sink:
        sink.seek(start + _FLOAT32_BYTES * block.first[0] * prod(shape[1:]))
        sink.write(values.data.cast("B"))


def _unreadable(file: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{file}: cannot be read ({error}); use another checkpoint")
