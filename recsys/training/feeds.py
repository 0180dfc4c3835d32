"""Which feed a training reads: encoded days, or raw days that are encoded meanwhile."""

from collections.abc import Generator, Sequence
from typing import Protocol

from recsys.day_names import DayRange
from recsys.days import Days, Encoded, open_form
from recsys.experiment import Experiment
from recsys.feed import START, Feed, PlacedBatch, Position
from recsys.ranks import rank, world_size
from recsys.raw_days import Raw
from recsys.run import RunDirectory


class TrainingFeed(Protocol):
    """Batches of this rank from any position on; `batch_size` counts rows over all ranks."""

    batch_size: int
    batches_per_epoch: int

    def after(self, position: Position) -> Position: ...

    def rows(self, position: Position) -> int: ...

    def batches(self, start: Position = START) -> Generator[PlacedBatch, None, None]: ...


def open_training_days(
    run: RunDirectory, days: DayRange | Sequence[str], versions: dict[str, str] | None
) -> Days:
    """The days to train on, in the form that the experiment names. Raises what `open_days` raises."""
    data = run.experiment.data
    if data.stream is None:
        return open_form(data.directory, days, Encoded(run.encoder), versions=versions)
    return open_form(data.stream, days, Raw(run.encoder), versions=versions)


def training_feed(days: Days, experiment: Experiment) -> TrainingFeed:
    """This rank's feed of those days."""
    data, seed = experiment.data, experiment.train.seed
    if data.stream is None:
        return Feed(
            days,
            batch_size=data.batch_size,
            seed=seed,
            window_rows=data.window_rows,
            rank=rank(),
            world_size=world_size(),
        )
    # Ray takes seconds to import: only who streams pays.
    from recsys.training.distributed.stream import Stream

    return Stream(days, batch_size=data.batch_size, seed=seed, window_rows=data.window_rows)
