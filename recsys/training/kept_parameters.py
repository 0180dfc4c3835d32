"""Which dense parameters of an old model a new one goes on with: those of the same name, shape and meaning.

A name and a shape alone would let a first layer go on whose inputs stand in another order. So a stage of another kind
begins anew, as does what reads inputs where these differ, and all that tasks share where tasks stand in another order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from recsys.experiment import Experiment
from recsys.models import Program, input_layout
from recsys.schema import Schema

_STAGES = ("bottom", "mixing", "heads")


@dataclass(frozen=True)
class Kept:
    """Names of parameters and buffers: those kept, and of the others why each begins anew; those of the old alone."""

    kept: tuple[str, ...]
    fresh: Mapping[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What a model was asked for: a run's experiment and schema."""

    experiment: Experiment
    schema: Schema


def kept_parameters(
    program: Program, stored: Mapping[str, Tensor], *, old: Asked, new: Asked
) -> Kept:
    """What a new program keeps of the stored parameters and buffers of an old one."""
    own = program.state_dict()
    rules = _Rules(old, new, width=program.bottom.width)
    common = [name for name in own if name in stored]
    reasons = {name: rules.reason(name, stored[name], own[name]) for name in common}
    return Kept(
        tuple(name for name in common if reasons[name] is None),
        {name: reason for name, reason in reasons.items() if reason is not None},
        tuple(name for name in own if name not in stored),
        tuple(name for name in stored if name not in own),
    )


@dataclass(frozen=True)
class _Rules:
    """Why parameters of one name and shape may not mean the same. `width` is that of the bottom's output."""

    old: Asked
    new: Asked
    width: int

    def reason(self, name: str, was: Tensor, now: Tensor) -> str | None:
        stage = name.partition(".")[0]
        kinds = [_kind(item.experiment, stage) for item in (self.old, self.new)]
        if kinds[0] != kinds[1]:
            return f"{stage} of kind {kinds[1]}, was {kinds[0]}"
        if was.shape != now.shape:
            return f"shape {_shape(now)}, was {_shape(was)}"
        if self._tasks_moved:
            return "the tasks are others, or in another order"
        if stage == "heads" and self._tasks_differ:
            return "the tasks differ"
        reads_inputs = stage == "bottom" or (stage == "mixing" and self.width in now.shape)
        if reads_inputs and self._inputs_differ:
            return "the inputs are others, or in another order"
        return None

    @property
    def _tasks_moved(self) -> bool:
        """Whether as many tasks are not the same ones: then no shape tells."""
        was, now = self.old.schema.task_names, self.new.schema.task_names
        return len(was) == len(now) and was != now

    @property
    def _tasks_differ(self) -> bool:
        was, now = (
            [(task.kind, task.given) for task in item.schema.tasks.values()]
            for item in (self.old, self.new)
        )
        return was != now

    @property
    def _inputs_differ(self) -> bool:
        was, now = input_layout(self.old.schema), input_layout(self.new.schema)
        # Dictionaries that differ in their order are equal.
        return was != now or list(was.sequences) != list(now.sequences)


def _kind(experiment: Experiment, stage: str) -> str:
    assert stage in _STAGES
    return str(getattr(experiment.model, stage).kind)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
