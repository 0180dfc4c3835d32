"""Predictions and labels of all evaluated rows, gathered batch by batch and rank by rank.

Exact metrics need all rows, so rows are what is kept: 9 bytes a task and 12 for weight and group. Ranks send theirs
to the first one; an average of each rank's AUC would be another number.

Axes: **B** rows, **T** tasks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.measures import AnyArray, BoolArray, Float64Array, Int64Array


@dataclass(frozen=True)
class Outcomes:
    """Predictions and labels of B rows. A task with `given` holds the logit of its joint probability.

    `references` maps a task to another probability for the same rows (an oracle's, or a previous model's), joint too.
    """

    tasks: tuple[str, ...]
    logits_BT: AnyArray
    labels_BT: npt.NDArray[np.float32]
    observed_BT: BoolArray
    weights_B: npt.NDArray[np.float32]
    groups_B: Int64Array
    references: Mapping[str, Float64Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits_BT)

    def logits_of(self, task: str) -> AnyArray:
        return self.logits_BT[:, self.tasks.index(task)]

    def labels_of(self, task: str) -> npt.NDArray[np.float32]:
        return self.labels_BT[:, self.tasks.index(task)]

    def observed_of(self, task: str) -> BoolArray:
        return self.observed_BT[:, self.tasks.index(task)]

    @classmethod
    def concatenate(cls, parts: Iterable[Self]) -> Self:
        """All rows of the parts. The parts must be of the same tasks and references, and there must be one."""
        items = list(parts)
        tasks, names = items[0].tasks, items[0].references.keys()
        assert all(item.tasks == tasks for item in items), "parts of unequal tasks"
        assert all(item.references.keys() == names for item in items), "parts of unequal references"
        return cls(
            tasks,
            np.concatenate([item.logits_BT for item in items]),
            np.concatenate([item.labels_BT for item in items]),
            np.concatenate([item.observed_BT for item in items]),
            np.concatenate([item.weights_B for item in items]),
            np.concatenate([item.groups_B for item in items]),
            {name: np.concatenate([item.references[name] for item in items]) for name in names},
        )


def in_turns(ranks: Iterable[Iterable[Outcomes]]) -> Iterator[Outcomes]:
    """The batches of ranks that took turns, in the order of their turns."""
    for turn in zip(*ranks, strict=True):
        yield from turn


class OutcomeAccumulator:
    """Gathers batches of outcomes. Batches are copied, so a caller may reuse its buffers."""

    def __init__(self, tasks: Iterable[str]) -> None:
        self._tasks = tuple(tasks)
        self._parts: list[Outcomes] = []

    def add(
        self,
        *,
        logits_BT: AnyArray,
        labels_BT: AnyArray,
        observed_BT: AnyArray,
        weights_B: AnyArray,
        groups_B: AnyArray,
        references: Mapping[str, AnyArray] | None = None,
    ) -> None:
        """Add one batch. Logits keep their float type, so that ties stay the ties the model computed."""
        part = Outcomes(
            self._tasks,
            np.array(logits_BT),
            np.array(labels_BT, dtype=np.float32),
            np.array(observed_BT, dtype=np.bool_),
            np.array(weights_B, dtype=np.float32),
            np.array(groups_B, dtype=np.int64),
            {name: np.array(item, np.float64) for name, item in (references or {}).items()},
        )
        rows = len(part.weights_B)
        shapes = {part.logits_BT.shape, part.labels_BT.shape, part.observed_BT.shape}
        assert shapes == {(rows, len(self._tasks))}, shapes
        assert len(part.groups_B) == rows
        assert all(len(item) == rows for item in part.references.values())
        self._parts.append(part)

    def parts(self) -> list[Outcomes]:
        """What was gathered, batch by batch."""
        return self._parts

    def outcomes(self) -> Outcomes:
        """All rows so far. Raises DataError when there are none."""
        if not self._parts:
            raise DataError("evaluation: no rows; name days or splits that hold some")
        # Keep the joined arrays in place of the parts: asking twice must not cost twice.
        self._parts = [Outcomes.concatenate(self._parts)]
        return self._parts[0]
