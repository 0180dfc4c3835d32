"""Who owns which expert of a level: experts of a task's own beside those that all share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from recsys.errors import ConfigError, nearest
from recsys.models.owners import SHARED, Axis, of_experts


def _form(value: Any) -> str:
    return "by_task" if isinstance(value, Mapping) else "for_all"


_Count = Annotated[int, Field(ge=0)]
# One number for every task, or one by task's name. Told apart by form, so that a message is about the one meant.
TaskExperts = Annotated[
    Annotated[_Count, Tag("for_all")] | Annotated[dict[str, _Count], Tag("by_task")],
    Discriminator(_form),
]


@dataclass(frozen=True)
class Groups:
    """Who owns which expert of a level: experts of each task in the tasks' order, then the shared ones."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def experts(self) -> int:
        return sum(self.sizes)

    @property
    def owners(self) -> tuple[int, ...]:
        """The group of each expert."""
        return tuple(group for group, size in enumerate(self.sizes) for _ in range(size))

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each expert's group."""
        return tuple(self.names[group] for group in self.owners)

    def owned(self, tasks: Axis) -> tuple[Axis, Axis]:
        """Who owns each group, and who owns each expert."""
        groups = (*tasks, SHARED)
        return groups, of_experts(groups, self.sizes)

    def members(self, group: int) -> tuple[int, ...]:
        """The experts of a group."""
        start = [0, *accumulate(self.sizes)][group]
        return tuple(range(start, start + self.sizes[group]))


def expert_groups(task_experts: TaskExperts, shared_experts: int, tasks: Sequence[str]) -> Groups:
    """The groups that a section asks for. Raises ConfigError where a task has no expert to read, or is not one."""
    counts: Mapping[str, int] = (
        dict.fromkeys(tasks, task_experts) if isinstance(task_experts, int) else task_experts
    )
    for name in counts:
        if name not in tasks:
            raise ConfigError(
                f"model.mixing.task_experts names task {name!r}, which the schema does not have{nearest(name, tasks)}"
            )
    for task in tasks:
        if task not in counts:
            raise ConfigError(
                f"model.mixing.task_experts leaves out task {task!r}; give every task its number, 0 for none"
            )
        if counts[task] + shared_experts == 0:
            raise ConfigError(
                f"model.mixing: task {task!r} has no expert of its own and shared_experts is 0; give it at least one"
            )
    return Groups((*tasks, "shared"), (*(counts[task] for task in tasks), shared_experts))
