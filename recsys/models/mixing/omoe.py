"""OMoE: a mixture of experts under one gate, the same for all tasks (Ma et al., KDD 2018, section 3.2)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import Gates, mix, shared_input
from recsys.models.owners import Axis, Owned
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, StageConfig


class OMoE(nn.Module):
    """E shared experts under one gate: every task gets sum_i softmax(W x)_i f_i(x) (KDD 2018, eq. 5)."""

    class Config(StageConfig):
        """`experts` MLPs of widths `expert_hidden`, ReLU on every layer."""

        kind: Literal["omoe"] = "omoe"
        experts: int = Field(default=8, ge=1)
        expert_hidden: Hidden = Field(default=(256, 128), min_length=1)
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = len(tasks)
        self.bank = ExpertBank(
            width, config.expert_hidden, experts=config.experts, dropout=config.expert_dropout
        )
        self.gates = Gates(width, tasks=1, experts=config.experts)
        self.width = self.bank.width

    def forward(self, x: Tensor) -> Tensor:
        x_BI = shared_input(x)
        return mix(self.gates(x_BI), self.bank(x_BI)).expand(-1, self.tasks, -1)

    def watched(self) -> tuple[Watched, ...]:
        shared = ("shared",) * self.bank.experts
        return (Watched(bank=self.bank, gates=self.gates, groups=shared, readers=("every task",)),)

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return {}

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """E * M(I; expert_hidden) + I * E."""
        experts = ExpertBank.parameter_count(width, config.expert_hidden, experts=config.experts)
        return experts + Gates.parameter_count(width, tasks=1, experts=config.experts)
