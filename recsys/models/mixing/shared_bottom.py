"""Shared-Bottom: one MLP for all tasks (Caruana, 1997)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import shared_input
from recsys.models.owners import Axis, Owned
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, StageConfig


class SharedBottom(nn.Module):
    """One MLP shared by all tasks: MMoE with a single expert and nothing to choose."""

    class Config(StageConfig):
        """`hidden` widths of the MLP; `dropout` after each of its layers."""

        kind: Literal["shared_bottom"] = "shared_bottom"
        hidden: Hidden = Field(default=(256, 128), min_length=1)
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = len(tasks)
        self.bank = ExpertBank(width, config.hidden, experts=1, dropout=config.dropout)
        self.width = self.bank.width

    def forward(self, x: Tensor) -> Tensor:
        out_B1H: Tensor = self.bank(shared_input(x))
        return out_B1H.expand(-1, self.tasks, -1)

    def watched(self) -> tuple[Watched, ...]:
        return (Watched(bank=self.bank, gates=None, groups=("shared",)),)

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return {}

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """M(width; hidden)."""
        return ExpertBank.parameter_count(width, config.hidden, experts=1)
