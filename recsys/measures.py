"""Arithmetic of binary predictions on plain arrays: AUC, GAUC, log loss, normalized entropy, calibration.

Everything is exact: AUC counts every (positive, negative) pair, a tie counts one half, and a pair weighs the product
of its two sample weights. Nothing is binned and no loop runs over rows or groups. Scores are logits, never
probabilities: a float32 sigmoid reaches 1 at 17 and would make ties out of different logits.

Axes: **B** rows, **K** blocks of rows with equal logits (ascending), **G** groups (users), ascending.
"""

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError

AnyArray: TypeAlias = npt.NDArray[Any]
Float64Array: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Int64Array: TypeAlias = npt.NDArray[np.int64]

# Probability 0 and 1 become the logits of the nearest float64 strictly between them.
_LOWEST_PROBABILITY = float(np.finfo(np.float64).tiny)
_HIGHEST_PROBABILITY = float(np.nextafter(1.0, 0.0))
_FLOAT32_STEP = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class ScoredRows:
    """What was predicted (logits) and what happened (labels, 0 or 1), with sample weights and groups. All length B.

    Build it with `scored_rows`, which checks the values.
    """

    logits_B: AnyArray
    labels_B: Float64Array
    weights_B: Float64Array
    groups_B: Int64Array

    def __len__(self) -> int:
        return len(self.logits_B)

    def take(self, rows: AnyArray) -> Self:
        """The rows of a boolean mask or an index array, in its order."""
        return type(self)(
            self.logits_B[rows], self.labels_B[rows], self.weights_B[rows], self.groups_B[rows]
        )


def scored_rows(
    logits_B: AnyArray,
    labels_B: AnyArray,
    *,
    weights_B: AnyArray | None = None,
    groups_B: AnyArray | None = None,
    name: str = "predictions",
) -> ScoredRows:
    """Checked rows. Without weights every row weighs 1; without groups every row is a group of its own.

    Logits keep their float type: ties are ties of the type the model computed in. Raises DataError, beginning with
    `name`, for a logit that is not finite, a label other than 0 and 1, a weight that is negative or not finite, and
    for arrays of unequal length.
    """
    rows = len(logits_B)
    labels = np.asarray(labels_B, dtype=np.float64)
    weights = np.ones(rows) if weights_B is None else np.asarray(weights_B, dtype=np.float64)
    groups = np.arange(rows) if groups_B is None else np.asarray(groups_B, dtype=np.int64)
    lengths = {
        "logits": rows,
        "labels": len(labels),
        "weights": len(weights),
        "groups": len(groups),
    }
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} {array}" for array, length in lengths.items())
        raise DataError(f"{name}: arrays of unequal length ({found}); give one entry a row")
    _refuse(~np.isfinite(logits_B), name, "logits that are NaN or infinite; the model diverged")
    _refuse((labels != 0) & (labels != 1), name, "labels other than 0 and 1; fix the label rule")
    _refuse(
        ~(np.isfinite(weights) & (weights >= 0)),
        name,
        "sample weights that are negative or not finite",
    )
    return ScoredRows(np.asarray(logits_B), labels, weights, groups)


def auc(rows: ScoredRows) -> float | None:
    """Share of (positive, negative) pairs in the right order; None when a class is missing.

    The Mann-Whitney form: sort once, then every block of equal logits beats the negatives below it and half of its own.
    """
    positive_B, negative_B = class_weights(rows)
    block_B, blocks = tie_blocks(rows.logits_B)
    return auc_of_blocks(sums(positive_B, block_B, blocks), sums(negative_B, block_B, blocks))


def auc_of_blocks(positive_K: Float64Array, negative_K: Float64Array) -> float | None:
    """AUC from the weight of each class in every block of equal logits, ascending; None when a class has no weight."""
    positives, negatives = float(positive_K.sum()), float(negative_K.sum())
    if positives == 0 or negatives == 0:
        return None
    wins = float(positive_K @ (np.cumsum(negative_K) - negative_K / 2))
    return wins / positives / negatives


def tie_blocks(logits_B: AnyArray) -> tuple[Int64Array, int]:
    """Index of every row's block of equal logits, counted from the lowest logit, and the number of blocks."""
    values_K, block_B = np.unique(logits_B, return_inverse=True)
    return block_B, len(values_K)


def sums(values_B: AnyArray, index_B: Int64Array, count: int) -> Float64Array:
    """Sum of the values of each index from 0 to count - 1."""
    return np.bincount(index_B, values_B, count).astype(np.float64, copy=False)


def class_weights(rows: ScoredRows) -> tuple[Float64Array, Float64Array]:
    """Sample weight of every row as a positive and as a negative: one of the two is 0."""
    positive_B = rows.weights_B * rows.labels_B
    return positive_B, rows.weights_B - positive_B


@dataclass(frozen=True)
class GroupAucs:
    """AUC of each group that has both classes (0 for the others), its impressions (sum of weights), and which count."""

    auc_G: Float64Array
    weight_G: Float64Array
    counted_G: BoolArray

    @property
    def mean(self) -> float | None:
        """GAUC: the mean weighted by impressions over groups with both classes; None when there is none."""
        weight_G = self.weight_G[self.counted_G]
        if not len(weight_G):
            return None
        return float(weight_G @ self.auc_G[self.counted_G]) / float(weight_G.sum())

    @property
    def counted_share(self) -> float | None:
        """Share of all impressions that lie in groups with both classes."""
        total = float(self.weight_G.sum())
        return float(self.weight_G[self.counted_G].sum()) / total if total > 0 else None


