"""What encoded rows hold besides inputs: labels and where they are observed, the sample weight, the user's group."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import DataError
from recsys.hashing import hash_ids
from recsys.layout import label_column, observed_column
from recsys.raw import column_of, float32_of, number_of
from recsys.schema import Schema


def targets(raw: pa.Table, schema: Schema) -> dict[str, pa.Array]:
    """Each task's label, 0 where unobserved, and whether it is observed. Raises DataError."""
    arrays: dict[str, pa.Array] = {}
    for name, task in schema.tasks.items():
        where = f"task {name!r}"
        label_B = number_of(column_of(raw, task.label, schema, where), task.label, where)
        observed_B = ~np.isnan(label_B)
        if task.mask is not None:
            mask = column_of(raw, task.mask, schema, where).cast(pa.bool_()).fill_null(False)
            observed_B &= mask.to_numpy(zero_copy_only=False)
        if task.kind == "binary":
            _require_binary(label_B, observed_B, task.label, where)
        arrays[label_column(name)] = pa.array(
            float32_of(np.where(observed_B, label_B, 0.0), f"{where}, column {task.label!r}")
        )
        arrays[observed_column(name)] = pa.array(observed_B)
    return arrays


def sample_weight(raw: pa.Table, schema: Schema) -> pa.Array:
    """The weight of each row, 1 where no column is named. Raises DataError for one that is negative or missing."""
    name = schema.keys.sample_weight
    if name is None:
        return pa.array(np.ones(raw.num_rows, np.float32))
    weight_B = number_of(
        column_of(raw, name, schema, "keys.sample_weight"), name, "keys.sample_weight"
    )
    wrong = np.flatnonzero(~(weight_B >= 0))
    if len(wrong):
        raise DataError(
            f"column {name!r}: sample weight {weight_B[wrong[0]]}; a weight is a number >= 0, fill or filter",
            row=int(wrong[0]),
        )
    return pa.array(float32_of(weight_B, f"keys.sample_weight, column {name!r}"))


def group(raw: pa.Table, schema: Schema, keys_B: NDArray[np.int64]) -> pa.Array:
    """Hash of the user, for metrics by user; a row without a user is a group of its own."""
    name = schema.keys.user
    if name is None:
        return pa.array(keys_B)
    users = column_of(raw, name, schema, "keys.user")
    group_B = keys_B.copy()
    group_B[users.is_valid().to_numpy(zero_copy_only=False)] = hash_ids(users.drop_null()).view(
        np.int64
    )
    return pa.array(group_B)


def _require_binary(
    label_B: NDArray[np.float64], observed_B: NDArray[np.bool_], column: str, where: str
) -> None:
    wrong = np.flatnonzero(observed_B & (label_B != 0) & (label_B != 1))
    if len(wrong):
        raise DataError(
            f"{where}, column {column!r}: label {label_B[wrong[0]]:g}; a binary label is 0 or 1, "
            'make one by a rule in pipeline.toml or declare kind = "regression"',
            row=int(wrong[0]),
        )
