"""Which dense parameters of an old model a new one goes on with: those of the same name, shape and meaning.

A name and a shape alone would let a first layer go on whose inputs stand in another order. So a stage of another kind
begins anew, as does what reads inputs where these differ. Where a parameter has parts of tasks (`recsys.models.owners`)
each part goes where its owners are in the new model, by their names: a part of a new task begins anew, that of a task
that is gone is dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from recsys.models import ModelConfig, Program, build_program, input_layout
from recsys.models.owners import Axis, Label, Owned
from recsys.schema import Schema
from recsys.training.moved_parts import Moved, Places

_STAGES = ("bottom", "mixing", "heads")
_WHOLE = Owned(())


@dataclass(frozen=True)
class Parts:
    """Parts of a kept parameter that begin anew, and those of the old one that are dropped: whose, and why."""

    fresh: Mapping[str, str]
    dropped: Mapping[str, str]


@dataclass(frozen=True)
class Kept:
    """Names of parameters and buffers: those kept, and of the others why each begins anew; those of the old alone.

    `parts` tells of those that are kept in part, or that leave parts of the old one behind; `moved` is what is taken.
    """

    kept: tuple[str, ...]
    parts: Mapping[str, Parts]
    fresh: Mapping[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    moved: tuple[Moved, ...]

    @property
    def in_part(self) -> list[str]:
        return [name for name, item in self.parts.items() if item.fresh]


@dataclass(frozen=True)
class Asked:
    """What a model was asked for: the configuration of its architecture and the schema."""

    model: ModelConfig
    schema: Schema


def kept_parameters(
    program: Program, stored: Mapping[str, Tensor], *, old: Asked, new: Asked
) -> Kept:
    """What a new program keeps of the stored parameters and buffers of an old one."""
    rules = _Rules(old, new, width=program.bottom.width)
    was = _named(stored, build_program(old.schema, old.model, seed=0).owned())
    now = _named(program.state_dict(), program.owned())
    reasons = {name: rules.reason(name, was[name], now[name]) for name in now if name in was}
    kept = [name for name, reason in reasons.items() if reason is None]
    parts = {name: rules.parts(was[name], now[name]) for name in kept}
    return Kept(
        tuple(kept),
        {name: item for name, item in parts.items() if item.fresh or item.dropped},
        {name: reason for name, reason in reasons.items() if reason is not None},
        tuple(name for name in now if name not in was),
        tuple(name for name in was if name not in now),
        tuple(rules.moved(was[name], now[name]) for name in kept),
    )


@dataclass(frozen=True)
class _Stored:
    """A parameter or buffer in the state of one of the two models: its key, its shape, and whose its parts are."""

    key: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def shape_of_a_part(self) -> tuple[int, ...]:
        runs = [size // len(axis) for size, axis in zip(self.shape, self.axes, strict=False)]
        return (*runs, *self.shape[len(self.axes) :])

    def places(self, labels: Sequence[Sequence[Label]]) -> Places:
        """Where parts of these owners stand."""
        indices = tuple(
            tuple(axis.index(label) for label in wanted)
            for axis, wanted in zip(self.axes, labels, strict=True)
        )
        return Places(self.key, tuple(len(axis) for axis in self.axes), indices)


def _named(state: Mapping[str, Tensor], owned: Mapping[str, Owned]) -> dict[str, _Stored]:
    """What a state holds, under the names that old and new models know it by."""
    items = {key: owned.get(key, _WHOLE) for key in state}
    return {
        item.known_as or key: _Stored(key, tuple(state[key].shape), item.axes)
        for key, item in items.items()
    }


@dataclass(frozen=True)
class _Rules:
    """Why what has one name may not mean the same. `width` is that of the bottom's output."""

    old: Asked
    new: Asked
    width: int

    def reason(self, name: str, was: _Stored, now: _Stored) -> str | None:
        """Why all of a parameter begins anew, if it does."""
        stage = name.partition(".")[0]
        kinds = [_kind(item.model, stage) for item in (self.old, self.new)]
        if kinds[0] != kinds[1]:
            return f"{stage} of kind {kinds[1]}, was {kinds[0]}"
        if len(was.axes) != len(now.axes):
            return "its parts are not those of what they were"
        if was.shape_of_a_part != now.shape_of_a_part:
            return f"shape {_shape(now)}, was {_shape(was)}"
        reads_inputs = stage == "bottom" or (stage == "mixing" and self.width in now.shape)
        if reads_inputs and self._inputs_differ:
            return "the inputs are others, or in another order"
        if not all(self.common(was, now)):
            return "; ".join(dict.fromkeys(self.parts(was, now).fresh.values()))
        return None

    def parts(self, was: _Stored, now: _Stored) -> Parts:
        """Which parts begin anew or are dropped, where their parameter does not begin anew as a whole."""
        fresh, dropped = dict[str, str](), dict[str, str]()
        for before, after, common in zip(was.axes, now.axes, self.common(was, now), strict=True):
            fresh |= {_told(item): self._why_fresh(item) for item in after if item not in common}
            gone = [item for item in before if item not in after]
            dropped |= {_told(item): self._why_dropped(item) for item in gone}
        return Parts(fresh, dropped)

    def moved(self, was: _Stored, now: _Stored) -> Moved:
        common = self.common(was, now)
        return Moved(now.places(common), was.places(common))

    def common(self, was: _Stored, now: _Stored) -> list[list[Label]]:
        """For each axis the labels that mean the same in both models, in the new one's order."""
        return [
            [item for item in after if item in before and not self._changed & _tasks(item)]
            for before, after in zip(was.axes, now.axes, strict=True)
        ]

    def _why_fresh(self, label: Label) -> str:
        for task in sorted(_tasks(label) & self._changed):
            return self._change(task)
        return "a new expert or group"

    def _why_dropped(self, label: Label) -> str:
        for task in sorted(_tasks(label) - self.new.schema.tasks.keys()):
            return f"task {task} is gone"
        return "an expert or group that is gone"

    @property
    def _changed(self) -> frozenset[str]:
        """Tasks of the new model that the old one does not have, or has as something else."""
        was, now = self.old.schema.tasks, self.new.schema.tasks
        return frozenset(
            name
            for name, task in now.items()
            if name not in was or (was[name].kind, was[name].given) != (task.kind, task.given)
        )

    def _change(self, name: str) -> str:
        if name not in self.old.schema.tasks:
            return f"task {name} is new"
        was, now = self.old.schema.tasks[name], self.new.schema.tasks[name]
        if was.kind != now.kind:
            return f"task {name} of kind {now.kind}, was {was.kind}"
        return f"task {name} given {now.given or 'nothing'}, was given {was.given or 'nothing'}"

    @property
    def _inputs_differ(self) -> bool:
        was, now = input_layout(self.old.schema), input_layout(self.new.schema)
        # Dictionaries that differ in their order are equal.
        return was != now or list(was.sequences) != list(now.sequences)


def _kind(model: ModelConfig, stage: str) -> str:
    assert stage in _STAGES
    return str(getattr(model, stage).kind)


def _tasks(label: Label) -> frozenset[str]:
    return frozenset(owner.task for owner in label if owner.task is not None)


def _told(label: Label) -> str:
    return " on ".join(map(str, label))


def _shape(stored: _Stored) -> str:
    return "x".join(map(str, stored.shape)) or "one number"
