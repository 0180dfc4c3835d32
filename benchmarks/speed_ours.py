"""Our side of benchmarks/peers.py: one pass over a day with `recsys.training`, from Parquet to updated weights.

python benchmarks/speed_ours.py FOLDER --day train --precision bf16 [--threads 1] [--feed]
"""

import argparse
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from speed_clock import measured, read_job, report
from speed_job import Job, experiment_of

from recsys.feed import START
from recsys.memory import keep_freed_memory
from recsys.models.precision import use_fast_float32
from recsys.new_run import new_run
from recsys.run import open_run
from recsys.training.training import Training

_WARM_STEPS = 2


def job_in(folder: Path) -> Job:
    """The job that lies in a folder."""
    found = read_job(folder)
    del found["files"]
    return Job(**found)


def training_of(folder: Path, run: Path, **train: Any) -> Training:
    """A new training of the job on `train["day"]`, set up as `recsys train` does."""
    data = {"train": [train.pop("day", "train")]}
    torch.set_num_threads(train.get("threads", 1))
    use_fast_float32(torch.device("cpu"))
    keep_freed_memory()
    with new_run(run, experiment_of(job_in(folder), folder, data=data, train=train)):
        return Training(open_run(run))


def one_epoch(training: Training, steps: int | None = None) -> int:
    """Samples of an epoch, or of its first steps, each read, collated, learned from and written to the weights."""
    samples = 0
    with closing(training.feed.batches(START)) as batches:
        for _ in range(steps or training.feed.batches_per_epoch):
            batch = next(batches).batch
            training.advance(batch)
            samples += batch.rows
    return samples


def feed_alone(training: Training) -> int:
    """Samples of an epoch, read and collated only."""
    samples = 0
    with closing(training.feed.batches(START)) as batches:
        for _ in range(training.feed.batches_per_epoch):
            samples += next(batches).batch.rows
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--day", default="train")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--feed", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = training_of(
            options.folder,
            Path(folder) / "run",
            day=options.day,
            precision=options.precision,
            threads=options.threads,
        )
        one_epoch(training, _WARM_STEPS)
        run = feed_alone if options.feed else one_epoch
        report(measured(lambda: run(training)))


if __name__ == "__main__":
    main()
