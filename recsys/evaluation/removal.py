"""What tasks lose when experts are taken away from a trained model: the only number that says an expert is needed.

Axes: **B** rows, **T** tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.batch import Batch
from recsys.compare import delong_difference
from recsys.diagnosis import AucLoss, Removal
from recsys.measures import ScoredRows, scored_rows
from recsys.models import RankingModel
from recsys.models.probe import Watched, without_experts
from recsys.schema import Schema


@dataclass(frozen=True)
class _Case:
    """A removal and the experts that it takes from each level."""

    level: int | None
    expert: int | None
    own: str | None
    removed: list[tuple[Watched, tuple[int, ...]]]


class Removals:
    """Logits of the model whole and without each expert that several tasks may use, and without each task's own."""

    def __init__(self, model: RankingModel, schema: Schema) -> None:
        self._model, self._schema = model, schema
        self._cases = _cases(model.program.mixing.watched(), schema.task_names)
        self._logits: list[list[NDArray[np.float32]]] = [[] for _ in range(1 + len(self._cases))]
        self._rows: list[Batch] = []

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Score a batch, on the model's device, in every state."""
        blocks = self._model.embeddings(batch)
        removals = [
            list[tuple[Watched, tuple[int, ...]]](),
            *(case.removed for case in self._cases),
        ]
        for logits, removed in zip(self._logits, removals, strict=True):
            with without_experts(removed):
                logits.append(self._model.program(blocks).float().cpu().numpy())
        self._rows.append(batch.to("cpu"))

    def result(self) -> tuple[Removal, ...]:
        """The loss in AUC of every binary task, removal by removal; without a task whose AUC is undefined."""
        logits = [np.concatenate(parts) for parts in self._logits]
        return tuple(
            Removal(
                level=case.level,
                expert=case.expert,
                own=case.own,
                losses=tuple(
                    loss
                    for t, task in enumerate(self._schema.task_names)
                    if self._schema.tasks[task].kind == "binary"
                    and (loss := self._loss(t, task, logits[0], without)) is not None
                ),
            )
            for case, without in zip(self._cases, logits[1:], strict=True)
        )

    def _loss(
        self, t: int, task: str, whole_BT: NDArray[np.float32], without_BT: NDArray[np.float32]
    ) -> AucLoss | None:
        found = delong_difference(self._scored(t, whole_BT), self._scored(t, without_BT))
        if found is None:
            return None
        errors = (found.standard_error, found.standard_error_by_group or 0.0)
        return AucLoss(task=task, difference=found.difference, standard_error=max(errors))

    def _scored(self, t: int, logits_BT: NDArray[np.float32]) -> ScoredRows:
        labels, observed, weights, groups = (
            torch.cat(parts).numpy()
            for parts in (
                [item.labels_BT[:, t] for item in self._rows],
                [item.observed_BT[:, t] for item in self._rows],
                [item.weights_B for item in self._rows],
                [item.groups_B for item in self._rows],
            )
        )
        return scored_rows(
            logits_BT[observed, t],
            labels[observed],
            weights_B=weights[observed],
            groups_B=groups[observed],
        )


def _cases(levels: Sequence[Watched], tasks: Sequence[str]) -> list[_Case]:
    cases = [
        _Case(number, e + 1, None, [(item, (e,))])
        for number, item in enumerate(levels, start=1)
        for e, group in enumerate(item.groups)
        if item.gates is not None and group not in tasks
    ]
    for task in tasks:
        owned = [
            (item, tuple(e for e, group in enumerate(item.groups) if group == task))
            for item in levels
            if item.gates is not None
        ]
        removed = [(item, experts) for item, experts in owned if experts]
        if removed:
            cases.append(_Case(None, None, task, removed))
    return cases
