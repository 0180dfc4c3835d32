"""Task towers and the funnel's algebra: from each task's representation to its logit.

Axes: **B** rows, **T** tasks, **H** width of a representation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.owners import Axis, Owned, along
from recsys.models.stages import Hidden, StageConfig
from recsys.schema_sections import Task

# A mean label is kept this far from 0 and 1 before its logit is taken.
_RATE_MARGIN = 1e-6


class Towers(nn.Module):
    """Logits [B, T] of one tower a task, Lin -> ReLU per hidden layer and Lin to 1; `given` makes it joint.

    ESMM (Ma et al., SIGIR 2018) for a task with `given`: its tower is the conditional logit, its output the logit of
    p(parent) * p(task | parent), so that every impression trains it. Regression: the tower's value.
    """

    class Config(StageConfig):
        """`hidden` widths of each tower, before its output unit."""

        kind: Literal["towers"] = "towers"
        hidden: Hidden = (64,)
        dropout: float = Field(default=0.0, ge=0, lt=1)

    keeps_order: ClassVar[bool] = True

    def __init__(self, config: Config, *, width: int, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.parents = parents_of(tasks)
        self.kinds = tuple(task.kind for task in tasks.values())
        self.bank = (
            ExpertBank(width, config.hidden, experts=len(tasks), dropout=config.dropout)
            if config.hidden
            else None
        )
        self.weight, self.bias = output_layer(len(tasks), (width, *config.hidden)[-1])

    def forward(self, x_BTH: Tensor) -> Tensor:
        return funnel(self.conditional(x_BTH), self.parents)

    def conditional(self, x_BTH: Tensor) -> Tensor:
        """The towers' own outputs [B, T], before the funnel's products; float32 under autocast too."""
        h_BTH = x_BTH if self.bank is None else self.bank(x_BTH)
        return projected(h_BTH, self.weight, self.bias)

    @torch.no_grad()
    def initialize_output_bias(self, means: Sequence[float]) -> None:
        """Start every tower at its base rate. `means`: mean label a task over the same rows.

        The first steps then learn differences between rows instead of the level of the labels.
        """
        assert len(means) == len(self.kinds)
        for t, (kind, parent) in enumerate(zip(self.kinds, self.parents, strict=True)):
            mean = means[t]
            if kind == "binary":
                rate = mean if parent is None else mean / max(means[parent], _RATE_MARGIN)
                mean = base_rate_logit(rate)
            self.bias[t] = mean

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return along(self, tasks)

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Mapping[str, Task]) -> int:
        """T * M(width; hidden.., 1)."""
        return ExpertBank.parameter_count(width, (*config.hidden, 1), experts=len(tasks))


def parents_of(tasks: Mapping[str, Task]) -> tuple[int | None, ...]:
    """The column of each task's `given`, None for a task without."""
    names = list(tasks)
    return tuple(None if task.given is None else names.index(task.given) for task in tasks.values())


def output_layer(tasks: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight [T, H] and bias [T] of one output unit a task."""
    weight = torch.empty(tasks, 1, width)
    for output in weight:
        nn.init.xavier_uniform_(output)
    return nn.Parameter(weight[:, 0]), nn.Parameter(torch.zeros(tasks))


def projected(h_BTH: Tensor, weight_TH: Tensor, bias_T: Tensor) -> Tensor:
    """Each task's output unit, [B, T]; float32 under autocast too."""
    # A logit of 8 significant bits would tie rows that differ.
    return (h_BTH.float() * weight_TH).sum(dim=-1) + bias_T


def base_rate_logit(rate: float) -> float:
    """The logit of a mean label, finite for 0 and 1 too."""
    held = min(max(rate, _RATE_MARGIN), 1 - _RATE_MARGIN)
    return math.log(held / (1 - held))


def funnel(conditional_BT: Tensor, parents: Sequence[int | None]) -> Tensor:
    """Joint logits [B, T] of conditional ones: a task with a parent is the product of all probabilities on its way.

    `parents[t]` is the column of task t's parent. A parent may stand after its child.
    """
    joint: dict[int, Tensor] = {}

    def resolve(t: int) -> Tensor:
        if t not in joint:
            own_B, parent = conditional_BT[:, t], parents[t]
            joint[t] = own_B if parent is None else joint_logit(resolve(parent), own_B)
        return joint[t]

    if all(parent is None for parent in parents):
        return conditional_BT
    return torch.stack([resolve(t) for t in range(len(parents))], dim=1)


def joint_logit(parent_B: Tensor, child_B: Tensor) -> Tensor:
    """Logit of p(parent) * p(child | parent), exact to rounding wherever the inputs lie.

    ESMM (Ma et al., SIGIR 2018, eq. 1). For logits a and b the odds are 1 / (e^-a + e^-b + e^-(a+b)), a sum of
    positive terms: nothing cancels, and no rounded probability meets a logarithm.
    """
    terms = torch.stack([-parent_B, -child_B, -parent_B - child_B])
    return -terms.logsumexp(dim=0)
