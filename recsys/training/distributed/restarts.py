"""A training whose workers may be lost: what started it starts it again, from its newest checkpoint.

A loss is what no worker tells of: a kill, a crash of the process, a machine that is gone. A mistake that a worker tells
would come again, so it ends the training.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from recsys.errors import TrainingError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_EXPERIMENT = "experiment.json"


class WorkerLost(TrainingError):  # noqa: N818 - the end of a worker, not of the training
    """A worker has ended without telling why."""


def with_restarts(attempt: Callable[[bool], T], run: Path, *, resume: bool, max_restarts: int) -> T:
    """What an attempt gives; it is made again each time that a worker is lost, `max_restarts` times at most.

    An attempt is told whether to go on with the run: as asked the first time, and then wherever an attempt began it.
    """
    before = _identity(run)
    for restarts in range(max_restarts):
        try:
            return attempt(resume)
        except WorkerLost as lost:
            resume = resume or _identity(run) not in (None, before)
            logger.warning(
                "train.restart restart=%d/%d from=%s because='%s'",
                restarts + 1,
                max_restarts,
                _source(run, resume),
                lost,
            )
    return attempt(resume)


def _identity(run: Path) -> tuple[int, int] | None:
    """What tells a run from one that lay there before; None when there is none."""
    try:
        found = (run / _EXPERIMENT).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _source(run: Path, resume: bool) -> str:
    reached = resume and (run / "checkpoints" / "CURRENT").is_file()
    return "checkpoint" if reached else "start"
