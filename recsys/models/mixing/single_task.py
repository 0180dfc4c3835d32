"""Single-task: nothing is shared behind the embeddings. What every multi-task model has to beat."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.owners import Axis, Owned, along
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, StageConfig


class SingleTask(nn.Module):
    """One MLP a task on the shared embeddings, and no other sharing.

    For models that share nothing at all, train one experiment a task.
    """

    class Config(StageConfig):
        """`hidden` widths of each task's MLP; `dropout` after each of its layers."""

        kind: Literal["single_task"] = "single_task"
        hidden: Hidden = Field(default=(256, 128), min_length=1)
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.bank = ExpertBank(width, config.hidden, experts=len(tasks), dropout=config.dropout)
        self.width = self.bank.width

    def forward(self, x: Tensor) -> Tensor:
        x_BTH: Tensor = self.bank(x)
        return x_BTH

    def watched(self) -> tuple[Watched, ...]:
        return (Watched(bank=self.bank, gates=None, groups=self.tasks),)

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return along(self, tasks)

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """T * M(width; hidden)."""
        return ExpertBank.parameter_count(width, config.hidden, experts=len(tasks))
