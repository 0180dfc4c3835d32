"""Packed ids to the blocks that a program takes: embedding rows looked up, pooled and padded in NumPy.

The arithmetic is the model's own (`recsys.models`), so that a program sees in the server what it saw in training.

Axes: **U** users of a request, **N** candidates, **B** either, **I** block width, **L** events, **K** embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.collate import Packed
from recsys.layout import BlockSide, Dense, Slot, dense, slots
from recsys.schema import Schema

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class SideBlocks:
    """One side's inputs: slots and dense values side by side, and each sequence's tokens with their valid mask."""

    block_BI: Float32Array
    tokens: Mapping[str, Float32Array]
    valid: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class SideLayout:
    """The slots and dense values of one side, in order. Derived once, used for every request."""

    slots: tuple[Slot, ...]
    dense: tuple[Dense, ...]
    sequences: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema, side: BlockSide) -> "SideLayout":
        sequences = tuple(schema.sequences) if side == "user" else ()
        return cls(slots(schema, side), dense(schema, side), sequences)

    @property
    def width(self) -> int:
        """I: pooled and single slots, then dense values; tokens are apart."""
        pooled = sum(slot.dim for slot in self.slots if slot.kind != "token")
        return pooled + sum(item.width for item in self.dense)

    def token_slots(self, sequence: str) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.sequence == sequence)


def gather(packed: Packed, layout: SideLayout, *, tables: Mapping[str, Float32Array]) -> SideBlocks:
    """The blocks of one side's packed rows.

    A bag without ids, or whose weights are all 0, pools to zero. Tokens are left-aligned and zero-padded to the longest
    row (at least 1 event, so that no axis is empty).
    """
    block_BI = np.empty((len(packed.dense_BD), layout.width), np.float32)
    tokens = {name: _Padded.empty(layout, name, packed) for name in layout.sequences}
    start = column = 0
    for f, slot in enumerate(layout.slots):
        lengths_B = packed.lengths_FB[f]
        stop = start + int(lengths_B.sum())
        rows_NK = tables[slot.table][packed.values_N[start:stop]]
        if slot.weighted:
            assert packed.weights_N is not None
            rows_NK *= _factors(packed.weights_N[start:stop], lengths_B, slot)[:, None]
        start = stop
        if slot.kind == "token":
            assert slot.sequence is not None
            tokens[slot.sequence].put(rows_NK)
            continue
        pooled_BK = rows_NK if slot.kind == "single" else _pooled(rows_NK, lengths_B, slot)
        block_BI[:, column : column + slot.dim] = pooled_BK
        column += slot.dim
    block_BI[:, column:] = packed.dense_BD
    return SideBlocks(
        block_BI,
        {name: item.tokens_BLK for name, item in tokens.items()},
        {name: item.valid_BL for name, item in tokens.items()},
    )


@dataclass
class _Padded:
    """One sequence being filled, token by token along the last axis."""

    tokens_BLK: Float32Array
    valid_BL: NDArray[np.bool_]
    column: int = 0

    @classmethod
    def empty(cls, layout: SideLayout, sequence: str, packed: Packed) -> "_Padded":
        slots_here = layout.token_slots(sequence)
        lengths_B = packed.lengths_FB[layout.slots.index(slots_here[0])]
        longest = max(1, int(lengths_B.max(initial=0)))
        valid_BL = np.arange(longest) < lengths_B[:, None]
        width = sum(slot.dim for slot in slots_here)
        return cls(np.zeros((len(lengths_B), longest, width), np.float32), valid_BL)

    def put(self, rows_NK: Float32Array) -> None:
        stop = self.column + rows_NK.shape[1]
        self.tokens_BLK[:, :, self.column : stop][self.valid_BL] = rows_NK
        self.column = stop


def _pooled(rows_NK: Float32Array, lengths_B: NDArray[np.int32], slot: Slot) -> Float32Array:
    """Sum or mean of each row's ids, in their order; zero for an empty bag. Weighted ids come weighed."""
    pooled_BK = np.zeros((len(lengths_B), slot.dim), np.float32)
    filled_B = lengths_B > 0
    starts_B = np.cumsum(lengths_B) - lengths_B
    if filled_B.any():
        # Empty bags own no ids, so the starts of the others are the bounds between them.
        pooled_BK[filled_B] = np.add.reduceat(rows_NK, starts_B[filled_B], axis=0)
    if slot.pooling == "mean" and not slot.weighted:
        pooled_BK /= np.maximum(lengths_B, 1)[:, None].astype(np.float32)
    return pooled_BK


def _factors(weights_N: Float32Array, lengths_B: NDArray[np.int32], slot: Slot) -> Float32Array:
    """What weighted ids are multiplied by: their weights or, for a mean, their shares of their row's total."""
    if slot.pooling == "sum":
        return weights_N
    row_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
    # In float64, as the model has it: totals of large float32 stay finite.
    total_N = np.bincount(row_N, weights_N, minlength=len(lengths_B))[row_N]
    share_N = np.divide(weights_N, total_N, out=np.zeros(len(row_N)), where=total_N > 0)
    return share_N.astype(np.float32)
