"""AdaTT: every task fuses the experts of all tasks and keeps a direct way to its own (Li et al., KDD 2023)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import SelectiveGates, mix, with_shared
from recsys.models.groups import Groups, TaskExperts, expert_groups
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.probe import Watched
from recsys.models.stages import Levels, StageConfig


class AdaTT(nn.Module):
    """Adaptive task-to-task fusion in levels: f_u = sum_k softmax(W_u f_u + b)_k e_k + sum_i v_u,i e_u,i.

    Each task is a unit with experts of its own; the first sum runs over the experts of all units, the second, the
    native residual, over the unit's own, with learned weights v that no input changes (1 where every unit has one
    expert). Without shared experts this is AdaTT-sp; with them one more unit, which no task reads directly, and which
    at the last level only offers its experts.
    """

    class Config(StageConfig):
        """`task_experts` of each task's own, one number or one by task's name, and `shared_experts` a level.

        `levels`: one list of an expert's widths a level. `native_residual` is the direct way to a task's own experts.
        """

        kind: Literal["adatt"] = "adatt"
        task_experts: TaskExperts = 2
        shared_experts: int = Field(default=0, ge=0)
        levels: Levels = ((256,), (128,))
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)
        native_residual: bool = True

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        groups = expert_groups(config.task_experts, config.shared_experts, tasks)
        self.levels = nn.ModuleList()
        for level, hidden in enumerate(config.levels):
            last = level == len(config.levels) - 1
            self.levels.append(
                FusionLevel(
                    width,
                    hidden,
                    groups=groups,
                    fusing=_fusing(groups, last=last),
                    dropout=config.expert_dropout,
                    native_residual=config.native_residual,
                )
            )
            width = hidden[-1]
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        state = with_shared(x)
        for level in self.levels:
            state = level(state)
        return state

    def watched(self) -> tuple[Watched, ...]:
        return tuple(
            Watched(
                bank=level.bank,
                gates=level.gates,
                groups=level.groups.labels,
                readers=level.groups.names[: level.gates.gates],
                native=level.native_residual,
            )
            for level in self.levels
            if isinstance(level, FusionLevel)
        )

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return {
            name: item
            for level, fusion in enumerate(self.levels)
            if isinstance(fusion, FusionLevel)
            for name, item in below(f"levels.{level}", fusion.owned(tasks)).items()
        }

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """A level of input width d: M * M(d; hidden) + U * (d + 1) * M, and v of the fusing units."""
        groups = expert_groups(config.task_experts, config.shared_experts, tasks)
        total = 0
        for level, hidden in enumerate(config.levels):
            fusing = _fusing(groups, last=level == len(config.levels) - 1)
            total += ExpertBank.parameter_count(width, hidden, experts=groups.experts)
            total += SelectiveGates.parameter_count(
                width, choices=[range(groups.experts)] * fusing, bias=True
            )
            if config.native_residual and not _one_each(groups):
                total += sum(groups.sizes[:fusing])
            width = hidden[-1]
        return total


class FusionLevel(nn.Module):
    """One level's fusion units: [B, I], or a state a unit [B, U, I] -> the fusing units' states [B, G, H]."""

    native_index: Tensor

    def __init__(
        self,
        width: int,
        hidden: tuple[int, ...],
        *,
        groups: Groups,
        fusing: int,
        dropout: float,
        native_residual: bool,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.bank = ExpertBank(
            width, hidden, experts=groups.experts, inputs=groups.owners, dropout=dropout
        )
        self.gates = SelectiveGates(
            width,
            choices=[range(groups.experts)] * fusing,
            experts=groups.experts,
            inputs=range(fusing),
            bias=True,
        )
        owned = [(unit, e) for unit in range(fusing) for e in groups.members(unit)]
        places = [unit * groups.experts + e for unit, e in owned]
        index = torch.tensor(places, dtype=torch.int64)
        self.register_buffer("native_index", index, persistent=False)
        # Where all experts are shared no unit has a way to its own.
        self.native_residual = native_residual and bool(owned)
        self.native_gate: nn.Parameter | None = None
        if self.native_residual and not _one_each(groups):
            bounds = torch.tensor([groups.sizes[unit] ** -0.5 for unit, _ in owned])
            self.native_gate = nn.Parameter((2 * torch.rand(len(owned)) - 1) * bounds)

    def forward(self, x: Tensor) -> Tensor:
        experts_BMH = self.bank(x)
        weights_BGM = self.gates(x)
        if self.native_residual:
            # Both sums over experts as one product.
            weights_BGM = weights_BGM + self._native()
        return mix(weights_BGM, experts_BMH)

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        """Whose the parts of the parameters are; those of the residual's weights are their experts'."""
        units, experts = self.groups.owned(tasks)
        found = below("bank", along(self.bank, experts))
        found |= below("gates", self.gates.owned(units[: self.gates.gates], experts))
        if self.native_gate is not None:
            found["native_gate"] = Owned((experts[: len(self.native_index)],))
        return found

    def _native(self) -> Tensor:
        """The residual's weights [G, M], zero for other units' experts."""
        own: Tensor = (
            self.gates.weight.new_ones(len(self.native_index))
            if self.native_gate is None
            else self.native_gate
        )
        native = own.new_zeros(self.gates.gates * self.groups.experts)
        return native.index_copy(0, self.native_index, own).view(self.gates.gates, -1)


def _fusing(groups: Groups, *, last: bool) -> int:
    """How many units have a state behind a level: the tasks, and the shared unit where a level follows."""
    return len(groups.sizes) - (last or groups.sizes[-1] == 0)


def _one_each(groups: Groups) -> bool:
    return all(size == 1 for size in groups.sizes[:-1]) and groups.sizes[-1] in (0, 1)
