"""Standard errors and paired differences, against loops over pairs, resampling and repeated draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.compare import (
    bootstrap_difference,
    compare_predictions,
    delong,
    delong_difference,
)
from recsys.errors import DataError
from recsys.measures import (
    Float64Array,
    Int64Array,
    ScoredRows,
    auc,
    group_aucs,
    normalized_entropy,
    probability,
    scored_rows,
)
from recsys.predictions import Predictions
from recsys.resample import METRICS, Resample, resample


def draw(seed: int, *, rows: int = 300, users: int | None = None, noise: float = 0.0) -> ScoredRows:
    """Calibrated rows; with `noise` the logits are those of a worse model of the same rows."""
    random = np.random.default_rng(seed)
    truth_B = random.normal(-1, 1.2, rows)
    labels_B = random.random(rows) < probability(truth_B)
    groups_B = None if users is None else random.integers(0, users, rows)
    logits_B = np.round(truth_B + noise * random.normal(size=rows), 1)
    return scored_rows(logits_B, labels_B, groups_B=groups_B)


def user_effects(
    seed: int, *, users: int = 60, rows_per_user: int = 20
) -> tuple[ScoredRows, ScoredRows]:
    """Two models on users whose rows are alike: label and score both follow the user."""
    random = np.random.default_rng(seed)
    groups_B = np.repeat(np.arange(users), rows_per_user)
    user_B = random.normal(0, 1.5, users)[groups_B]
    labels_B = random.random(len(groups_B)) < probability(user_B - 1)
    known_B = random.normal(0, 1, users)[groups_B]
    noise_B = random.normal(0, 0.3, len(groups_B))
    first_B, second_B = user_B + noise_B, user_B + known_B
    return (
        scored_rows(first_B, labels_B, groups_B=groups_B),
        scored_rows(second_B, labels_B, groups_B=groups_B),
    )


def naive_components(rows: ScoredRows) -> tuple[Float64Array, Float64Array]:
    """DeLong's structural components: each positive against all negatives, and the other way round."""
    positive, negative = (rows.logits_B[rows.labels_B == label] for label in (1, 0))
    kernel = [[float(x > y) + 0.5 * float(x == y) for y in negative] for x in positive]
    return np.array(kernel).mean(axis=1), np.array(kernel).mean(axis=0)


def naive_delong_covariance(models: list[ScoredRows]) -> Float64Array:
    """The covariance matrix of several AUCs, as DeLong, DeLong & Clarke-Pearson (1988) write it."""
    components = [naive_components(rows) for rows in models]
    over_positives = np.atleast_2d(np.cov([item[0] for item in components]))
    over_negatives = np.atleast_2d(np.cov([item[1] for item in components]))
    positives, negatives = len(components[0][0]), len(components[0][1])
    return np.asarray(over_positives / positives + over_negatives / negatives)


def expand(rows: ScoredRows, drawn: Int64Array) -> ScoredRows:
    """The rows of the drawn groups, a group drawn twice being two groups."""
    parts = [np.flatnonzero(rows.groups_B == group) for group in drawn]
    groups_B = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return replace(rows.take(np.concatenate(parts)), groups_B=groups_B)


def test_delong_of_four_rows_by_hand() -> None:
    # Positives 3 and 1, negatives 2 and 0: wins 2 and 1 of 2. V10 = (1, 1/2), V01 = (1/2, 1); each variance is 1/8.
    rows = scored_rows(np.array([3.0, 1.0, 2.0, 0.0]), np.array([1, 1, 0, 0]))
    found = delong(rows)
    assert found is not None
    assert found.auc == pytest.approx(0.75)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 8 / 2 + 1 / 8 / 2))


@pytest.mark.parametrize("seed", range(5))
def test_delong_equals_the_loop_over_pairs(seed: int) -> None:
    first, second = draw(seed), draw(seed, noise=1.0)
    covariance = naive_delong_covariance([first, second])
    estimate, difference = delong(first), delong_difference(first, second)
    assert estimate is not None
    assert difference is not None
    assert estimate.standard_error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert difference.difference == pytest.approx((auc(first) or 0) - (auc(second) or 0), abs=1e-12)
    assert difference.high - difference.low == pytest.approx(2 * 1.959964 * math.sqrt(variance))
    # The planted defect: two independent tests instead of one paired test see a much wider interval.
    unpaired = covariance[0, 0] + covariance[1, 1]
    assert math.sqrt(unpaired) > 1.3 * difference.standard_error


def test_delong_predicts_the_spread_of_repeated_draws() -> None:
    differences = [delong_difference(draw(seed), draw(seed, noise=1.0)) for seed in range(300)]
    found = [item for item in differences if item is not None]
    spread = float(np.std([item.difference for item in found], ddof=1))
    predicted = float(np.mean([item.standard_error for item in found]))
    assert predicted == pytest.approx(spread, rel=4 / math.sqrt(2 * len(found)))
    truth = float(np.mean([item.difference for item in found]))
    covered = float(np.mean([item.low <= truth <= item.high for item in found]))
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / len(found)))


