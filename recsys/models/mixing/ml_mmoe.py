"""ML-MMoE: levels of experts, each expert fed by a gate of its own (a baseline of AdaTT, Li et al., KDD 2023)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import Gates, mix, shared_input
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.probe import Watched
from recsys.models.stages import Levels, StageConfig


class MultiLevelMMoE(nn.Module):
    """MMoE in levels: each expert of a level reads a mixture of the level below, each task one of the last level.

    All gates read the stage's input, never a level's output. With an input a task [B, T, I], experts and inner gates
    read its mean over tasks, the last level's gates each its own task's.
    """

    class Config(StageConfig):
        """`levels` of `experts` MLPs each: one list of widths a level."""

        kind: Literal["ml_mmoe"] = "ml_mmoe"
        experts: int = Field(default=4, ge=1)
        levels: Levels = ((256,), (128,))
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.banks = nn.ModuleList()
        self.gates = nn.ModuleList()
        for level, hidden in enumerate(config.levels):
            last = level == len(config.levels) - 1
            self.banks.append(
                ExpertBank(
                    config.levels[level - 1][-1] if level else width,
                    hidden,
                    experts=config.experts,
                    dropout=config.expert_dropout,
                )
            )
            self.gates.append(
                Gates(width, tasks=len(tasks) if last else config.experts, experts=config.experts)
            )
        self.width = config.levels[-1][-1]

    def forward(self, x: Tensor) -> Tensor:
        x_BI = shared_input(x)
        state = x_BI
        for gates, bank in zip(self.gates[:-1], self.banks[:-1], strict=True):
            state = mix(gates(x_BI), bank(state))
        return mix(self.gates[-1](x), self.banks[-1](state))

    def watched(self) -> tuple[Watched, ...]:
        return tuple(
            Watched(
                bank=bank,
                gates=gates,
                groups=("shared",) * bank.experts,
                readers=self.tasks if gates is self.gates[-1] else _next_level(gates.tasks),
            )
            for bank, gates in zip(self.banks, self.gates, strict=True)
            if isinstance(bank, ExpertBank) and isinstance(gates, Gates)
        )

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return below(f"gates.{len(self.gates) - 1}", along(self.gates[-1], tasks))

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """E * M of every level, I * E * E for each level but the last, I * E * T for that one."""
        widths = (width, *(hidden[-1] for hidden in config.levels))
        experts = sum(
            ExpertBank.parameter_count(fan_in, hidden, experts=config.experts)
            for (fan_in, _), hidden in zip(pairwise(widths), config.levels, strict=True)
        )
        gates = (len(config.levels) - 1) * config.experts + len(tasks)
        return experts + width * config.experts * gates


def _next_level(experts: int) -> tuple[str, ...]:
    return tuple(f"expert {number} above" for number in range(1, experts + 1))
