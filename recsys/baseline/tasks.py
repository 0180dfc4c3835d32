"""One task learned by trees: which rows teach it, and what they predict for others.

Axes: **B** rows, **I** inputs, **T** tasks.
"""

from dataclasses import dataclass

import numpy as np

from recsys.baseline.inputs import Float32Array, TreeRows
from recsys.baseline.statistics import COLUMNS, FOLDS, LabelStatistics, label_statistics
from recsys.baseline.trees import Examples, Trees, boost
from recsys.errors import DataError
from recsys.measures import AnyArray, BoolArray, logit, weighted_mean
from recsys.schema import Schema, Task

FEWEST_OF_A_CLASS = 10


@dataclass(frozen=True, eq=False)
class TaskTrees:
    """What was learned for one task. `trees` is None where `constant`, the average, is predicted for want of labels."""

    name: str
    rows: int
    positives: int | None
    inputs: tuple[str, ...]
    statistics: tuple[LabelStatistics, ...]
    trees: Trees | None
    constant: float

    def scores(self, rows: TreeRows) -> AnyArray:
        """One number for each held-out row: a logit (conditional on the parent, if any), or a regression's value."""
        if self.trees is None:
            return np.full(len(rows), self.constant)
        found = [
            statistics.held_out(ids)
            for statistics, ids in zip(self.statistics, rows.ids, strict=True)
        ]
        return self.trees.predict(_joined(rows.inputs_BI, found))

    def most_used(self, count: int) -> list[tuple[str, float]]:
        """The inputs that gained most, and their shares of the gain."""
        if self.trees is None:
            return []
        order = np.argsort(-self.trees.gain_I, kind="stable")[:count]
        return [(self.inputs[i], float(self.trees.gain_I[i])) for i in order]


def learn_task(
    name: str, schema: Schema, train: TreeRows, validation: TreeRows, *, seed: int, threads: int
) -> TaskTrees:
    """Trees for one task, from the rows of its sample space: observed, weighed, and with the parent's label 1.

    A binary task with fewer than 10 rows of a class predicts its average. Raises DataError when no row teaches it.
    """
    task, t = schema.tasks[name], schema.task_names.index(name)
    used_B = sample_space(train, schema, name)
    if not used_B.any():
        raise DataError(
            f"task {name!r}: no training row is observed{_where_given(task)}, so nothing can be learned; "
            "name more training days, or check its label and mask in the schema"
        )
    labels_B, weights_B = train.labels_BT[used_B, t], train.weights_B[used_B]
    average = weighted_mean(labels_B, weights_B.astype(np.float64)) or 0.0
    binary = task.kind == "binary"
    positives = int(labels_B.sum()) if binary else None
    inputs = (*(item.name for item in train.inputs), *_statistic_names(train))
    if positives is not None and min(positives, len(labels_B) - positives) < FEWEST_OF_A_CLASS:
        constant = float(logit(np.array(average)))
        return TaskTrees(name, len(labels_B), positives, inputs, (), None, constant)
    fold_B = np.random.Generator(np.random.PCG64([seed, 1])).integers(0, FOLDS, len(train))
    # Rows outside the sample space weigh nothing: their labels are not this task's.
    task_weights_B = np.where(used_B, train.weights_B, 0.0)
    statistics = tuple(
        label_statistics(ids, train.labels_BT[:, t], task_weights_B, fold_B) for ids in train.ids
    )
    cross_fitted = [
        item.cross_fitted(ids, fold_B)[used_B]
        for item, ids in zip(statistics, train.ids, strict=True)
    ]
    checked_B = sample_space(validation, schema, name)
    held_out = [
        item.held_out(ids)[checked_B] for item, ids in zip(statistics, validation.ids, strict=True)
    ]
    trees = boost(
        Examples(_joined(train.inputs_BI[used_B], cross_fitted), labels_B, weights_B),
        Examples(
            _joined(validation.inputs_BI[checked_B], held_out),
            validation.labels_BT[checked_B, t],
            validation.weights_B[checked_B],
        ),
        objective="binary" if binary else "regression",
        categorical=[index for index, item in enumerate(train.inputs) if item.categorical],
        seed=seed,
        threads=threads,
    )
    return TaskTrees(name, len(labels_B), positives, inputs, statistics, trees, average)


def sample_space(rows: TreeRows, schema: Schema, name: str) -> BoolArray:
    """Which rows teach a task: observed, of positive weight and, for a funnel step, with the parent's label 1."""
    t = schema.task_names.index(name)
    used_B: BoolArray = rows.observed_BT[:, t] & (rows.weights_B > 0)
    parent = schema.tasks[name].given
    if parent is None:
        return used_B
    p = schema.task_names.index(parent)
    used_B &= rows.observed_BT[:, p] & (rows.labels_BT[:, p] == 1)
    return used_B


def _statistic_names(rows: TreeRows) -> list[str]:
    return [f"{ids.name} {what}" for ids in rows.ids for what in ("mean label", "rows")]


def _joined(inputs_BI: Float32Array, statistics: list[AnyArray]) -> Float32Array:
    """Inputs with the label statistics to their right, in one matrix."""
    own = inputs_BI.shape[1]
    joined_BI = np.empty((len(inputs_BI), own + COLUMNS * len(statistics)), np.float32)
    joined_BI[:, :own] = inputs_BI
    for index, columns_B2 in enumerate(statistics):
        start = own + COLUMNS * index
        joined_BI[:, start : start + COLUMNS] = columns_B2
    return joined_BI


def _where_given(task: Task) -> str:
    return f" with {task.given} = 1" if task.given else ""
