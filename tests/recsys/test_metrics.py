"""Metrics by task: masks, the three entries of a funnel, references, and merging across batches and ranks."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import (
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from recsys.errors import DataError
from recsys.evaluation.metrics import evaluate_tasks
from recsys.evaluation.outcomes import OutcomeAccumulator, Outcomes, in_turns
from recsys.measures import Int64Array, probability
from recsys.report import BinaryMetrics, Entry, RegressionMetrics
from recsys.schema import Task

FUNNEL = {
    "click": Task(label="clicked"),
    "purchase": Task(label="purchased", given="click"),
    "seconds": Task(label="seconds", kind="regression"),
}


def draw(seed: int, *, rows: int = 3_000) -> Outcomes:
    """A funnel whose logits are the truth, some unobserved rows, weights, and a regression task."""
    random = np.random.default_rng(seed)
    click_B, child_B = (
        probability(random.normal(-0.5, 1, rows)),
        probability(random.normal(0, 1, rows)),
    )
    clicked_B = random.random(rows) < click_B
    purchased_B = clicked_B & (random.random(rows) < child_B)
    seconds_B = random.normal(5, 2, rows)
    joint_B = click_B * child_B
    logits_BT = np.stack(
        [np.log(click_B / (1 - click_B)), np.log(joint_B / (1 - joint_B)), seconds_B], axis=1
    )
    labels_BT = np.stack([clicked_B, purchased_B, seconds_B + random.normal(0, 1, rows)], axis=1)
    return Outcomes(
        tuple(FUNNEL),
        logits_BT.astype(np.float32),
        labels_BT.astype(np.float32),
        random.random((rows, 3)) < 0.9,
        random.choice([0.5, 1.0, 2.0], rows).astype(np.float32),
        random.integers(0, 40, rows),
        {"click": click_B, "purchase": joint_B},
    )


def take(outcomes: Outcomes, rows: Int64Array) -> Outcomes:
    return Outcomes(
        outcomes.tasks,
        outcomes.logits_BT[rows],
        outcomes.labels_BT[rows],
        outcomes.observed_BT[rows],
        outcomes.weights_B[rows],
        outcomes.groups_B[rows],
        {name: item[rows] for name, item in outcomes.references.items()},
    )


def split(outcomes: Outcomes, sizes: list[int]) -> list[Outcomes]:
    """Consecutive pieces of the given sizes, then the rest."""
    cuts = np.cumsum(sizes)
    bounds = zip([0, *cuts], [*cuts, len(outcomes)], strict=True)
    return [take(outcomes, np.arange(first, end)) for first, end in bounds]


def gather(parts: list[Outcomes]) -> OutcomeAccumulator:
    accumulator = OutcomeAccumulator(FUNNEL)
    for part in parts:
        accumulator.add(
            logits_BT=part.logits_BT,
            labels_BT=part.labels_BT,
            observed_BT=part.observed_BT,
            weights_B=part.weights_B,
            groups_B=part.groups_B,
            references=part.references,
        )
    return accumulator


def binary(entries: tuple[Entry, ...], name: str) -> BinaryMetrics:
    (found,) = [entry for entry in entries if entry.name == name]
    assert isinstance(found, BinaryMetrics)
    return found


def numbers(entries: tuple[Entry, ...]) -> dict[str, float]:
    """Every number of the entries under its path, for comparing within a tolerance."""
    found: dict[str, float] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}.{key}", item)
        elif isinstance(value, int | float):
            found[path] = value

    for entry in entries:
        walk(entry.name, entry.model_dump())
    return found


def test_ctr_cvr_and_ctcvr_are_three_entries_over_their_own_rows() -> None:
    outcomes = draw(0)
    entries = evaluate_tasks(outcomes, FUNNEL)
    assert [entry.name for entry in entries] == ["click", "purchase", "purchase|click", "seconds"]
    (clicked_B, purchased_B, _), (saw_click_B, saw_purchase_B, _) = (
        outcomes.labels_BT.T,
        outcomes.observed_BT.T,
    )
    p_click_B, p_purchase_B, _ = probability(outcomes.logits_BT).T
    expected = {
        "click": (saw_click_B, clicked_B, p_click_B),
        "purchase": (saw_purchase_B, purchased_B, p_purchase_B),
        "purchase|click": (
            saw_click_B & saw_purchase_B & (clicked_B == 1),
            purchased_B,
            p_purchase_B / p_click_B,
        ),
    }
    for name, (used_B, label_B, p_B) in expected.items():
        found, weights_B = binary(entries, name), outcomes.weights_B[used_B]
        label_B, p_B = label_B[used_B], p_B[used_B]
        assert (found.rows, found.positives) == (used_B.sum(), label_B.sum())
        assert found.auc == pytest.approx(
            roc_auc_score(label_B, p_B, sample_weight=weights_B), abs=1e-6
        )
        loss = sklearn_log_loss(label_B, p_B.astype(np.float64), sample_weight=weights_B)
        assert found.log_loss == pytest.approx(loss, rel=1e-5)
        ratio = np.average(p_B, weights=weights_B) / np.average(label_B, weights=weights_B)
        assert found.predicted_over_observed == pytest.approx(ratio, rel=1e-5)
        assert (found.task, found.given) == (name.split("|")[0], name.partition("|")[2] or None)
        assert found.note is None


def test_cvr_over_all_impressions_would_be_another_number() -> None:
    """The planted defect, seen in a peer: the conditional score judged on every impression."""
    outcomes = draw(1)
    p_click_B, p_purchase_B, _ = probability(outcomes.logits_BT).T
    conditional = binary(evaluate_tasks(outcomes, FUNNEL), "purchase|click")
    over_everything = roc_auc_score(outcomes.labels_BT[:, 1], p_purchase_B / p_click_B)
    assert conditional.auc is not None
    assert conditional.auc_standard_error is not None
    assert abs(over_everything - conditional.auc) > 3 * conditional.auc_standard_error


def test_unobserved_rows_reach_no_metric() -> None:
    outcomes = draw(2)
    hidden_BT = ~outcomes.observed_BT
    scrambled = replace(
        outcomes,
        logits_BT=np.where(hidden_BT, np.float32(math.nan), outcomes.logits_BT),
        labels_BT=np.where(hidden_BT, np.float32(99), outcomes.labels_BT),
        references={
            "click": np.where(hidden_BT[:, 0], math.nan, outcomes.references["click"]),
            "purchase": np.where(hidden_BT[:, 1], math.nan, outcomes.references["purchase"]),
        },
    )
    assert evaluate_tasks(scrambled, FUNNEL) == evaluate_tasks(outcomes, FUNNEL)
    unmasked = replace(outcomes, observed_BT=np.ones_like(hidden_BT))
    assert evaluate_tasks(unmasked, FUNNEL) != evaluate_tasks(outcomes, FUNNEL)


def test_the_oracle_compared_with_itself_differs_by_nothing() -> None:
    for name in ("click", "purchase", "purchase|click"):
        found = binary(evaluate_tasks(draw(0), FUNNEL), name)
        assert found.reference is not None
        assert found.reference.auc == pytest.approx(found.auc, abs=1e-6)
        assert found.reference.low - 1e-5 <= 0 <= found.reference.high + 1e-5
        assert found.reference.log_loss == pytest.approx(found.log_loss, rel=1e-5)


def test_a_worse_model_is_seen_to_lose_to_the_oracle() -> None:
    outcomes = draw(0)
    noise_BT = np.random.default_rng(9).normal(0, 1, outcomes.logits_BT.shape).astype(np.float32)
    noise_BT[:, 0] = 0
    worse = replace(outcomes, logits_BT=outcomes.logits_BT + noise_BT)
    entries = evaluate_tasks(worse, FUNNEL)
    for name in ("purchase", "purchase|click"):
        found = binary(entries, name)
        assert found.reference is not None
        assert found.auc is not None
        assert found.reference.difference == pytest.approx(found.auc - found.reference.auc)
        assert found.reference.high < 0
        assert found.normalized_entropy is not None
        assert found.reference.normalized_entropy < found.normalized_entropy
    click = binary(entries, "click").reference
    assert click is not None
    assert click.difference == pytest.approx(0, abs=1e-6)


def test_a_conditional_reference_needs_both_probabilities() -> None:
    outcomes = draw(0)
    only_child = replace(outcomes, references={"purchase": outcomes.references["purchase"]})
    entries = evaluate_tasks(only_child, FUNNEL)
    assert binary(entries, "purchase").reference is not None
    assert binary(entries, "purchase|click").reference is None
    assert binary(entries, "click").reference is None


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1])
def test_a_reference_that_is_no_probability_is_refused(wrong: float) -> None:
    outcomes = draw(0)
    reference_B = outcomes.references["click"].copy()
    reference_B[np.argmax(outcomes.observed_BT[:, 0])] = wrong
    with pytest.raises(DataError, match=r"^task 'click': 1 of \d+ rows have a reference that is"):
        evaluate_tasks(replace(outcomes, references={"click": reference_B}), FUNNEL)


@given(st.lists(st.integers(0, 120), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_batches_and_ranks_merge_to_the_same_metrics_in_any_order(
    sizes: list[int], order: Random
) -> None:
    outcomes = draw(3, rows=800)
    whole = numbers(evaluate_tasks(outcomes, FUNNEL))
    parts = split(outcomes, sizes)
    order.shuffle(parts)
    half = len(parts) // 2
    merged = Outcomes.concatenate(gather(some).outcomes() for some in (parts[:half], parts[half:]))
    assert len(merged) == len(outcomes)
    assert numbers(evaluate_tasks(merged, FUNNEL)) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_ranks_that_took_turns_by_batch_come_together_in_order() -> None:
    outcomes = draw(5, rows=70)
    batches = [*split(outcomes, [10] * 7), take(outcomes, np.arange(0))]
    ranks = [gather(batches[rank::3]).parts() for rank in range(3)]

    whole = Outcomes.concatenate(in_turns(ranks))

    assert (whole.logits_BT == outcomes.logits_BT).all()
    assert (whole.groups_B == outcomes.groups_B).all()


def test_the_mean_of_ranks_is_not_what_is_reported() -> None:
    """The planted defect, seen in a peer: each rank's AUC, averaged."""
    outcomes = draw(4)
    order = np.argsort(outcomes.references["click"], kind="stable")
    low, high = split(take(outcomes, order), [1_500])
    averaged = np.mean(
        [binary(evaluate_tasks(part, FUNNEL), "click").auc or 0 for part in (low, high)]
    )
    whole = binary(evaluate_tasks(gather([low, high]).outcomes(), FUNNEL), "click")
    assert whole.auc is not None
    assert abs(averaged - whole.auc) > 0.05


