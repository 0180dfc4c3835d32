"""The masked multi-task loss.

Axes: **B** rows, **T** tasks, **S** steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import ConfigError, nearest
from recsys.schema import Schema


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise, each task's mean loss over its own observed rows, and the weight of those rows."""

    total: Tensor
    by_task_T: Tensor
    weight_T: Tensor


def mean_by_task(losses: Sequence[Loss]) -> Tensor:
    """Each task's mean loss over the observed rows of several batches, [T]; 0 where it has none."""
    weight_ST = torch.stack([loss.weight_T for loss in losses])
    by_task_ST = torch.stack([loss.by_task_T for loss in losses])
    return (by_task_ST * weight_ST.clamp(min=1.0)).sum(dim=0) / weight_ST.sum(dim=0).clamp(min=1.0)


class Objective(nn.Module):
    """The weighted sum over tasks of each task's mean loss over the rows that belong to its sample space.

    ```
    L = sum_t w_t * (sum_b observed_bt * weight_b * loss_bt) / max(1, sum_b observed_bt * weight_b)
    ```

    The denominator is the task's own (PLE, Tang et al., RecSys 2020, section 4): one mean over B would weigh a task
    down by how rarely it is observed. Below a total weight of 1 the mean is damped rather than blown up, so sample
    weights should be of order one. The loss is cross-entropy of a binary task's logit and squared error of a
    regression's value. A task with `given` brings the logit of its joint probability and is therefore trained on every
    row where it is observed, not only where its parent happened (ESMM, Ma et al., SIGIR 2018).
    """

    task_weights_T: Tensor
    binary_index: Tensor
    regression_index: Tensor

    def __init__(self, task_weights: tuple[float, ...], *, regressions: tuple[bool, ...]) -> None:
        super().__init__()
        assert len(task_weights) == len(regressions)
        self.tasks = len(task_weights)
        columns = range(self.tasks)
        self.register_buffer("task_weights_T", torch.tensor(task_weights), persistent=False)
        self.register_buffer(
            "binary_index",
            torch.tensor([t for t in columns if not regressions[t]], dtype=torch.int64),
            persistent=False,
        )
        self.register_buffer(
            "regression_index",
            torch.tensor([t for t in columns if regressions[t]], dtype=torch.int64),
            persistent=False,
        )

    def forward(
        self, logits_BT: Tensor, labels_BT: Tensor, observed_BT: Tensor, weights_B: Tensor
    ) -> Loss:
        """The loss in float32 whatever the precision of the logits. A task without observed rows contributes 0."""
        used_BT = observed_BT * weights_B.unsqueeze(1)
        losses_BT = self._losses(logits_BT.float(), labels_BT)
        weight_T = used_BT.sum(dim=0)
        by_task_T = (used_BT * losses_BT).sum(dim=0) / weight_T.clamp(min=1.0)
        return Loss((self.task_weights_T * by_task_T).sum(), by_task_T, weight_T)

    def _losses(self, logits_BT: Tensor, labels_BT: Tensor) -> Tensor:
        # Each loss sees its own columns only: the square of a large binary logit would overflow for nothing.
        losses_BT = torch.zeros_like(logits_BT)
        for index, loss in (
            (self.binary_index, F.binary_cross_entropy_with_logits),
            (self.regression_index, F.mse_loss),
        ):
            if len(index) == self.tasks:
                return loss(logits_BT, labels_BT, reduction="none")
            if len(index):
                values = loss(logits_BT[:, index], labels_BT[:, index], reduction="none")
                losses_BT = losses_BT.index_copy(1, index, values)
        return losses_BT


def build_objective(schema: Schema, weights: dict[str, float]) -> Objective:
    """The objective of a schema's tasks; a task that `weights` does not name weighs 1. Raises ConfigError."""
    for name in weights:
        if name not in schema.tasks:
            raise ConfigError(f"objective.weights: no task {name!r}{nearest(name, schema.tasks)}")
    return Objective(
        tuple(float(weights.get(name, 1.0)) for name in schema.task_names),
        regressions=tuple(task.kind == "regression" for task in schema.tasks.values()),
    )
