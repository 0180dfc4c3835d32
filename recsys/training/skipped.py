"""Steps that were skipped because their loss or gradient was not finite: `skipped_steps.jsonl` in the run.

One JSON object a line: the step, the position of its batch in the feed, what was not finite, and the keys of all rows
of the batch. The file is part of how far a run is: a training that goes on, or back to a checkpoint, passes over the
batches that it lists as if they had never been there.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys.errors import TrainingError
from recsys.feed import Position
from recsys.ranks import is_first, on_first
from recsys.training.journal import read_records, write_records

logger = logging.getLogger(__name__)

_SHOWN_ROW_KEYS = 5


@dataclass(frozen=True)
class UnsoundStep:
    """A step whose loss or gradient is not finite. `row_keys` are the batch's, of the rows of all ranks."""

    step: int
    position: Position
    loss_by_task: Mapping[str, float]
    gradient_norm: float
    row_keys: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        losses = {name: _number(loss) for name, loss in self.loss_by_task.items()}
        found = {"loss_by_task": losses, "gradient_norm": _number(self.gradient_norm)}
        return {"step": self.step, **asdict(self.position), **found, "row_keys": [*self.row_keys]}

    def render(self) -> str:
        losses = ", ".join(f"{name} {loss:.4g}" for name, loss in self.loss_by_task.items())
        keys = ", ".join(map(str, self.row_keys[:_SHOWN_ROW_KEYS]))
        return (
            f"step {self.step}: the loss or its gradient is not finite (loss by task: {losses}; gradient norm "
            f"{self.gradient_norm:.4g}; {len(self.row_keys)} rows, the first with row keys {keys})"
        )


class SkippedSteps:
    """The skipped steps of a run, the same on all ranks, and how many there may be."""

    def __init__(self, file: Path, *, budget: int) -> None:
        self._file = file
        self._budget = budget
        self.steps: frozenset[int] = on_first(lambda: frozenset(_skipped(read_records(file))))

    def add(self, found: UnsoundStep) -> None:
        """Skip one more, which the file knows when this returns. Raises TrainingError when that is too many."""
        before = len(self.steps)
        within = before < self._budget
        if is_first():
            kept = [item for item in read_records(self._file) if item["step"] != found.step]
            write_records(self._file, [*kept, found.to_json() | {"skipped": within}])
        if not within:
            raise TrainingError(
                f"{found.render()}; {before} steps were skipped for that before, as many as train.max_skipped_steps "
                f"allows; lower the learning rates, clip gradients, or check the rows that {self._file} lists; "
                f"checkpoints under {self._file.parent / 'checkpoints'} are from before"
            )
        self.steps |= {found.step}
        logger.warning("train.skipped_step because='%s' file=%s", found.render(), self._file)


def _skipped(records: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in records if record["skipped"]]


def _number(value: float) -> float | str:
    """JSON knows no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
