"""Metrics of every task, each over the rows it is about.

What a task's mask or a null label leaves out of the loss is left out of its metrics too. Axis **B**: rows.
"""

from collections.abc import Mapping

import numpy as np

from recsys.compare import delong, delong_difference
from recsys.errors import DataError
from recsys.evaluation.outcomes import Outcomes
from recsys.layout import entry_name
from recsys.measures import (
    AnyArray,
    BoolArray,
    Float64Array,
    ScoredRows,
    conditional_logit,
    group_aucs,
    log_loss,
    logit,
    normalized_entropy,
    predicted_over_observed,
    probability,
    scored_rows,
    weighted_mean,
)
from recsys.report import BinaryMetrics, Entry, Gauc, ReferenceComparison, RegressionMetrics
from recsys.schema import Task


def evaluate_tasks(outcomes: Outcomes, tasks: Mapping[str, Task]) -> tuple[Entry, ...]:
    """One entry a task, in order; a task with `given` has two.

    For `purchase` given `click` these are `purchase`, over all impressions where it is observed (the joint
    probability: CTCVR), and `purchase|click`, over impressions that were clicked (the conditional one, p(purchase) /
    p(click): CVR). `click` itself is CTR. Raises DataError for values that no metric can take.
    """
    entries: list[Entry] = []
    for name, task in tasks.items():
        if task.kind == "regression":
            entries.append(_regression_entry(outcomes, name))
            continue
        entries.append(_marginal_entry(outcomes, name, given=task.given))
        if task.given is not None:
            entries.append(_conditional_entry(outcomes, name, given=task.given))
    return tuple(entries)


def _marginal_entry(outcomes: Outcomes, task: str, *, given: str | None) -> BinaryMetrics:
    used_B = outcomes.observed_of(task)
    reference_B = _reference(outcomes, task, used_B)
    return _binary_metrics(
        _rows(outcomes, task, used_B, logits_B=outcomes.logits_of(task)[used_B], name=task),
        name=task,
        task=task,
        given=None,
        reference_B=None if reference_B is None else logit(reference_B),
        funnel_note=None if given is None else _funnel_note(outcomes, task, given),
    )


def _conditional_entry(outcomes: Outcomes, task: str, *, given: str) -> BinaryMetrics:
    name = entry_name(task, given)
    used_B = outcomes.observed_of(task) & outcomes.observed_of(given)
    used_B &= outcomes.labels_of(given) == 1
    logits_B = conditional_logit(
        outcomes.logits_of(task)[used_B], outcomes.logits_of(given)[used_B]
    )
    joint_B, parent_B = _reference(outcomes, task, used_B), _reference(outcomes, given, used_B)
    reference_B = None
    if joint_B is not None and parent_B is not None:
        reference_B = conditional_logit(logit(joint_B), logit(parent_B))
    return _binary_metrics(
        _rows(outcomes, task, used_B, logits_B=logits_B, name=name),
        name=name,
        task=task,
        given=given,
        reference_B=reference_B,
    )


def _funnel_note(outcomes: Outcomes, task: str, given: str) -> str | None:
    """What makes the joint entry of a funnel step something else than its name promises, if anything does."""
    missed_B = outcomes.observed_of(task) & outcomes.observed_of(given)
    missed_B &= outcomes.labels_of(given) == 0
    if not missed_B.any():
        return f"observed only where {given} = 1, so this is no measure over all impressions"
    positives = int(outcomes.labels_of(task)[missed_B].sum())
    if positives:
        return f"{positives} positives have {given} = 0; {entry_name(task, given)} leaves them out"
    return None


def _rows(
    outcomes: Outcomes, task: str, used_B: BoolArray, *, logits_B: AnyArray, name: str
) -> ScoredRows:
    return scored_rows(
        logits_B,
        outcomes.labels_of(task)[used_B],
        weights_B=outcomes.weights_B[used_B],
        groups_B=outcomes.groups_B[used_B],
        name=f"task {name!r}",
    )


def _reference(outcomes: Outcomes, task: str, used_B: BoolArray) -> Float64Array | None:
    if task not in outcomes.references:
        return None
    probability_B = outcomes.references[task][used_B]
    wrong = int(np.count_nonzero(~((probability_B >= 0) & (probability_B <= 1))))
    if wrong:
        raise DataError(
            f"task {task!r}: {wrong} of {len(probability_B)} rows have a reference that is null or outside 0 to 1; "
            "name a column of probabilities"
        )
    return probability_B