def test_batches_are_copied_so_buffers_may_be_reused() -> None:
    outcomes = draw(5)
    expected = evaluate_tasks(outcomes, FUNNEL)
    buffer_BT = outcomes.logits_BT.copy()
    accumulator = gather([replace(outcomes, logits_BT=buffer_BT)])
    buffer_BT[:] = 0
    assert evaluate_tasks(accumulator.outcomes(), FUNNEL) == expected


def test_evaluating_no_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        OutcomeAccumulator(FUNNEL).outcomes()


def test_regression_metrics_equal_scikit_learns() -> None:
    outcomes = draw(6)
    (found,) = [e for e in evaluate_tasks(outcomes, FUNNEL) if isinstance(e, RegressionMetrics)]
    used_B = outcomes.observed_BT[:, 2]
    label_B, predicted_B = outcomes.labels_BT[used_B, 2], outcomes.logits_BT[used_B, 2]
    weights_B = outcomes.weights_B[used_B]
    assert found.rows == used_B.sum()
    for value, measure in (
        (found.rmse, root_mean_squared_error),
        (found.mae, mean_absolute_error),
        (found.r2, r2_score),
    ):
        expected = measure(label_B, predicted_B, sample_weight=weights_B)
        assert value == pytest.approx(expected, rel=1e-5)
    assert found.mean_label == pytest.approx(np.average(label_B, weights=weights_B), rel=1e-6)
    assert found.note is None


