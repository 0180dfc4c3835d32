"""Encoded rows to the plain arrays that models take. Training and serving collate through here alone.

Axes: **F** sparse slots, **B** rows, **N** ids in the batch, **D** dense values. Ids are slot-major: all rows of slot
0, then all rows of slot 1, and so on, each slot's ids in row order.

```
slots      user_id    genres               values_N    u0 u1 | g0a g0b g1a
row 0      u0         g0a g0b              lengths_FB  [[1, 1], [2, 1]]
row 1      u1         g1a
```
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.layout import BlockSide, dense, dense_column, slots
from recsys.raw import one_array
from recsys.schema import Schema


@dataclass(frozen=True)
class Packed:
    """The sparse and dense inputs of a batch as NumPy arrays; `weights_N` weighs ids in their bags, or is None."""

    values_N: NDArray[np.int64]
    weights_N: NDArray[np.float32] | None
    lengths_FB: NDArray[np.int32]
    dense_BD: NDArray[np.float32]


def collate(encoded: pa.Table, schema: Schema, *, side: BlockSide | None = None) -> Packed:
    """The packed form of encoded rows, of all slots or of one side's, in the order of `recsys.layout`."""
    rows = encoded.num_rows
    side_slots, side_dense = slots(schema, side), dense(schema, side)
    lengths_FB = np.ones((len(side_slots), rows), np.int32)
    values: list[NDArray[np.int64]] = []
    for f, slot in enumerate(side_slots):
        column = one_array(encoded.column(slot.name))
        if slot.kind == "single":
            values.append(column.to_numpy(zero_copy_only=False))
            continue
        offsets = column.offsets.to_numpy()
        lengths_FB[f] = np.diff(offsets)
        # `values` ignores a slice of the list array, its offsets do not.
        values.append(column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]])
    dense_BD = np.empty((rows, len(side_dense)), np.float32)
    for d, item in enumerate(side_dense):
        dense_BD[:, d] = one_array(encoded.column(dense_column(item.name))).to_numpy(
            zero_copy_only=False
        )
    values_N = np.concatenate(values) if values else np.empty(0, np.int64)
    return Packed(values_N, None, lengths_FB, dense_BD)
