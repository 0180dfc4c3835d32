"""MMoE: experts shared by all tasks, mixed by one softmax gate a task (Ma et al., KDD 2018)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import Gates, mix, shared_input
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, StageConfig


class MMoE(nn.Module):
    """E shared experts and a softmax gate a task: m_t = sum_i softmax(W_t x)_i f_i(x) (KDD 2018, eq. 6 and 7).

    With an input a task [B, T, I], the experts read its mean over tasks and each gate its own task's.
    """

    class Config(StageConfig):
        """`experts` MLPs of widths `expert_hidden`, ReLU on every layer.

        Gates read the input as it is, through an MLP of widths `gate_hidden` if given; `gate_dropout` drops experts
        from a row's mixture in training. `shared_hidden` puts a common MLP before experts and gates, which saves
        work where the input is wide.
        """

        kind: Literal["mmoe"] = "mmoe"
        experts: int = Field(default=8, ge=1)
        expert_hidden: Hidden = Field(default=(256, 128), min_length=1)
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)
        gate_hidden: Hidden = ()
        gate_bias: bool = False
        gate_dropout: float = Field(default=0.0, ge=0, lt=1)
        shared_hidden: Hidden = ()

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.trunk: ExpertBank | None = None
        if config.shared_hidden:
            self.trunk = ExpertBank(width, config.shared_hidden, experts=1)
            width = self.trunk.width
        self.bank = ExpertBank(
            width, config.expert_hidden, experts=config.experts, dropout=config.expert_dropout
        )
        self.gates = Gates(
            width,
            tasks=len(tasks),
            experts=config.experts,
            hidden=config.gate_hidden,
            bias=config.gate_bias,
            dropout=config.gate_dropout,
        )
        self.width = self.bank.width

    def forward(self, x: Tensor) -> Tensor:
        if self.trunk is not None:
            x = self._through_trunk(x)
        return mix(self.gates(x), self.bank(shared_input(x)))

    def watched(self) -> tuple[Watched, ...]:
        shared = ("shared",) * self.bank.experts
        return (Watched(bank=self.bank, gates=self.gates, groups=shared, readers=self.tasks),)

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return below("gates", along(self.gates, tasks))

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """E * M(I; expert_hidden) + T * I * E, plus T * E with biased gates; trunk and gates' MLPs come on top."""
        trunk = ExpertBank.parameter_count(width, config.shared_hidden, experts=1)
        width = (width, *config.shared_hidden)[-1]
        experts = ExpertBank.parameter_count(width, config.expert_hidden, experts=config.experts)
        gates = Gates.parameter_count(
            width,
            tasks=len(tasks),
            experts=config.experts,
            hidden=config.gate_hidden,
            bias=config.gate_bias,
        )
        return trunk + experts + gates

    def _through_trunk(self, x: Tensor) -> Tensor:
        """The common MLP applied to the one input, or to every task's."""
        assert self.trunk is not None
        rows = x if x.dim() == 2 else x.flatten(0, 1)
        hidden: Tensor = self.trunk(rows)[:, 0]
        return hidden if x.dim() == 2 else hidden.view(*x.shape[:2], hidden.shape[-1])
