"""How sure a metric is, and whether two models differ: DeLong, grouped standard errors, user-cluster bootstrap.

DeLong treats rows as independent. Where users repeat, the rows of one user are alike and its interval is too narrow;
the grouped standard error and the bootstrap, which move whole users, are the honest ones.

Differences are always first minus second. Axes: **B** rows, **G** groups (users), **K** blocks of equal logits.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from recsys.measures import (
    Float64Array,
    Int64Array,
    ScoredRows,
    auc_of_blocks,
    class_weights,
    sums,
    tie_blocks,
)
from recsys.predictions import Predictions, aligned
from recsys.resample import METRICS, Metric, Resample, resample


@dataclass(frozen=True)
class AucEstimate:
    """An AUC with two standard errors: of independent rows (DeLong), and of independent groups.

    A standard error is None where it cannot be known: fewer than two positives, negatives or groups.
    """

    auc: float
    standard_error: float | None
    standard_error_by_group: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference, `first - second`, with its confidence interval and two-sided normal p-value.

    `standard_error_by_group` is None where the standard error itself already is by group (bootstrap), or unknown.
    """

    first: float
    second: float
    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    standard_error_by_group: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows. `auc` is DeLong's; `*_by_group` are user-cluster bootstraps.

    A difference is None where the metric is undefined, for want of a class.
    """

    rows: int
    positives: int
    groups: int
    auc: Difference | None
    auc_by_group: Difference | None
    gauc_by_group: Difference | None
    normalized_entropy_by_group: Difference | None


def delong(rows: ScoredRows) -> AucEstimate | None:
    """AUC with its standard error by DeLong et al. (Biometrics 1988); None when a class is missing.

    The variance comes from every row's placement among the other class, by midranks in O(n log n) (Sun & Xu, IEEE SPL
    2014), here as an influence value of each row: DeLong's variance is the sum of their squares. Sample weights enter
    as fixed factors with the effective number of rows, (sum w)^2 / sum w^2, in place of the count; with equal weights
    this is DeLong's estimate exactly. By group, influences are summed within each group before squaring (Obuchowski,
    Biometrics 1997).
    """
    found = _auc_influence(rows)
    if found is None:
        return None
    auc, influence_B = found
    return AucEstimate(auc, *_standard_errors(influence_B, rows.groups_B))


def delong_difference(
    first: ScoredRows, second: ScoredRows, *, confidence: float = 0.95
) -> Difference | None:
    """Paired difference of two AUCs over the same rows in the same order, with a normal interval.

    None when a class is missing or has a single row. Labels and weights are the first's; `compare_predictions` aligns
    rows and refuses unequal ones.
    """
    found_first, found_second = _auc_influence(first), _auc_influence(second)
    if found_first is None or found_second is None:
        return None
    (auc_first, influence_first_B), (auc_second, influence_second_B) = found_first, found_second
    error, error_by_group = _standard_errors(influence_first_B - influence_second_B, first.groups_B)
    if error is None:
        return None
    difference = auc_first - auc_second
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Difference(
        auc_first,
        auc_second,
        difference,
        error,
        difference - reach,
        difference + reach,
        _p_value(difference, error),
        error_by_group,
    )


def bootstrap_difference(
    first: ScoredRows,
    second: ScoredRows,
    *,
    replicates: int = 400,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[Metric, Difference | None]:
    """Paired differences of AUC, GAUC and normalized entropy with percentile intervals over resampled groups.

    Every replicate draws as many groups as there are, with replacement, and keeps all rows of a drawn group, the same
    for both models. The same seed gives the same replicates. A metric that is undefined on the rows, or on all but one
    replicate, is None.
    """
    samples = (Resample(first), Resample(second))
    values_MRS = resample(samples, replicates, seed)
    pairs = zip(METRICS, samples[0].metrics(None), samples[1].metrics(None), strict=True)
    differences: dict[Metric, Difference | None] = {}
    for column, (metric, value_first, value_second) in enumerate(pairs):
        difference = value_first - value_second
        spread = _spread(
            difference, values_MRS[0, :, column] - values_MRS[1, :, column], confidence
        )
        differences[metric] = spread and Difference(
            value_first,
            value_second,
            difference,
            *spread,
            p_value=_p_value(difference, spread[0]),
        )
    return differences


def compare_predictions(
    first: Predictions,
    second: Predictions,
    *,
    replicates: int = 400,
    seed: int = 0,
    confidence: float = 0.95,
) -> Comparison:
    """Whether two models differ on one metric entry, row by row.

    Rows are matched by row key, whatever their order. Raises DataError when the keys are not the same set, when a key
    repeats, or when labels, weights or groups of a key differ: such models were not asked the same question.
    """
    first_rows, second_rows = aligned(first, second)
    resampled = bootstrap_difference(
        first_rows, second_rows, replicates=replicates, seed=seed, confidence=confidence
    )
    return Comparison(
        rows=len(first_rows),
        positives=int(first_rows.labels_B.sum()),
        groups=len(np.unique(first_rows.groups_B)),
        auc=delong_difference(first_rows, second_rows, confidence=confidence),
        auc_by_group=resampled["auc"],
        gauc_by_group=resampled["gauc"],
        normalized_entropy_by_group=resampled["normalized_entropy"],
    )


def _auc_influence(rows: ScoredRows) -> tuple[float, Float64Array] | None:
    """AUC, and by how much each row moves it: weighted, centred placements, whose squares sum to DeLong's variance."""
    positive_B, negative_B = class_weights(rows)
    block_B, blocks = tie_blocks(rows.logits_B)
    positive_K = sums(positive_B, block_B, blocks)
    negative_K = sums(negative_B, block_B, blocks)
    auc = auc_of_blocks(positive_K, negative_K)
    if auc is None:
        return None
    positives, negatives = positive_K.sum(), negative_K.sum()
    negatives_below_K = (np.cumsum(negative_K) - negative_K / 2) / negatives
    positives_above_K = 1 - (np.cumsum(positive_K) - positive_K / 2) / positives
    influence_B = positive_B * (negatives_below_K[block_B] - auc) * _unbiased(positive_B)
    influence_B += negative_B * (positives_above_K[block_B] - auc) * _unbiased(negative_B)
    return auc, influence_B


def _unbiased(weights_B: Float64Array) -> float:
    """sqrt(m / (m - 1)) / sum of weights, for m effective rows; NaN for a single one, whose spread is unknown."""
    total, squares = float(weights_B.sum()), float(weights_B @ weights_B)
    rest = total * total - squares
    return math.sqrt(total * total / rest) / total if rest > 1e-9 * squares else math.nan


def _standard_errors(
    influence_B: Float64Array, groups_B: Int64Array
) -> tuple[float | None, float | None]:
    variance = float(influence_B @ influence_B)
    if math.isnan(variance):
        return None, None
    group_B, groups = tie_blocks(groups_B)
    if groups < 2:
        return math.sqrt(variance), None
    influence_G = sums(influence_B, group_B, groups)
    variance_by_group = float(influence_G @ influence_G) * groups / (groups - 1)
    return math.sqrt(variance), math.sqrt(variance_by_group)


def _p_value(difference: float, standard_error: float) -> float:
    if standard_error == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / standard_error / math.sqrt(2))


def _spread(
    value: float, values_R: Float64Array, confidence: float
) -> tuple[float, float, float] | None:
    """Standard error and interval over the replicates in which the metric was defined."""
    defined_R = values_R[~np.isnan(values_R)]
    if math.isnan(value) or len(defined_R) < 2:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined_R, [tail, 1 - tail])
    return float(np.std(defined_R, ddof=1)), float(low), float(high)
