"""PLE and CGC: experts of a task's own beside shared ones, in levels (Tang et al., RecSys 2020)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import SelectiveGates, mix, with_shared
from recsys.models.groups import Groups, TaskExperts, expert_groups
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, Levels, StageConfig


class PLE(nn.Module):
    """Progressive layered extraction: every task, and what all share, has a state of its own from level to level.

    A task's gate mixes its own and the shared experts, the shared gate all experts of the level; both read their
    stream's previous state (eq. 6 to 8). The last level has no shared gate. With an input a task [B, T, I], the
    shared stream starts from its mean over tasks.
    """

    class Config(StageConfig):
        """`task_experts` of each task's own, one number or one by task's name, and `shared_experts` a level.

        `levels`: one list of an expert's widths a level.
        """

        kind: Literal["ple"] = "ple"
        task_experts: TaskExperts = 2
        shared_experts: int = Field(default=2, ge=0)
        levels: Levels = ((256,), (128,))
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.groups = expert_groups(config.task_experts, config.shared_experts, tasks)
        self.tasks = len(tasks)
        self.banks = nn.ModuleList()
        self.gates = nn.ModuleList()
        for level, hidden in enumerate(config.levels):
            choices = _choices(self.groups, last=level == len(config.levels) - 1)
            self.banks.append(
                ExpertBank(
                    width,
                    hidden,
                    experts=self.groups.experts,
                    inputs=self.groups.owners,
                    dropout=config.expert_dropout,
                )
            )
            self.gates.append(
                SelectiveGates(
                    width,
                    choices=choices,
                    experts=self.groups.experts,
                    inputs=range(len(choices)),
                )
            )
            width = hidden[-1]
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        state = with_shared(x)
        for gates, bank in zip(self.gates, self.banks, strict=True):
            state = mix(gates(state), bank(state))
        return state

    def watched(self) -> tuple[Watched, ...]:
        return tuple(
            Watched(
                bank=bank,
                gates=gates,
                groups=self.groups.labels,
                readers=self.groups.names[: gates.gates],
            )
            for bank, gates in zip(self.banks, self.gates, strict=True)
            if isinstance(bank, ExpertBank) and isinstance(gates, SelectiveGates)
        )

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        streams, experts = self.groups.owned(tasks)
        found = below("banks", along(self.banks, experts))
        for level, gates in enumerate(self.gates):
            assert isinstance(gates, SelectiveGates)
            found |= below(f"gates.{level}", gates.owned(streams[: gates.gates], experts))
        return found

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """A level of input width d: M experts * M(d; hidden) + d * (choices of the tasks' gates and the shared one)."""
        groups = expert_groups(config.task_experts, config.shared_experts, tasks)
        total = 0
        for level, hidden in enumerate(config.levels):
            choices = _choices(groups, last=level == len(config.levels) - 1)
            total += ExpertBank.parameter_count(width, hidden, experts=groups.experts)
            total += SelectiveGates.parameter_count(width, choices=choices)
            width = hidden[-1]
        return total


class CGC(nn.Module):
    """Customized gate control: one level of PLE."""

    class Config(StageConfig):
        """`task_experts` of each task's own, one number or one by task's name, and `shared_experts`."""

        kind: Literal["cgc"] = "cgc"
        task_experts: TaskExperts = 2
        shared_experts: int = Field(default=2, ge=0)
        expert_hidden: Hidden = Field(default=(256, 128), min_length=1)
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.level = PLE(_one_level(config), width=width, tasks=tasks)
        self.width = self.level.width

    def forward(self, x: Tensor) -> Tensor:
        x_BTH: Tensor = self.level(x)
        return x_BTH

    def watched(self) -> tuple[Watched, ...]:
        return self.level.watched()

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return below("level", self.level.owned(tasks))

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """(T * n + s) * M(I; expert_hidden) + T * I * (n + s)."""
        return PLE.parameter_count(_one_level(config), width=width, tasks=tasks)


def _choices(groups: Groups, *, last: bool) -> list[tuple[int, ...]]:
    """What each gate of a level chooses from: each task's, then, below the last level, the shared stream's."""
    shared = groups.members(len(groups.sizes) - 1)
    choices = [(*groups.members(task), *shared) for task in range(len(groups.sizes) - 1)]
    # Without shared experts nobody would read the shared stream.
    return choices if last or not shared else [*choices, tuple(range(groups.experts))]


def _one_level(config: CGC.Config) -> PLE.Config:
    return PLE.Config(
        task_experts=config.task_experts,
        shared_experts=config.shared_experts,
        levels=(config.expert_hidden,),
        expert_dropout=config.expert_dropout,
    )
