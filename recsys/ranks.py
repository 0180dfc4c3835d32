"""What processes that train one model together tell each other.

They are the ranks of torch.distributed's default process group, numbered from 0. Where there is no group, a process is
the only rank, and every function here gives back at once what it was given. All ranks have to make the same calls in
the same order: a rank that leaves one out keeps the others waiting.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class OtherRankFailed(Exception):  # noqa: N818 - no error of this rank
    """The first rank, which all wait for, has raised an exception and tells it there."""


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if _together() else 0


def ranks_here() -> int:
    """How many of them this machine runs, as their launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _together() else 1


def is_first() -> bool:
    """Whether this rank is the one that writes and speaks for all."""
    return rank() == 0


def add_up(part: Tensor) -> Tensor:
    """The sum of all ranks' parts, the same numbers on each, where each goes on to the same loss.

    The loss counts once, so its gradient by a part is its gradient by the sum.
    """
    if world_size() == 1:
        return part
    total: Tensor = _Sum.apply(part)  # type: ignore[no-untyped-call]
    return total


def add_up_uses(part: Tensor) -> Tensor:
    """The sum of all ranks' parts, where each rank's own rows make use of it.

    A part matters to the rows of all ranks, so its gradient is the sum of theirs.
    """
    if world_size() == 1:
        return part
    total: Tensor = _UsedSum.apply(part)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def added_up(parts: Sequence[Tensor]) -> list[Tensor]:
    """The sums over ranks of tensors of one type, the same bits on each, by one message."""
    if world_size() == 1 or not parts:
        return list(parts)
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    pieces = torch.split(flat, [part.numel() for part in parts])
    return [piece.view_as(part) for part, piece in zip(parts, pieces, strict=True)]


@torch.no_grad()
def add_up_all(parts: Sequence[Tensor]) -> None:
    """Put the sums over ranks in the place of tensors of one type, by one message."""
    if world_size() == 1:
        return
    for part, total in zip(parts, added_up(parts), strict=True):
        part.copy_(total)


@torch.no_grad()
def gathered(part: Tensor) -> Tensor:
    """All ranks' parts, one after the other by rank: along their first axis, which may be of any length on each."""
    if world_size() == 1:
        return part
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(part)
    dist.all_reduce(lengths)
    # Messages of one size are what every backend has.
    padded = part.new_zeros(int(lengths.max()), *part.shape[1:])
    padded[: len(part)] = part
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([item[:length] for item, length in zip(found, lengths.tolist(), strict=True)])


def largest(numbers: Sequence[int]) -> list[int]:
    """Each number's maximum over ranks."""
    if world_size() == 1 or not numbers:
        return list(numbers)
    found = torch.tensor(numbers)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [int(number) for number in found.tolist()]


def on_first(function: Callable[[], T]) -> T:
    """What a function gives on the first rank, which alone calls it, on every rank.

    When it raises there, the other ranks raise OtherRankFailed.
    """
    if world_size() == 1:
        return function()
    # One value, or none.
    told: list[Any] = [()]
    if is_first():
        try:
            told = [(function(),)]
        except Exception:
            dist.broadcast_object_list(told, src=0)
            raise
    dist.broadcast_object_list(told, src=0)
    if not told[0]:
        raise OtherRankFailed
    found: T = told[0][0]
    return found


def to_first(value: T) -> list[T]:
    """Every rank's value, by rank, on the first rank; on the others none."""
    if world_size() == 1:
        return [value]
    found: list[Any] | None = [None] * world_size() if is_first() else None
    dist.gather_object(value, found)
    return found or []


def wait_for_all() -> None:
    """Return when every rank has come here."""
    largest([0])


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _UsedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _summed(gradients[0])


def _summed(part: Tensor) -> Tensor:
    total = part.clone()
    dist.all_reduce(total)
    return total