def one_task(
    labels: list[float], *, kind: str = "binary", observed: bool = True, weight: float = 1
) -> Entry:
    rows = len(labels)
    outcomes = Outcomes(
        ("task",),
        np.zeros((rows, 1), np.float32),
        np.array(labels, np.float32)[:, None],
        np.full((rows, 1), observed),
        np.full(rows, weight, np.float32),
        np.arange(rows),
    )
    task = Task(label="y", kind="regression" if kind == "regression" else "binary")
    (entry,) = evaluate_tasks(outcomes, {"task": task})
    return entry


@pytest.mark.parametrize(
    ("labels", "observed", "weight", "note"),
    [
        ([0, 0, 0], True, 1, "no positive among 3 rows, so AUC is undefined"),
        ([1, 1], True, 1, "no negative among 2 rows, so AUC is undefined"),
        ([1, 0], False, 1, "no observed rows"),
        ([1, 0], True, 0, "all 2 rows have sample weight 0"),
    ],
)
def test_an_undefined_auc_is_none_and_says_why(
    labels: list[float], observed: bool, weight: float, note: str
) -> None:
    entry = one_task(labels, observed=observed, weight=weight)
    assert isinstance(entry, BinaryMetrics)
    assert (entry.auc, entry.auc_standard_error, entry.gauc) == (None, None, None)
    assert entry.normalized_entropy is None
    assert entry.note == note


