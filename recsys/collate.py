"""Encoded rows to the plain arrays that models take. Training and serving collate through here alone.

Axes: **F** sparse slots, **B** rows, **N** ids in the batch, **D** dense values. Ids are slot-major: all rows of slot
0, then all rows of slot 1, and so on, each slot's ids in row order.

```
slots      user_id    genres               values_N    u0 u1 | g0a g0b g1a
row 0      u0         g0a g0b              lengths_FB  [[1, 1], [2, 1]]
row 1      u1         g1a                  weights_N   1  1  | w0a w0b w1a
```
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.layout import BlockSide, Dense, Slot, dense, dense_column, slots, weights_column
from recsys.raw import one_array
from recsys.schema import Schema


@dataclass(frozen=True)
class Packed:
    """The sparse and dense inputs of a batch as NumPy arrays.

    `weights_N` weighs ids in their bags, 1 in slots without weights; None where no slot has any.
    """

    values_N: NDArray[np.int64]
    weights_N: NDArray[np.float32] | None
    lengths_FB: NDArray[np.int32]
    dense_BD: NDArray[np.float32]


def collate(encoded: pa.Table, schema: Schema, *, side: BlockSide | None = None) -> Packed:
    """The packed form of encoded rows, of all slots or of one side's, in the order of `recsys.layout`."""
    side_slots = slots(schema, side)
    lengths_FB = np.ones((len(side_slots), encoded.num_rows), np.int32)
    values: list[NDArray[np.int64]] = []
    for f, slot in enumerate(side_slots):
        column = one_array(encoded.column(slot.name))
        if slot.kind == "single":
            values.append(column.to_numpy(zero_copy_only=False))
        else:
            lengths_FB[f] = np.diff(column.offsets.to_numpy())
            values.append(_flat(column))
    assert all(ids.dtype == np.int64 for ids in values), (
        "ids of unbounded tables are hashes still; recsys.idmap turns them into rows"
    )
    return Packed(
        np.concatenate(values) if values else np.empty(0, np.int64),
        _weights(encoded, side_slots, lengths_FB),
        lengths_FB,
        _dense(encoded, dense(schema, side)),
    )


def _weights(
    encoded: pa.Table, side_slots: tuple[Slot, ...], lengths_FB: NDArray[np.int32]
) -> NDArray[np.float32] | None:
    if not any(slot.weighted for slot in side_slots):
        return None
    weights: list[NDArray[np.float32]] = []
    for slot, lengths_B in zip(side_slots, lengths_FB, strict=True):
        if not slot.weighted:
            weights.append(np.ones(lengths_B.sum(), np.float32))
            continue
        column = one_array(encoded.column(weights_column(slot.name)))
        assert np.array_equal(np.diff(column.offsets.to_numpy()), lengths_B), (
            f"weights of {slot.name!r} are not aligned with its ids"
        )
        weights.append(_flat(column))
    return np.concatenate(weights)


def _dense(encoded: pa.Table, items: tuple[Dense, ...]) -> NDArray[np.float32]:
    dense_BD = np.empty((encoded.num_rows, sum(item.width for item in items)), np.float32)
    start = 0
    for item in items:
        column = one_array(encoded.column(dense_column(item.name)))
        numbers = column if item.width == 1 else column.flatten()
        dense_BD[:, start : start + item.width] = numbers.to_numpy(zero_copy_only=False).reshape(
            encoded.num_rows, item.width
        )
        start += item.width
    return dense_BD


def _flat(lists: pa.ListArray) -> NDArray[Any]:
    """The values of a list array's rows: `values` ignores a slice of the array, its offsets do not."""
    offsets = lists.offsets.to_numpy()
    flat: NDArray[Any] = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return flat
