"""A batch of encoded rows as torch tensors: what feeds give and models take.

Axes: **F** sparse slots, **B** rows, **N** ids in the batch, **D** dense values, **T** tasks. Slots and dense values
are in the order of `recsys.layout`, tasks in the schema's. Ids are slot-major, as `recsys.collate` packs them.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.collate import Packed, collate
from recsys.errors import DataError
from recsys.layout import label_column, observed_column, slots
from recsys.schema import Schema


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs, labels and identity of B rows. `weights_N` weighs ids inside their bags, `weights_B` weighs rows.

    `labels_BT` is 0 where `observed_BT` is false. `groups_B` names the user of a row, `row_key_B` the row itself.
    """

    values_N: Tensor
    weights_N: Tensor | None
    lengths_FB: Tensor
    dense_BD: Tensor
    labels_BT: Tensor
    observed_BT: Tensor
    weights_B: Tensor
    groups_B: Tensor
    row_key_B: Tensor

    @property
    def rows(self) -> int:
        return self.dense_BD.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of what a function gives for each tensor."""
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        mapped: dict[str, Any] = {
            name: None if tensor is None else function(tensor) for name, tensor in tensors.items()
        }
        return Batch(**mapped)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        found = [getattr(self, item.name) for item in fields(self)]
        return [tensor for tensor in found if tensor is not None]


def from_encoded(encoded: pa.Table, schema: Schema, *, unmapped: Collection[str] = ()) -> Batch:
    """The batch of encoded rows with labels. Raises DataError for an id outside its table.

    Ids of tables that are `unmapped` are hashes still.
    """
    return from_packed(collate(encoded, schema), encoded, schema, unmapped=unmapped)


def from_packed(
    packed: Packed, encoded: pa.Table, schema: Schema, *, unmapped: Collection[str] = ()
) -> Batch:
    """The batch of packed inputs with the labels, weights and keys of the encoded rows they came from."""
    check_ids(packed, schema, unmapped=unmapped)
    tasks = schema.task_names
    return Batch(
        values_N=torch.from_numpy(packed.values_N),
        weights_N=None if packed.weights_N is None else torch.from_numpy(packed.weights_N),
        lengths_FB=torch.from_numpy(packed.lengths_FB),
        dense_BD=torch.from_numpy(packed.dense_BD),
        labels_BT=_columns(encoded, [label_column(task) for task in tasks], np.dtype(np.float32)),
        observed_BT=_columns(
            encoded, [observed_column(task) for task in tasks], np.dtype(np.bool_)
        ),
        weights_B=_columns(encoded, ["weight"], np.dtype(np.float32))[:, 0],
        groups_B=_columns(encoded, ["group"], np.dtype(np.int64))[:, 0],
        row_key_B=_columns(encoded, ["row_key"], np.dtype(np.int64))[:, 0],
    )


def check_ids(packed: Packed, schema: Schema, *, unmapped: Collection[str] = ()) -> None:
    """Raise DataError when an id lies outside its slot's table: rows encoded for another schema, or damaged."""
    start = 0
    for slot, count in zip(
        slots(schema), packed.lengths_FB.sum(axis=1, dtype=np.int64), strict=True
    ):
        rows = schema.all_tables[slot.table].rows
        ids = packed.values_N[start : start + count]
        start += count
        if slot.table in unmapped:
            continue
        if len(ids) and not (ids.min() >= 0 and ids.max() < rows):
            outside = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(
                f"slot {slot.name!r}: id {outside} is outside table {slot.table!r} of {rows} rows; "
                "build the data again with this schema's encoder"
            )
    assert start == len(packed.values_N), "lengths and ids disagree"


def _columns(encoded: pa.Table, names: list[str], dtype: np.dtype[np.generic]) -> Tensor:
    """Columns side by side, [B, columns], in memory of their own: Arrow's is read-only."""
    found: NDArray[np.generic] = np.empty((encoded.num_rows, len(names)), dtype)
    for c, name in enumerate(names):
        found[:, c] = encoded.column(name).to_numpy()
    return torch.from_numpy(found)
