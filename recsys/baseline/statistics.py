"""What an id's label is on average: the two numbers by which trees know an id of a large table.

A training row's own label must not reach its inputs, or trees learn to read it back. Training rows are split into
folds, and a row sees the labels of the other folds alone (cross-fitting); held-out rows see all training rows.

Axes: **B** rows, **N** ids, **V** distinct ids, **K** folds.
"""

from dataclasses import dataclass

import numpy as np

from recsys.baseline.inputs import Ids
from recsys.measures import AnyArray, Float64Array, Int64Array
from recsys.schema import MISSING_ROW

FOLDS = 5
# As many rows of the average label are added to every id, so that rare ids stay close to it.
PRIOR_ROWS = 10.0
COLUMNS = 2


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Sums of labels and of weights by id and fold, over training rows."""

    ids_V: Int64Array
    labels_VK: Float64Array
    weights_VK: Float64Array
    average: float

    def held_out(self, ids: Ids) -> AnyArray:
        """Mean label and log count of each row's ids over all training rows, [B, 2]; NaN for a row without ids."""
        labels_V, weights_V = self.labels_VK.sum(axis=1), self.weights_VK.sum(axis=1)
        place_N, known_N = self._places(ids.ids_N)
        return self._columns(ids, labels_V[place_N] * known_N, weights_V[place_N] * known_N)

    def cross_fitted(self, ids: Ids, fold_B: Int64Array) -> AnyArray:
        """The same for training rows, each without the rows of its own fold."""
        fold_N = np.repeat(fold_B, ids.lengths_B)
        place_N, known_N = self._places(ids.ids_N)
        labels_N = self.labels_VK.sum(axis=1)[place_N] - self.labels_VK[place_N, fold_N]
        weights_N = self.weights_VK.sum(axis=1)[place_N] - self.weights_VK[place_N, fold_N]
        # The other folds hold (K - 1) / K of an id's rows: counts must mean the same on held-out rows.
        scale = FOLDS / (FOLDS - 1)
        return self._columns(ids, labels_N * known_N, weights_N * known_N, scale)

    def _places(self, ids_N: Int64Array) -> tuple[Int64Array, AnyArray]:
        place_N = np.minimum(np.searchsorted(self.ids_V, ids_N), len(self.ids_V) - 1)
        return place_N, self.ids_V[place_N] == ids_N

    def _columns(
        self, ids: Ids, labels_N: Float64Array, weights_N: Float64Array, scale: float = 1.0
    ) -> AnyArray:
        # Rounding may leave a tiny negative where a fold held all rows of an id.
        weights_N = np.maximum(weights_N, 0.0)
        mean_N = (labels_N + PRIOR_ROWS * self.average) / (weights_N + PRIOR_ROWS)
        both = [_mean_by_row(values_N, ids) for values_N in (mean_N, np.log1p(scale * weights_N))]
        return np.stack(both, axis=1)


def label_statistics(
    ids: Ids, labels_B: AnyArray, weights_B: AnyArray, fold_B: Int64Array
) -> LabelStatistics:
    """Statistics of the ids of training rows; rows of weight 0 count for nothing."""
    # Row 0 is always known, so that there is a place to look at even where no training row has an id.
    ids_V = np.unique(np.append(ids.ids_N, MISSING_ROW))
    cell_N = np.searchsorted(ids_V, ids.ids_N) * FOLDS + np.repeat(fold_B, ids.lengths_B)
    weight_N = np.repeat(weights_B.astype(np.float64), ids.lengths_B)
    label_N = np.repeat(labels_B.astype(np.float64), ids.lengths_B)
    cells = len(ids_V) * FOLDS
    labels_C = np.bincount(cell_N, weight_N * label_N, cells).astype(np.float64)
    weights_C = np.bincount(cell_N, weight_N, cells).astype(np.float64)
    return LabelStatistics(
        ids_V,
        labels_C.reshape(-1, FOLDS),
        weights_C.reshape(-1, FOLDS),
        float(np.average(labels_B, weights=weights_B)),
    )


def _mean_by_row(values_N: Float64Array, ids: Ids) -> Float64Array:
    if len(values_N) == len(ids.lengths_B) and (ids.lengths_B == 1).all():
        return values_N
    row_N = np.repeat(np.arange(len(ids.lengths_B)), ids.lengths_B)
    weight_N = np.ones(len(values_N)) if ids.weights_N is None else ids.weights_N
    total_B = np.bincount(row_N, weight_N * values_N, len(ids.lengths_B))
    weight_B = np.bincount(row_N, weight_N, len(ids.lengths_B))
    mean_B: Float64Array = np.full(len(weight_B), np.nan)
    np.divide(total_B, weight_B, out=mean_B, where=weight_B > 0)
    return mean_B
