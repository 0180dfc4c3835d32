"""A checkup of a model's experts, gates and gradients while it scores days, in memory that does not grow with them.

Axes: **T** tasks, **S** batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch

from recsys.batch import Batch, from_encoded
from recsys.days import Days
from recsys.diagnosis import (
    FEWEST_ROWS,
    Diagnosis,
    LevelNumbers,
    PairNumbers,
    Removal,
    TaskNumbers,
)
from recsys.evaluation.expert_distances import divergences
from recsys.evaluation.expert_statistics import ExpertWatch, of_first_half
from recsys.evaluation.experts import level_numbers
from recsys.evaluation.gradients import TaskGradients, task_gradients
from recsys.evaluation.verdicts import findings
from recsys.feed import EncodedBatch
from recsys.models import RankingModel, build_program
from recsys.models.probe import Watched
from recsys.run import TrainedRun

# Rows whose experts are looked at, spread evenly over the days.
_WINDOW_ROWS = 32_768
_GRADIENT_BATCHES = 8
_GRADIENT_ROWS = 1_024


class Checkup:
    """What a diagnosis needs, gathered inside `with checkup.attached():` from the batches that `see` is told of."""

    def __init__(self, trained: TrainedRun, days: Days, *, batch_size: int) -> None:
        self._trained = trained
        self._watch = watch_over(trained.model, days)
        self._half_rows = days.rows // 2
        # Of the first half of the rows, and of the second.
        self._labels_WT = torch.zeros(2, len(trained.schema.tasks), dtype=torch.int64)
        batches = sum(-(-group.rows // batch_size) for group in days.groups)
        self._every = -(-batches // _GRADIENT_BATCHES)
        self._slices = -(-_GRADIENT_BATCHES // max(batches, 1))
        self._rows = self._seen = 0
        self._samples: list[Batch] = []

    @contextmanager
    def attached(self) -> Iterator["Checkup"]:
        """Watch the model's forward passes until the block ends."""
        with self._watch.attached():
            yield self

    def see(self, rows: EncodedBatch) -> None:
        """Count a batch's labels, and keep some of its rows for the gradients."""
        batch, tasks = rows.batch, self._trained.schema.tasks.values()
        regression_T = torch.tensor([task.kind == "regression" for task in tasks])
        counted_BT = batch.observed_BT & ((batch.labels_BT > 0) | regression_T)
        cut = of_first_half(self._rows, batch.rows, self._half_rows)
        for half, part_BT in enumerate((counted_BT[:cut], counted_BT[cut:])):
            self._labels_WT[half] += part_BT.sum(dim=0)
        if self._seen % self._every == 0:
            self._samples += _slices(rows, self._slices, self._trained)
        self._rows += batch.rows
        self._seen += 1

    def diagnosis(self, removals: tuple[Removal, ...] | None = None) -> Diagnosis:
        """The numbers and what follows from them."""
        trained, schema = self._trained, self._trained.schema
        watched = trained.model.program.mixing.watched()
        labels: dict[str, list[int]] = dict(
            zip(schema.task_names, self._labels_WT.T.tolist(), strict=True)
        )
        gradients = task_gradients(
            trained.model, self._samples, schema, weights=trained.experiment.objective.weights
        )
        fresh = build_program(
            schema, trained.experiment.model, seed=trained.experiment.train.seed
        ).mixing.watched()
        statistics = {id(item.watched.bank): item for item in self._watch.levels}
        levels = tuple(
            level_numbers(
                statistics[id(item.bank)],
                level=number,
                labels=labels,
                movement=_movement(before, item),
                gradient_norms=dict(
                    zip(schema.task_names, gradients.expert_norms[number - 1], strict=True)
                ),
            )
            for number, (before, item) in enumerate(zip(fresh, watched, strict=True), start=1)
            if item.gates is not None
        )
        tasks = _tasks({task: sum(counts) for task, counts in labels.items()}, gradients)
        pairs = _pairs(schema.task_names, gradients, levels)
        rows = max((item.rows for item in self._watch.levels), default=self._rows)
        return Diagnosis(
            rows=rows,
            note=_note(trained, rows),
            levels=levels,
            tasks=tasks,
            pairs=pairs,
            removals=removals,
            findings=findings(levels, tasks, pairs, removals),
        )


