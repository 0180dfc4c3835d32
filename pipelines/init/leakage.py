"""Columns that say the label: known only once it has happened, or made of it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.labels import Label
from recsys.measures import auc, scored_rows

LEAKING_AUC = 0.95
_FEWEST_OF_A_CLASS = 20
_MOST_VALUES = 2_000
_PURE_SHARE = 0.05
_PURE_ROWS = 200


def leak(column: Column, labels: Sequence[Label]) -> str | None:
    """Why a column may not be an input, or None. `labels` are those that are predicted."""
    for label in labels:
        if label.column.name == column.name:
            return f"the label {label.task} is made of it"
    if names.is_afterwards(column.file_name) and column.side is None:
        return "its name says that it is known only after the outcome"
    for label in labels:
        if label.kind == "regression":
            continue
        known_B = ~np.isnan(label.happened_B)
        happened_B = label.happened_B[known_B]
        if min(happened_B.sum(), len(happened_B) - happened_B.sum()) < _FEWEST_OF_A_CLASS:
            continue
        found = _nulls_tell(column, known_B, happened_B)
        if found > LEAKING_AUC:
            return f"whether it is there tells {label.task} (AUC {found:.3f}), so it is known only afterwards"
        found = _values_tell(column, known_B, happened_B)
        pure = _pure_value(column, known_B, happened_B)
        if found > LEAKING_AUC:
            return f"alone it tells {label.task} almost surely (AUC {found:.3f}): a leak, or too good to be true"
        if pure is not None:
            return f"{label.task} is the same in all rows where it is {pure}: a leak, or too good to be true"
    return None


def _nulls_tell(
    column: Column, known_B: NDArray[np.bool_], happened_B: NDArray[np.float64]
) -> float:
    there_B = column.values.is_valid().to_numpy(zero_copy_only=False)[known_B].astype(np.float64)
    return 0.5 if there_B.min(initial=1) == there_B.max(initial=1) else _auc(there_B, happened_B)


def _values_tell(
    column: Column, known_B: NDArray[np.bool_], happened_B: NDArray[np.float64]
) -> float:
    if column.is_list or column.dtype is None:
        return 0.5
    if column.is_number or column.dtype == "timestamp":
        numbers_B = column.numbers()[known_B]
        filled_B = ~np.isnan(numbers_B)
        if not _has_both(happened_B[filled_B]):
            return 0.5
        found = _auc(numbers_B[filled_B], happened_B[filled_B])
        if found > LEAKING_AUC or column.distinct > _MOST_VALUES:
            return found
    elif column.distinct > _MOST_VALUES:
        return 0.5
    return _rates_tell(column.codes()[known_B], happened_B)


def _rates_tell(codes_B: NDArray[np.int64], happened_B: NDArray[np.float64]) -> float:
    """AUC, over every second row, of each value's label rate in the other rows."""
    learned, judged = codes_B[::2] + 1, codes_B[1::2] + 1
    size = int(codes_B.max(initial=0)) + 2
    counts_V = np.bincount(learned, minlength=size)
    sums_V = np.bincount(learned, weights=happened_B[::2], minlength=size)
    mean = happened_B[::2].mean()
    rates_V = (sums_V + mean) / (counts_V + 1)
    return _auc(rates_V[judged], happened_B[1::2]) if _has_both(happened_B[1::2]) else 0.5


def _pure_value(
    column: Column, known_B: NDArray[np.bool_], happened_B: NDArray[np.float64]
) -> str | None:
    """A frequent value, or null, whose rows have one label only where that is no wonder of a rare label; else None."""
    if column.is_list or column.dtype is None or not 0.1 < happened_B.mean() < 0.9:
        return None
    codes_B = column.codes()[known_B] + 1
    counts_V = np.bincount(codes_B)
    shares_V = np.bincount(codes_B, weights=happened_B) / np.maximum(counts_V, 1)
    frequent_V = counts_V >= max(_PURE_SHARE * len(codes_B), _PURE_ROWS)
    pure_V = np.flatnonzero(frequent_V & ((shares_V == 0) | (shares_V == 1)))
    if not len(pure_V):
        return None
    return (
        "null"
        if pure_V[0] == 0
        else str(column.values[int(np.argmax(column.codes() == pure_V[0] - 1))])[:30]
    )


def _auc(scores_B: NDArray[np.float64], happened_B: NDArray[np.float64]) -> float:
    found = auc(scored_rows(scores_B, happened_B))
    return 0.5 if found is None or np.isnan(found) else max(float(found), 1 - float(found))


def _has_both(happened_B: NDArray[np.float64]) -> bool:
    return bool(len(happened_B) and happened_B.min() < happened_B.max())
