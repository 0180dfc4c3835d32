"""Whose the parts of a parameter are, so that these can follow their tasks into a model of other tasks.

Parameters are stacked: an index on an axis is a task's, an expert's, a gate's. A stage says which of its parameters
have such axes and who owns each index; what it does not name is shared by all tasks, as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Owner:
    """A task, or nobody in particular (None), and what of theirs: "expert 2", "group funnel"."""

    task: str | None
    what: str = ""

    def __str__(self) -> str:
        task = [] if self.task is None else [f"task {self.task}"]
        return " ".join([*task, *([self.what] if self.what else [])])


# Owners of one index: several where it is between them, as a gate's weight for an expert is.
Label = tuple[Owner, ...]
# Labels of an axis in its order, no two alike. A longer axis gives each of them a run, all of one length.
Axis = tuple[Label, ...]


@dataclass(frozen=True)
class Owned:
    """The labels of a parameter's first axes; the others are no one's.

    `known_as` is the parameter's name where its own one says a task's place among the tasks.
    """

    axes: tuple[Axis, ...]
    known_as: str | None = None


SHARED: Label = (Owner(None, "shared"),)


def of_tasks(tasks: Sequence[str]) -> Axis:
    """The axis that lists tasks."""
    return tuple((Owner(task),) for task in tasks)


def of_experts(groups: Axis, sizes: Sequence[int]) -> Axis:
    """The axis that lists the experts of groups, numbered from 1 in each."""
    return tuple(
        (*group[:-1], replace(group[-1], what=f"{group[-1].what} expert {number}".strip()))
        for group, size in zip(groups, sizes, strict=True)
        for number in range(1, size + 1)
    )


def along(module: nn.Module, axis: Axis) -> dict[str, Owned]:
    """All parameters and buffers of a module whose every first axis is this one."""
    return {name: Owned((axis,)) for name in module.state_dict()}


def below(name: str, owned: Mapping[str, Owned]) -> dict[str, Owned]:
    """What a module of a name says of its parameters, as the module around it says it."""
    return {
        f"{name}.{key}": item
        if item.known_as is None
        else Owned(item.axes, f"{name}.{item.known_as}")
        for key, item in owned.items()
    }