def watch_over(model: RankingModel, days: Days, *, about_rows: int = _WINDOW_ROWS) -> ExpertWatch:
    """A watch that looks at this many of the days' rows, evenly spread, or less than twice as many."""
    every = max(1, days.rows // max(about_rows, 1))
    return ExpertWatch(model.program.mixing, every=every, rows=days.rows)


def device_of(model: RankingModel) -> torch.device:
    """Where a model computes."""
    return next(model.program.parameters()).device


def _slices(rows: EncodedBatch, count: int, trained: TrainedRun) -> list[Batch]:
    """Some runs of a batch's rows, evenly spread, on the model's device."""
    length = rows.encoded.num_rows // count
    taken = min(max(length, 1), _GRADIENT_ROWS)
    starts = range(0, length * count, length) if length else range(1)
    device = device_of(trained.model)
    return [
        from_encoded(rows.encoded.slice(start, taken), trained.schema).to(device)
        for start in starts
    ]


def _movement(before: Watched, after: Watched) -> list[float]:
    """How far each expert is from its first weights, beside the norm of its present ones."""
    moved, size = torch.zeros(2, after.bank.experts)
    pairs = zip(
        (*before.bank.weights, *before.bank.biases),
        (*after.bank.weights, *after.bank.biases),
        strict=True,
    )
    for first, last in pairs:
        last_EP = last.detach().cpu().flatten(1)
        moved = moved + (last_EP - first.detach().flatten(1)).square().sum(dim=1)
        size = size + last_EP.square().sum(dim=1)
    found: list[float] = (moved / size.clamp(min=1e-30)).sqrt().tolist()
    return found


def _tasks(labels: dict[str, int], gradients: TaskGradients) -> tuple[TaskNumbers, ...]:
    total = float(gradients.norm_T.nansum())
    return tuple(
        TaskNumbers(
            task=task,
            labels=count,
            gradient_share=_number(gradients.norm_T[t] / total) if total > 0 else None,
            gradient_supply=_number(gradients.supply_T[t]),
            gradient_reach=_number(gradients.reach_T[t]),
            gradient_signal=_number(gradients.signal_T[t]),
        )
        for t, (task, count) in enumerate(labels.items())
    )


def _pairs(
    tasks: Sequence[str], gradients: TaskGradients, levels: Sequence[LevelNumbers]
) -> tuple[PairNumbers, ...]:
    """Every two tasks; their gates are compared at the last level where both have one."""
    found = []
    for (t, first), (u, second) in combinations(enumerate(tasks), 2):
        cosine_S = gradients.cosine_STT[:, t, u]
        cosine_S = cosine_S[~cosine_S.isnan()]
        known = len(cosine_S) > 0
        found.append(
            PairNumbers(
                first=first,
                second=second,
                batches=len(cosine_S),
                cosine=float(cosine_S.mean()) if known else None,
                cosine_low=float(cosine_S.quantile(0.1)) if known else None,
                negative_share=float((cosine_S < 0).float().mean()) if known else None,
                gate_similarity=_gate_similarity(first, second, levels),
            )
        )
    return tuple(found)


def _gate_similarity(first: str, second: str, levels: Sequence[LevelNumbers]) -> float | None:
    """1 minus the Jensen-Shannon divergence of two tasks' mean gates."""
    for level in reversed(levels):
        weights = {gate.reader: gate.weights for gate in level.gates}
        if first in weights and second in weights:
            pair = torch.tensor([weights[first], weights[second]], dtype=torch.float64)
            return 1 - float(divergences(pair)[0, 1])
    return None


def _note(trained: TrainedRun, rows: int) -> str | None:
    if not any(item.gates is not None for item in trained.model.program.mixing.watched()):
        kind = trained.experiment.model.mixing.kind
        return f"{kind} has no experts to choose among, so only the tasks' gradients are looked at"
    if rows < FEWEST_ROWS:
        return f"measured on {rows:,} rows; below {FEWEST_ROWS:,} shares and correlations are rough"
    return None


def _number(value: torch.Tensor) -> float | None:
    return float(value) if torch.isfinite(value) else None