def _binary_metrics(
    rows: ScoredRows,
    *,
    name: str,
    task: str,
    given: str | None,
    reference_B: AnyArray | None,
    funnel_note: str | None = None,
) -> BinaryMetrics:
    weight = float(rows.weights_B.sum())
    estimate = delong(rows)
    return BinaryMetrics(
        name=name,
        task=task,
        given=given,
        rows=len(rows),
        positives=int(rows.labels_B.sum()),
        weight=weight,
        positive_rate=weighted_mean(rows.labels_B, rows.weights_B),
        mean_prediction=weighted_mean(probability(rows.logits_B), rows.weights_B),
        auc=estimate and estimate.auc,
        auc_standard_error=estimate and estimate.standard_error,
        auc_standard_error_by_group=estimate and estimate.standard_error_by_group,
        log_loss=log_loss(rows),
        normalized_entropy=normalized_entropy(rows),
        predicted_over_observed=predicted_over_observed(rows),
        gauc=_gauc(rows),
        reference=None if reference_B is None else _compared(rows, reference_B, name),
        note=_why_undefined(rows) or funnel_note,
    )


def _gauc(rows: ScoredRows) -> Gauc | None:
    within = group_aucs(rows)
    value, share = within.mean, within.counted_share
    if value is None or share is None:
        return None
    counted = int(np.count_nonzero(within.counted_G))
    return Gauc(value=value, groups=counted, groups_total=len(within.auc_G), rows_share=share)


def _compared(rows: ScoredRows, logits_B: AnyArray, name: str) -> ReferenceComparison | None:
    reference = scored_rows(
        logits_B,
        rows.labels_B,
        weights_B=rows.weights_B,
        groups_B=rows.groups_B,
        name=f"reference of {name!r}",
    )
    difference = delong_difference(rows, reference)
    loss, entropy = log_loss(reference), normalized_entropy(reference)
    if difference is None or loss is None or entropy is None:
        return None
    return ReferenceComparison(
        auc=difference.second,
        difference=difference.difference,
        low=difference.low,
        high=difference.high,
        standard_error=difference.standard_error,
        standard_error_by_group=difference.standard_error_by_group,
        log_loss=loss,
        normalized_entropy=entropy,
    )


def _why_undefined(rows: ScoredRows) -> str | None:
    """Why AUC, GAUC and normalized entropy are undefined; None when they are not."""
    if not len(rows):
        return "no observed rows"
    positives = float(rows.weights_B @ rows.labels_B)
    if rows.weights_B.sum() == 0:
        return f"all {len(rows)} rows have sample weight 0"
    if positives == 0:
        return f"no positive among {len(rows)} rows, so AUC is undefined"
    if positives == rows.weights_B.sum():
        return f"no negative among {len(rows)} rows, so AUC is undefined"
    return None


def _regression_entry(outcomes: Outcomes, name: str) -> RegressionMetrics:
    used_B = outcomes.observed_of(name)
    predicted_B = outcomes.logits_of(name)[used_B].astype(np.float64)
    label_B = outcomes.labels_of(name)[used_B].astype(np.float64)
    weights_B = outcomes.weights_B[used_B].astype(np.float64)
    for what, values_B in (("predictions", predicted_B), ("labels", label_B)):
        wrong = int(np.count_nonzero(~np.isfinite(values_B)))
        if wrong:
            raise DataError(f"task {name!r}: {wrong} of {len(values_B)} {what} are NaN or infinite")
    mean_label = weighted_mean(label_B, weights_B)
    squared = weighted_mean((predicted_B - label_B) ** 2, weights_B)
    spread = None if mean_label is None else weighted_mean((label_B - mean_label) ** 2, weights_B)
    return RegressionMetrics(
        name=name,
        rows=len(label_B),
        weight=float(weights_B.sum()),
        mean_label=mean_label,
        mean_prediction=weighted_mean(predicted_B, weights_B),
        rmse=None if squared is None else float(np.sqrt(squared)),
        mae=weighted_mean(np.abs(predicted_B - label_B), weights_B),
        r2=1.0 - squared / spread if squared is not None and spread else None,
        note=_why_undefined_regression(len(label_B), spread),
    )


def _why_undefined_regression(rows: int, spread: float | None) -> str | None:
    if not rows:
        return "no observed rows"
    if spread is None:
        return f"all {rows} rows have sample weight 0"
    return None if spread > 0 else f"all {rows} labels are equal, so R2 is undefined"
