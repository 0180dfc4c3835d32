"""The masked multi-task loss, and the penalty on a funnel out of order.

Axes: **B** rows, **T** tasks, **S** training steps, **G** tasks with `given`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import ConfigError, nearest
from recsys.experiment import ObjectiveConfig
from recsys.models.heads.towers import parents_of
from recsys.ranks import add_up
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
    row where it is observed, not only where its parent happened (ESMM, Ma et al., SIGIR 2018), and where `order` is
    given that penalty is one more term of loss_bt.
    """

    task_weights_T: Tensor
    binary_index: Tensor
    regression_index: Tensor

    def __init__(
        self,
        task_weights: tuple[float, ...],
        *,
        regressions: tuple[bool, ...],
        order: "OrderPenalty | None" = None,
    ) -> None:
        super().__init__()
        assert len(task_weights) == len(regressions)
        self.tasks = len(task_weights)
        self.order = order
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
        weight_T = self.weight_of(observed_BT, weights_B)
        own = self.share(logits_BT, labels_BT, observed_BT, weights_B, weight_T=weight_T)
        # Of the rows of all ranks: a mean of their means would be another number.
        return self.loss(add_up(own.by_task_T), weight_T)

    def weight_of(self, observed_BT: Tensor, weights_B: Tensor) -> Tensor:
        """Each task's weight of observed rows, over the rows of all ranks, [T]."""
        return add_up((observed_BT * weights_B.unsqueeze(1)).sum(dim=0))

    def share(
        self,
        logits_BT: Tensor,
        labels_BT: Tensor,
        observed_BT: Tensor,
        weights_B: Tensor,
        *,
        weight_T: Tensor,
    ) -> Loss:
        """What some rows of a batch add to its loss, where `weight_T` is the whole batch's."""
        used_BT = observed_BT * weights_B.unsqueeze(1)
        logits_BT = logits_BT.float()
        losses_BT = self._losses(logits_BT, labels_BT)
        if self.order is not None:
            losses_BT = losses_BT + self.order(logits_BT, observed_BT)
        return self.loss((used_BT * losses_BT).sum(dim=0) / weight_T.clamp(min=1.0), weight_T)

    def loss(self, by_task_T: Tensor, weight_T: Tensor) -> Loss:
        """The weighted sum of the tasks' losses, with what it is made of."""
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


class OrderPenalty(nn.Module):
    """By how much each step of a funnel is likelier than its parent: alpha * max(p_child - p_parent, 0), [B, T].

    The label constraint of AITM (Xi et al., KDD 2021). It is 0 where the order holds, in tasks without a parent, and
    where the parent is not observed: there nobody taught it what the child would be held against. Its gradient draws
    the child down and the parent up. As a term of the child's loss it counts in the rows where the child is observed,
    under the child's weight, and a method that balances tasks sees it as the child's.
    """

    child_index: Tensor
    parent_index: Tensor

    def __init__(self, parents: Sequence[int | None], *, alpha: float) -> None:
        super().__init__()
        steps = [(child, parent) for child, parent in enumerate(parents) if parent is not None]
        self.alpha = alpha
        for name, column in (("child_index", 0), ("parent_index", 1)):
            index_G = torch.tensor([step[column] for step in steps], dtype=torch.int64)
            self.register_buffer(name, index_G, persistent=False)

    def forward(self, logits_BT: Tensor, observed_BT: Tensor) -> Tensor:
        child_BG, parent_BG = (
            logits_BT[:, index_G].sigmoid() for index_G in (self.child_index, self.parent_index)
        )
        above_BG = torch.relu(child_BG - parent_BG) * observed_BT[:, self.parent_index]
        return torch.zeros_like(logits_BT).index_copy(1, self.child_index, self.alpha * above_BG)


def build_objective(schema: Schema, section: ObjectiveConfig) -> Objective:
    """The objective of a schema's tasks; a task that has no weight in the section weighs 1. Raises ConfigError."""
    weights, alpha = section.weights, section.order_penalty
    for name in weights:
        if name not in schema.tasks:
            raise ConfigError(f"objective.weights: no task {name!r}{nearest(name, schema.tasks)}")
    return Objective(
        tuple(float(weights.get(name, 1.0)) for name in schema.task_names),
        regressions=tuple(task.kind == "regression" for task in schema.tasks.values()),
        order=OrderPenalty(parents_of(schema.tasks), alpha=alpha) if alpha else None,
    )
