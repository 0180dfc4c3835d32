"""AITM: each step of a funnel learns from what the step before hands on (Xi et al., KDD 2021).

Axes: **B** rows, **T** tasks, **H** width of a representation, **V** the two values a step attends to.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.models.experts import ExpertBank
from recsys.models.heads.towers import base_rate_logit, output_layer, parents_of, projected
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.stages import Hidden, StageConfig
from recsys.schema_sections import Task


class AITM(nn.Module):
    """Logits [B, T] of towers of which each step of the funnel attends to what its parent hands on.

    logit_t = w_t z_t + b_t with z_t = attention over {transfer_t(z_parent), q_t}, q_t the task's tower; z_t = q_t for a
    task without `given`, and several tasks may have one parent. A transfer is Lin -> ReLU -> Dropout, one a step. The
    attention's projections h are shared by all steps: shares softmax(<h_1(u), h_2(u)> / sqrt(H)) of the values h_3(u).

    No product of probabilities: a task's own logit is its joint one, of its label on every row where that is observed.
    Nothing holds it at or below its parent's but the labels and the objective's `order_penalty`, the paper's. A server
    holds a child's probability at its parent's, and reports hold the conditional one just below 1.

    Raises ConfigError where no task has `given`.
    """

    class Config(StageConfig):
        """`hidden` widths of each tower, the last one also a transfer's; `dropout` after each of their layers."""

        kind: Literal["aitm"] = "aitm"
        hidden: Hidden = Field(default=(64,), min_length=1)
        dropout: float = Field(default=0.0, ge=0, lt=1)

    keeps_order: ClassVar[bool] = False

    def __init__(self, config: Config, *, width: int, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.parents = parents_of(tasks)
        self.kinds = tuple(task.kind for task in tasks.values())
        steps = [t for t, parent in enumerate(self.parents) if parent is not None]
        if not steps:
            raise ConfigError(
                "model.heads (aitm): no task has given, so there is no funnel to hand on along; "
                'name each step\'s parent under [tasks], or take kind = "towers"'
            )
        self.bank = ExpertBank(width, config.hidden, experts=len(tasks), dropout=config.dropout)
        self.transfers = nn.ModuleDict(
            {
                str(t): ExpertBank(
                    self.bank.width, (self.bank.width,), experts=1, dropout=config.dropout
                )
                for t in steps
            }
        )
        self.attention = StepAttention(self.bank.width)
        self.weight, self.bias = output_layer(len(tasks), self.bank.width)

    def forward(self, x_BTH: Tensor) -> Tensor:
        own = self.bank(x_BTH).unbind(1)
        states: dict[int, Tensor] = {}

        def state(t: int) -> Tensor:
            if t not in states:
                parent = self.parents[t]
                states[t] = own[t]
                if parent is not None:
                    handed_on_BH = self.transfers[str(t)](state(parent))[:, 0]
                    states[t] = self.attention(torch.stack([handed_on_BH, own[t]], dim=1))
            return states[t]

        z_BTH = torch.stack([state(t) for t in range(len(own))], dim=1)
        return projected(z_BTH, self.weight, self.bias)

    @torch.no_grad()
    def initialize_output_bias(self, means: Sequence[float]) -> None:
        """Start every task at its base rate over all rows. `means`: mean label a task."""
        for t, (kind, mean) in enumerate(zip(self.kinds, means, strict=True)):
            self.bias[t] = base_rate_logit(mean) if kind == "binary" else mean

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        found = below("bank", along(self.bank, tasks))
        found |= {"weight": Owned((tasks,)), "bias": Owned((tasks,))}
        for place, transfer in self.transfers.items():
            child, parent = int(place), self.parents[int(place)]
            assert parent is not None
            # What it reads is its parent's.
            step = (tasks[child] + tasks[parent],)
            for name in transfer.state_dict():
                known_as = f"transfers.{tasks[child][0].task}.{name}"
                found[f"transfers.{place}.{name}"] = Owned((step,), known_as)
        return found

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Mapping[str, Task]) -> int:
        """T * M(width; hidden.., 1) of the towers, (k + 1) * k a step, 3 k^2 of the attention; k the last width."""
        k = config.hidden[-1]
        towers = ExpertBank.parameter_count(width, (*config.hidden, 1), experts=len(tasks))
        steps = sum(task.given is not None for task in tasks.values())
        return towers + steps * (k + 1) * k + 3 * k * k


class StepAttention(nn.Module):
    """Attention over what a step was handed on and its own value, [B, V, H] -> [B, H]; no biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, width, width))
        for projection in self.weight:
            nn.init.xavier_uniform_(projection)

    def forward(self, u_BVH: Tensor) -> Tensor:
        weights_BV = self.weights(u_BVH).to(u_BVH.dtype)
        mixed_BH: Tensor = (weights_BV[:, :, None] * F.linear(u_BVH, self.weight[2])).sum(dim=1)
        return mixed_BH

    def weights(self, u_BVH: Tensor) -> Tensor:
        """Shares of the two values, [B, V]; they sum to 1."""
        products_BVH = F.linear(u_BVH, self.weight[0]) * F.linear(u_BVH, self.weight[1])
        scores_BV: Tensor = products_BVH.float().sum(dim=2) * u_BVH.shape[2] ** -0.5
        return scores_BV.softmax(dim=1)