def test_shuffled_labels_lie_within_four_standard_errors_of_one_half() -> None:
    rows = draw(0, rows=5_000)
    shuffled = replace(rows, labels_B=np.random.default_rng(1).permutation(rows.labels_B))
    honest, found = delong(rows), delong(shuffled)
    assert honest is not None
    assert found is not None
    assert honest.standard_error is not None
    assert found.standard_error is not None
    assert abs(found.auc - 0.5) < 4 * found.standard_error
    assert abs(honest.auc - 0.5) > 4 * honest.standard_error


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=4, max_size=40))
@settings(max_examples=100, deadline=None)
def test_delong_depends_on_order_alone_and_equal_weights_change_nothing(
    items: list[tuple[int, bool]],
) -> None:
    values_B, labels_B = (np.array(column) for column in zip(*items, strict=True))
    plain = delong(scored_rows(values_B.astype(float), labels_B))
    moved = delong(scored_rows(np.exp(values_B / 3), labels_B, weights_B=np.full(len(items), 2.5)))
    assert (plain is None) == (moved is None)
    if plain is None or moved is None:
        return
    assert moved.auc == pytest.approx(plain.auc, abs=1e-12)
    assert moved.standard_error == pytest.approx(plain.standard_error, abs=1e-12)


def test_delong_with_sample_weights_predicts_the_spread_of_repeated_draws() -> None:
    found = []
    for seed in range(300):
        rows = draw(seed)
        weights_B = np.random.default_rng(seed + 10_000).choice([0.2, 1.0, 4.0], len(rows))
        found.append(delong(replace(rows, weights_B=weights_B)))
    spread = float(np.std([item.auc for item in found if item], ddof=1))
    errors = [item.standard_error or math.nan for item in found if item]
    assert float(np.mean(errors)) == pytest.approx(spread, rel=4 / math.sqrt(2 * len(errors)))


def test_an_unknown_standard_error_is_none() -> None:
    one_positive = delong(scored_rows(np.arange(5.0), np.array([0, 0, 0, 1, 0])))
    assert one_positive is not None
    assert one_positive.auc == 0.75
    assert one_positive.standard_error is None
    rows = draw(0)
    one_group = delong(replace(rows, groups_B=np.zeros(len(rows), dtype=np.int64)))
    assert one_group is not None
    assert one_group.standard_error is not None
    assert one_group.standard_error_by_group is None
    assert delong(scored_rows(np.arange(3.0), np.zeros(3))) is None


def test_rows_that_are_all_groups_of_their_own_have_one_standard_error() -> None:
    found = delong(draw(2))
    assert found is not None
    assert found.standard_error_by_group == pytest.approx(found.standard_error, rel=0.01)


def test_standard_errors_by_group_see_that_a_users_rows_are_alike() -> None:
    """Of 200 draws of users: DeLong's error is a third too small or worse, the grouped one is right."""
    values, by_row, by_group = [], [], []
    for seed in range(200):
        found = delong(user_effects(seed)[0])
        assert found is not None
        assert found.standard_error is not None
        assert found.standard_error_by_group is not None
        values.append(found.auc)
        by_row.append(found.standard_error)
        by_group.append(found.standard_error_by_group)
    spread = float(np.std(values, ddof=1))
    assert float(np.mean(by_group)) == pytest.approx(spread, rel=4 / math.sqrt(2 * len(values)))
    assert float(np.mean(by_row)) < spread * 2 / 3


def test_the_bootstrap_agrees_with_the_grouped_standard_error() -> None:
    first, second = user_effects(5)
    difference = delong_difference(first, second)
    assert difference is not None
    paired = bootstrap_difference(first, second, replicates=600, seed=1)["auc"]
    assert paired is not None
    assert paired.standard_error == pytest.approx(difference.standard_error_by_group, rel=0.15)
    assert paired.low < paired.difference < paired.high


@pytest.mark.parametrize("seed", range(4))
def test_a_replicate_equals_the_metrics_of_the_drawn_users_rows(seed: int) -> None:
    rows = draw(seed, rows=200, users=20)
    weights_B = np.random.default_rng(seed).choice([0.0, 1.0, 2.5], len(rows))
    rows = replace(rows, weights_B=weights_B)
    drawn = np.random.default_rng(seed).integers(0, 20, 20)
    found = Resample(rows).metrics(np.bincount(drawn, minlength=20))
    expanded = expand(rows, drawn)
    expected = (auc(expanded), group_aucs(expanded).mean, normalized_entropy(expanded))
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_bootstrap_is_the_same_for_one_seed_and_any_row_order() -> None:
    rows = draw(1, users=40)
    rival = replace(rows, logits_B=rows.logits_B[::-1].copy())
    order = np.random.default_rng(0).permutation(len(rows))
    first = bootstrap_difference(rows, rival, replicates=50, seed=3)
    second = bootstrap_difference(rows.take(order), rival.take(order), replicates=50, seed=3)
    other = bootstrap_difference(rows, rival, replicates=50, seed=4)
    for metric in METRICS:
        one, two, three = first[metric], second[metric], other[metric]
        assert one is not None
        assert two is not None
        assert three is not None
        assert one.low == pytest.approx(two.low, abs=1e-12)
        assert one.low != three.low


