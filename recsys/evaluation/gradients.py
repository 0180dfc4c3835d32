"""Each task's gradient on the parameters it shares with others: do tasks pull the same way, and who pulls hardest?

The tables take no part: their gradient is an update. Axes: **B** rows, **T** tasks, **E** experts, **P** parameters,
**S** batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.diagnosis import SHARED
from recsys.models import RankingModel
from recsys.models.probe import Watched
from recsys.schema import Schema


@dataclass(frozen=True, eq=False)
class TaskGradients:
    """Gradients of the tasks' losses, NaN where a task had no label in a batch.

    `cosine_STT` over the entries that both tasks reach, NaN where there are none. `norm_T`: mean over batches of the
    norm on entries that another task reaches too. `expert_norms` by watched level: mean norm [T, E] on each expert's
    parameters. Of each task's own experts, NaN where it has none: `supply_T`, their root mean square gradient beside
    that of the shared ones, of all losses together; `reach_T`, the same of the task's own loss alone; and `signal_T`,
    the norm of their mean gradient beside its deviation over batches.
    """

    cosine_STT: Tensor
    norm_T: Tensor
    expert_norms: tuple[Tensor, ...]
    supply_T: Tensor
    reach_T: Tensor
    signal_T: Tensor


def task_gradients(
    model: RankingModel,
    batches: Sequence[Batch],
    schema: Schema,
    *,
    weights: Mapping[str, float],
) -> TaskGradients:
    """The gradients on bottom and mixing of each task's weighted mean loss. Nothing of the model is updated."""
    assert batches
    parameters = [
        item
        for stage in (model.program.bottom, model.program.mixing)
        if isinstance(stage, nn.Module)
        for item in stage.parameters()
        if item.requires_grad
    ]
    sums = _Sums(_places(model.program.mixing.watched(), parameters), schema.task_names)
    for batch in batches:
        sums.add(_gradients(model, batch, schema, parameters, weights))
    return sums.result()


@dataclass(frozen=True)
class _Place:
    """Where a level's experts lie among the flattened parameters: runs (start, stop) of E equal parts each."""

    groups: tuple[str, ...]
    runs: tuple[tuple[int, int], ...]

    def squares(self, value_P: Tensor) -> Tensor:
        """The sum of squares of each expert's part, [..., E] of [..., P]."""
        parts = [
            value_P[..., start:stop]
            .reshape(*value_P.shape[:-1], len(self.groups), -1)
            .square()
            .sum(dim=-1)
            for start, stop in self.runs
        ]
        return torch.stack(parts).sum(dim=0)

    @property
    def parameters(self) -> int:
        """Of one expert."""
        return sum(stop - start for start, stop in self.runs) // len(self.groups)


