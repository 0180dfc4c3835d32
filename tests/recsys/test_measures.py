"""The arithmetic of binary predictions, against scikit-learn and against loops over every pair."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from recsys.errors import DataError
from recsys.measures import (
    AnyArray,
    Float64Array,
    ScoredRows,
    auc,
    conditional_logit,
    group_aucs,
    log_loss,
    log_losses,
    logit,
    normalized_entropy,
    predicted_over_observed,
    probability,
    scored_rows,
)


def draw(
    seed: int, *, rows: int = 400, levels: int = 30, users: int = 25, weighted: bool = True
) -> ScoredRows:
    """Calibrated rows whose logits take few values, so that ties are common."""
    random = np.random.default_rng(seed)
    logits_B = random.integers(-levels, levels // 2, rows) / 10.0
    labels_B = random.random(rows) < probability(logits_B)
    weights_B = random.choice([0.0, 0.5, 1.0, 3.0], rows) if weighted else None
    return scored_rows(
        logits_B, labels_B, weights_B=weights_B, groups_B=random.integers(0, users, rows)
    )


def naive_auc(rows: ScoredRows) -> float | None:
    """AUC by its definition: every pair of a positive and a negative, a tie one half."""
    wins = pairs = 0.0
    for score, label, weight in zip(rows.logits_B, rows.labels_B, rows.weights_B, strict=True):
        for other, other_label, other_weight in zip(
            rows.logits_B, rows.labels_B, rows.weights_B, strict=True
        ):
            if label == 1 and other_label == 0:
                pairs += weight * other_weight
                wins += weight * other_weight * ((score > other) + 0.5 * (score == other))
    return wins / pairs if pairs else None


def ordinal_auc(rows: ScoredRows) -> float:
    """The planted defect: ranks by row order where logits tie, as ROW_NUMBER() gives them."""
    order = np.argsort(rows.logits_B, kind="stable")
    labels = rows.labels_B[order]
    return float((labels * np.cumsum(1 - labels)).sum() / labels.sum() / (1 - labels).sum())


def binned_auc(rows: ScoredRows, *, thresholds: int = 200) -> float:
    """AUC from a curve at thresholds linear in probability: the default of torchmetrics' and TensorFlow's metrics."""
    at_T = np.linspace(0, 1, thresholds)
    scores_B = probability(rows.logits_B)

    def share_at_or_above(chosen_B: AnyArray) -> Float64Array:
        sorted_B = np.sort(scores_B[chosen_B])
        return np.asarray(1 - np.searchsorted(sorted_B, at_T, side="left") / len(sorted_B))

    hits_T, alarms_T = share_at_or_above(rows.labels_B == 1), share_at_or_above(rows.labels_B == 0)
    curve = np.concatenate([[0.0], hits_T[::-1]]), np.concatenate([[0.0], alarms_T[::-1]])
    return float(np.trapezoid(curve[0], curve[1]))


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_every_pair_with_ties_and_weights(seed: int) -> None:
    rows = draw(seed, rows=120, levels=8)
    assert auc(rows) == pytest.approx(naive_auc(rows), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_scikit_learns(seed: int) -> None:
    rows = draw(seed)
    expected = roc_auc_score(rows.labels_B, rows.logits_B, sample_weight=rows.weights_B)
    assert auc(rows) == pytest.approx(expected, abs=1e-12)


def test_rows_of_one_score_rank_at_random_whatever_their_order() -> None:
    labels_B = np.repeat([0, 1], 50)
    rows = scored_rows(np.zeros(100), labels_B)
    assert auc(rows) == 0.5
    assert ordinal_auc(rows) == 1.0  # what breaking ties by row order would claim


def test_auc_of_logits_survives_where_a_float32_probability_saturates() -> None:
    logits_B = np.array([18.0, 19.0, 20.0, 21.0], dtype=np.float32)
    labels_B = np.array([0, 0, 1, 1])
    assert auc(scored_rows(logits_B, labels_B)) == 1.0
    saturated_B = 1 / (1 + np.exp(-logits_B))
    assert auc(scored_rows(saturated_B, labels_B)) == 0.5


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_auc_and_its_kin_are_undefined_without_both_classes(labels: list[int]) -> None:
    rows = scored_rows(np.zeros(len(labels)), np.array(labels))
    assert auc(rows) is None
    assert normalized_entropy(rows) is None
    assert group_aucs(rows).mean is None


def test_a_class_of_weight_zero_is_a_missing_class() -> None:
    rows = scored_rows(np.zeros(3), np.array([0, 1, 1]), weights_B=np.array([1.0, 0.0, 0.0]))
    assert auc(rows) is None
    assert predicted_over_observed(rows) is None


scores = st.lists(
    st.tuples(st.integers(-50, 50), st.booleans(), st.integers(0, 3)), min_size=1, max_size=60
)


@given(scores)
@settings(max_examples=100, deadline=None)
def test_auc_depends_on_the_order_of_scores_alone(items: list[tuple[int, bool, int]]) -> None:
    values, labels_B, weights_B = (np.array(column) for column in zip(*items, strict=True))
    plain = auc(scored_rows(values.astype(float), labels_B, weights_B=weights_B))
    for transformed in (np.exp(values / 10), values**3 + 7.0, np.arctan(values / 50)):
        assert auc(scored_rows(transformed, labels_B, weights_B=weights_B)) == plain
    reversed_scores = auc(scored_rows(-values.astype(float), labels_B, weights_B=weights_B))
    assert (plain is None) == (reversed_scores is None)
    if plain is not None and reversed_scores is not None:
        assert plain + reversed_scores == pytest.approx(1, abs=1e-12)


@given(scores)
@settings(max_examples=100, deadline=None)
def test_auc_of_whole_weights_is_the_same_bits_in_any_row_order(
    items: list[tuple[int, bool, int]],
) -> None:
    values, labels_B, weights_B = (np.array(column) for column in zip(*items, strict=True))
    rows = scored_rows(values.astype(float), labels_B, weights_B=weights_B)
    order = np.random.default_rng(len(items)).permutation(len(rows))
    assert auc(rows.take(order)) == auc(rows)


@given(scores)
@settings(max_examples=50, deadline=None)
def test_a_weight_counts_like_repeated_rows(items: list[tuple[int, bool, int]]) -> None:
    values, labels_B, weights_B = (np.array(column) for column in zip(*items, strict=True))
    weighted = scored_rows(values / 7, labels_B, weights_B=weights_B)
    repeated = weighted.take(np.repeat(np.arange(len(values)), weights_B))
    repeated = scored_rows(repeated.logits_B, repeated.labels_B)
    assert auc(weighted) == pytest.approx(auc(repeated), abs=1e-12)
    assert log_loss(weighted) == pytest.approx(log_loss(repeated), abs=1e-12)
    assert normalized_entropy(weighted) == pytest.approx(normalized_entropy(repeated), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_group_auc_equals_a_loop_over_users(seed: int) -> None:
    rows = draw(seed, users=60)
    total = weight = 0.0
    users = 0
    for user in np.unique(rows.groups_B):
        own = rows.take(rows.groups_B == user)
        value = naive_auc(own)
        if value is not None:
            users += 1
            total += float(own.weights_B.sum()) * value
            weight += float(own.weights_B.sum())
    within = group_aucs(rows)
    assert within.mean == pytest.approx(total / weight, abs=1e-12)
    assert within.counted_share == pytest.approx(weight / float(rows.weights_B.sum()), abs=1e-12)
    assert int(within.counted_G.sum()) == users < 60


def test_group_auc_weighs_users_by_impressions() -> None:
    # User 0: one pair, right. User 1: eight impressions, all wrong. User 2 never clicks and does not count.
    logits_B = np.array([1.0, 0.0, *([0.0] * 4), *([1.0] * 4), 5.0])
    labels_B = np.array([1, 0, *([1] * 4), *([0] * 4), 0])
    groups_B = np.array([0, 0, *([1] * 8), 2])
    within = group_aucs(scored_rows(logits_B, labels_B, groups_B=groups_B))
    assert within.mean == pytest.approx(2 / 10)  # an unweighted mean would say 1/2
    assert within.counted_share == pytest.approx(10 / 11)


def test_a_user_level_offset_moves_auc_and_leaves_group_auc() -> None:
    rows = draw(3, users=10, weighted=False)
    offset_B = np.random.default_rng(0).normal(0, 50, 10)[rows.groups_B]
    moved = scored_rows(rows.logits_B + offset_B.round(), rows.labels_B, groups_B=rows.groups_B)
    assert group_aucs(moved).mean == pytest.approx(group_aucs(rows).mean, abs=1e-12)
    assert auc(moved) != pytest.approx(auc(rows), abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_log_loss_and_calibration_equal_their_definitions(seed: int) -> None:
    rows = draw(seed)
    p_B = probability(rows.logits_B)
    expected = sklearn_log_loss(rows.labels_B, p_B, sample_weight=rows.weights_B)
    assert log_loss(rows) == pytest.approx(expected, abs=1e-12)
    ratio = (rows.weights_B * p_B).sum() / (rows.weights_B * rows.labels_B).sum()
    assert predicted_over_observed(rows) == pytest.approx(ratio, abs=1e-12)
    rate_B = np.full(len(rows), np.average(rows.labels_B, weights=rows.weights_B))
    base = sklearn_log_loss(rows.labels_B, rate_B, sample_weight=rows.weights_B)
    assert normalized_entropy(rows) == pytest.approx(expected / base, abs=1e-12)


def test_normalized_entropy_of_the_base_rate_is_one() -> None:
    labels_B = np.array([1, 0, 0, 0])
    rows = scored_rows(logit(np.full(4, 0.25)), labels_B)
    assert normalized_entropy(rows) == pytest.approx(1, abs=1e-12)
    assert predicted_over_observed(rows) == pytest.approx(1, abs=1e-12)


@given(st.floats(-3e38, 3e38), st.booleans())
@settings(max_examples=200, deadline=None)
def test_log_loss_is_finite_and_not_negative_for_any_logit(value: float, label: bool) -> None:
    loss = log_losses(np.array([value]), np.array([float(label)]))[0]
    assert math.isfinite(loss)
    assert loss >= 0


@given(st.floats(-30, 30), st.floats(-30, 30))
@settings(max_examples=200, deadline=None)
def test_conditional_logit_undoes_the_product_of_two_probabilities(
    parent: float, child: float
) -> None:
    joint = parent + child - math.log1p(math.exp(parent) + math.exp(child))
    found = float(conditional_logit(np.array([joint]), np.array([parent]))[0])
    # The joint logit nears its parent's as the child nears 1: what rounding leaves of their gap is the tolerance.
    assert probability(np.array([found]))[0] == pytest.approx(
        probability(np.array([child]))[0], rel=1e-5, abs=1e-12
    )


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
@settings(max_examples=200, deadline=None)
def test_conditional_logit_is_finite_for_any_two_logits(joint: float, parent: float) -> None:
    assert np.isfinite(conditional_logit(np.array([joint]), np.array([parent]))).all()


def test_logit_is_finite_and_keeps_order_at_zero_and_one() -> None:
    logits = logit(np.array([0.0, 1e-300, 0.5, 1 - 1e-12, 1.0]))
    assert np.isfinite(logits).all()
    assert (np.diff(logits) > 0).all()


@pytest.mark.parametrize(
    ("logits", "labels", "weights", "message"),
    [
        ([0.0, math.nan], [0, 1], None, "1 of 2 rows have logits that are NaN"),
        ([0.0, math.inf], [0, 1], None, "NaN or infinite"),
        ([0.0, 1.0], [0, 2], None, "labels other than 0 and 1"),
        ([0.0, 1.0], [0, 0.5], None, "labels other than 0 and 1"),
        ([0.0, 1.0], [0, math.nan], None, "labels other than 0 and 1"),
        ([0.0, 1.0], [0, 1], [1.0, -1.0], "weights that are negative"),
        ([0.0, 1.0], [0, 1], [1.0, math.inf], "not finite"),
        ([0.0, 1.0], [0, 1, 1], None, "unequal length"),
    ],
)
def test_values_that_no_metric_can_take_are_refused(
    logits: list[float], labels: list[float], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(DataError, match=f"^task 'click': .*{message}"):
        scored_rows(
            np.array(logits),
            np.array(labels),
            weights_B=None if weights is None else np.array(weights),
            name="task 'click'",
        )


def test_two_hundred_thresholds_lose_a_rare_task_that_exact_auc_keeps() -> None:
    """Calibrated scores of a rare task all lie in the lowest of 200 bins linear in probability."""
    random = np.random.default_rng(7)
    shape_B = random.normal(0, 1, 400_000)
    measured: dict[str, tuple[float, float]] = {}
    for name, offset in (("common", -1.9), ("rare", -7.5)):
        p_B = probability(offset + shape_B)
        rows = scored_rows(logit(p_B), random.random(len(p_B)) < p_B)
        # Every row both as a positive of weight p and as a negative of weight 1 - p: the AUC that labels draw from.
        truth = roc_auc_score(
            np.repeat([1, 0], len(p_B)), np.tile(p_B, 2), sample_weight=np.r_[p_B, 1 - p_B]
        )
        exact = auc(rows)
        assert exact is not None
        positives = float(rows.labels_B.sum())
        assert exact == pytest.approx(truth, abs=4 * math.sqrt(1 / 12 / positives))
        measured[name] = exact, binned_auc(rows)
    exact, binned = measured["common"]
    assert binned == pytest.approx(exact, abs=0.001)
    exact, binned = measured["rare"]
    assert exact > 0.72
    assert binned < exact - 0.15