def group_aucs(rows: ScoredRows) -> GroupAucs:
    """AUC within every group, all groups at once: sort by (group, logit), then sums over runs.

    `GroupAucs.mean` is GAUC as HoME (Wang et al., KDD 2025) and DIN (Zhou et al., KDD 2018, eq. 7) define it.
    """
    positive_B, negative_B = class_weights(rows)
    group_B, groups = tie_blocks(rows.groups_B)
    block_B, blocks = tie_blocks(rows.logits_B)
    # C: cells of equal (group, logit), sorted by group and then logit.
    cells_C, cell_B = np.unique(group_B * np.int64(blocks) + block_B, return_inverse=True)
    group_C = cells_C // blocks if blocks else cells_C
    positive_C = sums(positive_B, cell_B, len(cells_C))
    negative_C = sums(negative_B, cell_B, len(cells_C))
    positive_G = sums(positive_C, group_C, groups)
    negative_G = sums(negative_C, group_C, groups)
    before_G = np.cumsum(negative_G) - negative_G
    below_C = np.cumsum(negative_C) - negative_C / 2 - before_G[group_C]
    wins_G = sums(positive_C * below_C, group_C, groups)
    pairs_G = positive_G * negative_G
    counted_G = pairs_G > 0
    auc_G = np.divide(wins_G, pairs_G, out=np.zeros(groups), where=counted_G)
    return GroupAucs(auc_G, positive_G + negative_G, counted_G)


def weighted_mean(values_B: AnyArray, weights_B: Float64Array) -> float | None:
    """Mean by sample weight; None without any weight."""
    total = float(weights_B.sum())
    return float(weights_B @ values_B) / total if total > 0 else None


def log_losses(logits_B: AnyArray, labels_B: Float64Array) -> Float64Array:
    """Binary cross-entropy of every row in nats, finite for any finite logit."""
    logits = np.asarray(logits_B, dtype=np.float64)
    # One softplus of the signed margin: no difference of large numbers, no log of a rounded probability.
    losses: Float64Array = np.logaddexp(0.0, (1.0 - 2.0 * labels_B) * logits)
    return losses


def log_loss(rows: ScoredRows) -> float | None:
    """Mean binary cross-entropy in nats, by sample weight; None without any weight."""
    return weighted_mean(log_losses(rows.logits_B, rows.labels_B), rows.weights_B)


def base_entropy(positive_rate: float) -> float:
    """Log loss in nats of predicting the positive rate for every row; 0 when there is one class only."""
    if positive_rate <= 0 or positive_rate >= 1:
        return 0.0
    rest = 1.0 - positive_rate
    return float(-positive_rate * np.log(positive_rate) - rest * np.log(rest))


def normalized_entropy(rows: ScoredRows) -> float | None:
    """Log loss over that of predicting the rows' positive rate (He et al., ADKDD 2014); below 1 is better than it.

    None when a class is missing.
    """
    loss, positive_rate = log_loss(rows), weighted_mean(rows.labels_B, rows.weights_B)
    if loss is None or positive_rate is None:
        return None
    entropy = base_entropy(positive_rate)
    return loss / entropy if entropy > 0 else None


def predicted_over_observed(rows: ScoredRows) -> float | None:
    """Expected positives over observed ones: above 1 the model promises too much. None without positives.

    Its inverse, observed over predicted, is known as COPC.
    """
    observed = float(rows.weights_B @ rows.labels_B)
    if observed == 0:
        return None
    return float(rows.weights_B @ probability(rows.logits_B)) / observed


def probability(logits_B: AnyArray) -> Float64Array:
    """Sigmoid in float64, without overflow and, for a logit that is not finite, without a warning."""
    logits = np.asarray(logits_B, dtype=np.float64)
    # The exponential of a negative number never overflows.
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def logit(probability_B: AnyArray) -> Float64Array:
    """Log-odds of probabilities, finite for 0 and 1 too."""
    inside = np.clip(
        np.asarray(probability_B, dtype=np.float64), _LOWEST_PROBABILITY, _HIGHEST_PROBABILITY
    )
    return np.asarray(np.log(inside) - np.log1p(-inside))


def conditional_logit(joint_B: AnyArray, parent_B: AnyArray) -> Float64Array:
    """Logit of p(joint) / p(parent), a funnel step's conditional probability; finite for any finite logits.

    With j and a the two logits it equals j + log(1 + e^-a) - log(1 - e^(j - a)). A joint probability at or above its
    parent's (rounding, or two models that know nothing of each other) is held one float32 step below it.
    """
    joint = np.asarray(joint_B, dtype=np.float64)
    parent = np.asarray(parent_B, dtype=np.float64)
    gap = np.maximum(parent - joint, _FLOAT32_STEP * np.maximum(1.0, np.abs(parent)))
    held = parent - gap
    return np.asarray(held + np.logaddexp(0.0, -parent) - np.log(-np.expm1(-gap)))


def _refuse(wrong_B: AnyArray, name: str, what: str) -> None:
    count = int(np.count_nonzero(wrong_B))
    if count:
        raise DataError(f"{name}: {count} of {len(wrong_B)} rows have {what}")