@pytest.mark.parametrize(
    ("labels", "observed", "weight", "note"),
    [
        ([2, 2, 2], True, 1, "all 3 labels are equal, so R2 is undefined"),
        ([1, 2], False, 1, "no observed rows"),
        ([1, 2], True, 0, "all 2 rows have sample weight 0"),
    ],
)
def test_an_undefined_r2_is_none_and_says_why(
    labels: list[float], observed: bool, weight: float, note: str
) -> None:
    entry = one_task(labels, kind="regression", observed=observed, weight=weight)
    assert isinstance(entry, RegressionMetrics)
    assert entry.r2 is None
    assert entry.note == note


def test_a_funnel_observed_on_clicks_alone_says_that_its_joint_entry_is_not_over_all() -> None:
    outcomes = draw(7)
    observed_BT = outcomes.observed_BT.copy()
    observed_BT[:, 1] &= outcomes.labels_BT[:, 0] == 1
    found = binary(evaluate_tasks(replace(outcomes, observed_BT=observed_BT), FUNNEL), "purchase")
    assert found.note == "observed only where click = 1, so this is no measure over all impressions"


def test_purchases_without_a_click_are_counted_and_named() -> None:
    outcomes = draw(8)
    labels_BT, observed_BT = outcomes.labels_BT.copy(), np.ones_like(outcomes.observed_BT)
    unclicked = np.flatnonzero(labels_BT[:, 0] == 0)[:3]
    labels_BT[unclicked, 1] = 1
    entries = evaluate_tasks(
        replace(outcomes, labels_BT=labels_BT, observed_BT=observed_BT), FUNNEL
    )
    whole, conditional = binary(entries, "purchase"), binary(entries, "purchase|click")
    assert whole.note == "3 positives have click = 0; purchase|click leaves them out"
    assert whole.positives == conditional.positives + 3


def test_a_diverged_model_is_refused_by_the_name_of_its_task() -> None:
    outcomes = draw(9)
    broken_BT = np.full_like(outcomes.logits_BT, np.nan)
    with pytest.raises(DataError, match=r"^task 'click': \d+ of \d+ rows have logits that are NaN"):
        evaluate_tasks(replace(outcomes, logits_BT=broken_BT), FUNNEL)
    broken_BT[:, :2] = 0
    with pytest.raises(DataError, match=r"^task 'seconds': \d+ of \d+ predictions are NaN"):
        evaluate_tasks(replace(outcomes, logits_BT=broken_BT), FUNNEL)