def test_undefined_replicates_are_counted_out_and_undefined_metrics_are_none() -> None:
    # One user of four has the only positive: about a third of the replicates hold no positive at all.
    groups_B, labels_B = np.repeat(np.arange(4), 3), np.array([1, *([0] * 11)])
    rows = scored_rows(np.linspace(1, 0, 12), labels_B, groups_B=groups_B)
    rival = replace(rows, logits_B=rows.logits_B[::-1].copy())
    found = bootstrap_difference(rows, rival, replicates=200, seed=0)
    assert found["auc"] is not None
    defined_R = ~np.isnan(resample((Resample(rows),), 200, 0)[0][:, METRICS.index("auc")])
    assert 100 < np.count_nonzero(defined_R) < 170
    for empty in (np.zeros(4), np.zeros(0)):
        nobody = scored_rows(empty, empty)
        assert bootstrap_difference(nobody, nobody, replicates=5) == dict.fromkeys(METRICS)


def predictions(rows: ScoredRows, source: str, *, first_key: int = 0) -> Predictions:
    return Predictions(source, np.arange(first_key, first_key + len(rows), dtype=np.int64), rows)


def test_models_are_compared_row_by_row_whatever_the_order_of_rows() -> None:
    better, worse = draw(0, rows=2_000, users=90), draw(0, rows=2_000, users=90, noise=1.0)
    first, second = predictions(better, "a"), predictions(worse, "b")
    straight = compare_predictions(first, second, replicates=50)
    order = np.random.default_rng(0).permutation(len(worse))
    moved = Predictions("b", second.row_key_B[order], worse.take(order))
    assert compare_predictions(first, moved, replicates=50) == straight
    assert straight.rows == 2_000
    assert straight.positives == int(better.labels_B.sum())
    assert straight.groups == 90
    assert straight.auc == delong_difference(better, worse)
    for difference in (straight.auc, straight.auc_by_group, straight.gauc_by_group):
        assert difference is not None
        assert difference.difference > 0
        assert difference.p_value < 0.05
        assert difference.low < difference.difference < difference.high
    entropy = straight.normalized_entropy_by_group
    assert entropy is not None
    assert entropy.difference < 0


def test_a_model_does_not_differ_from_itself() -> None:
    one = predictions(draw(0, users=30), "a")
    found = compare_predictions(one, one, replicates=20)
    for difference in (found.auc, found.auc_by_group, found.gauc_by_group):
        assert difference is not None
        assert (difference.difference, difference.standard_error) == (0, 0)
        assert difference.p_value == 1


def test_an_undefined_metric_compares_as_none() -> None:
    rows = scored_rows(np.arange(4.0), np.zeros(4))
    found = compare_predictions(predictions(rows, "a"), predictions(rows, "b"), replicates=5)
    assert (found.auc, found.auc_by_group, found.gauc_by_group) == (None, None, None)


def test_unequal_rows_are_refused_with_both_counts() -> None:
    first = predictions(draw(0), "runs/a")
    second = predictions(draw(0), "runs/b", first_key=2)
    with pytest.raises(
        DataError,
        match=r"2 rows are only in runs/a \(such as row key 0\) and 2 rows are only in runs/b",
    ):
        compare_predictions(first, second)
    fewer = Predictions("runs/b", first.row_key_B[:-1], first.rows.take(np.arange(299)))
    with pytest.raises(
        DataError, match=r"1 rows are only in runs/a .*evaluate both on the same rows"
    ):
        compare_predictions(first, fewer)


def test_a_repeated_row_key_is_refused() -> None:
    one = predictions(draw(0), "runs/a")
    keys_B = one.row_key_B.copy()
    keys_B[1] = 0
    repeated = Predictions("runs/b", keys_B, one.rows)
    with pytest.raises(DataError, match=r"^runs/b: row key 0 occurs more than once"):
        compare_predictions(one, repeated)


@pytest.mark.parametrize("what", ["labels", "weights", "groups"])
def test_rows_that_differ_in_more_than_their_logits_are_refused(what: str) -> None:
    one = predictions(draw(0), "runs/a")
    changed_B = getattr(one.rows, f"{what}_B").copy()
    changed_B[7] = 1 - changed_B[7] if what == "labels" else changed_B[7] + 1
    other = replace(one, source="runs/b", rows=replace(one.rows, **{f"{what}_B": changed_B}))
    with pytest.raises(DataError, match=rf"{what} of 1 rows differ \(first: row key 7\)"):
        compare_predictions(one, other)