@dataclass
class _Sums:
    places: tuple[_Place, ...]
    tasks: tuple[str, ...]
    cosines: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    experts: list[list[Tensor]] = field(default_factory=list)
    totals: list[list[Tensor]] = field(default_factory=list)
    mean_P: Tensor | None = None

    def add(self, gradient_TP: Tensor) -> None:
        # A task without labels in the batch has NaN in its row.
        known_TP = gradient_TP.nan_to_num()
        reached_TP = (known_TP != 0).to(known_TP.dtype)
        squares_TT = known_TP.square() @ reached_TP.T
        missing_T = gradient_TP.isnan().any(dim=1)
        cosine_TT = (known_TP @ known_TP.T) / (squares_TT * squares_TT.T).sqrt()
        cosine_TT[missing_T] = torch.nan
        cosine_TT[:, missing_T] = torch.nan
        self.cosines.append(cosine_TT.cpu())
        both_P = reached_TP.sum(dim=0) > 1
        self.norms.append((known_TP * both_P).norm(dim=1).masked_fill(missing_T, torch.nan).cpu())
        self.experts.append([place.squares(known_TP).sqrt().cpu() for place in self.places])
        total_P = known_TP.sum(dim=0)
        self.totals.append([place.squares(total_P).cpu() for place in self.places])
        self.mean_P = total_P if self.mean_P is None else self.mean_P + total_P

    def result(self) -> TaskGradients:
        assert self.mean_P is not None
        batches = len(self.cosines)
        mean_P = self.mean_P / batches
        means = [place.squares(mean_P).cpu() for place in self.places]
        totals = [
            torch.stack([batch[level] for batch in self.totals]).mean(dim=0)
            for level in range(len(self.places))
        ]
        norms = tuple(
            torch.stack([batch[level] for batch in self.experts]).mean(dim=0)
            for level in range(len(self.places))
        )
        own = [self._of_group(task, totals) for task in self.tasks]
        signal = []
        for task, (square, count) in zip(self.tasks, own, strict=True):
            mean_square = self._of_group(task, means)[0]
            spread = square - mean_square
            signal.append((mean_square / spread) ** 0.5 if count and spread > 0 else torch.nan)
        return TaskGradients(
            cosine_STT=torch.stack(self.cosines),
            norm_T=torch.stack(self.norms).nanmean(dim=0),
            expert_norms=norms,
            supply_T=torch.tensor([self._beside_shared(task, totals) for task in self.tasks]),
            reach_T=torch.tensor(
                [
                    self._beside_shared(task, [norm_TE[t].square() for norm_TE in norms])
                    for t, task in enumerate(self.tasks)
                ]
            ),
            signal_T=torch.tensor(signal),
        )

    def _beside_shared(self, task: str, squares: Sequence[Tensor]) -> float:
        """Root mean square of a task's own experts beside that of the shared ones; NaN where either has none."""
        own, own_count = self._of_group(task, squares)
        shared, shared_count = self._of_group(SHARED, squares)
        if not own_count or not shared_count or not shared:
            return math.nan
        return math.sqrt(own / own_count / (shared / shared_count))

    def _of_group(self, name: str, squares: Sequence[Tensor]) -> tuple[float, int]:
        """Sum of squares over a group's experts of all levels, and how many parameters these have."""
        total, count = 0.0, 0
        for place, square_E in zip(self.places, squares, strict=True):
            for e, group in enumerate(place.groups):
                if group == name:
                    total += float(square_E[e])
                    count += place.parameters
        return total, count


def _gradients(
    model: RankingModel,
    batch: Batch,
    schema: Schema,
    parameters: Sequence[Tensor],
    weights: Mapping[str, float],
) -> Tensor:
    """Each task's gradient on the flattened parameters, [T, P]; a row of NaN for a task without labels."""
    with torch.no_grad():
        blocks = model.embeddings(batch)
    with torch.enable_grad():
        logits_BT = model.program(blocks).float()
        rows = [
            _flat_gradient(loss, parameters)
            for loss in (
                _loss(logits_BT[:, t], batch, t, schema.tasks[task].kind == "regression")
                * weights.get(task, 1.0)
                for t, task in enumerate(schema.task_names)
            )
        ]
    return torch.stack(rows)


def _loss(logit_B: Tensor, batch: Batch, task: int, regression: bool) -> Tensor:
    """Mean loss by sample weight over the rows where the task is observed; NaN without any."""
    label_B = batch.labels_BT[:, task]
    losses_B = (
        F.mse_loss(logit_B, label_B, reduction="none")
        if regression
        else F.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")
    )
    weight_B = batch.observed_BT[:, task] * batch.weights_B
    return (losses_B * weight_B).sum() / weight_B.sum()


def _flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    size = sum(item.numel() for item in parameters)
    if not torch.isfinite(loss):
        return torch.full((size,), torch.nan, device=loss.device)
    found = torch.autograd.grad(
        loss, list(parameters), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([item.flatten() for item in found])


def _places(watched: Sequence[Watched], parameters: Sequence[Tensor]) -> tuple[_Place, ...]:
    starts, start = dict[int, int](), 0
    for item in parameters:
        starts[id(item)] = start
        start += item.numel()
    return tuple(
        _Place(
            level.groups,
            tuple(
                (starts[id(item)], starts[id(item)] + item.numel())
                for item in (*level.bank.weights, *level.bank.biases)
            ),
        )
        for level in watched
    )
