"""What the doctor costs a training: the same one with and without its watch over validation rows, in turns.

    python benchmarks/doctor.py [--kinds mmoe ple home] [--epochs 8] [--rows 60000] [--batch 1024]

The simulated feed (five tasks) is written to a temporary folder and its first twelve days are trained on, day 13
validating after every epoch. Two trainings of one configuration take turns epoch by epoch, in one process on one
thread; which goes first alternates. Counted is the CPU time of the whole process, so that a busy neighbour disturbs
little; batches are read beforehand, so that the watch is measured against steps and validation alone.

Printed, with quartiles over the pairs: the ratio of whole epochs; and, steadier, what a validation takes more, as part
of an epoch. All that the watch does takes place there, so each epoch's model is validated four times more in both ways.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from unittest import mock

import torch

from recsys.batch import Batch
from recsys.experiment import load_experiment
from recsys.models.precision import use_fast_float32
from recsys.new_run import new_run
from recsys.run import open_run
from recsys.training import training as training_module
from recsys.training.training import Training

# Of each epoch's model, with the watch and without it.
VALIDATIONS = 4
MIXINGS = {
    "mmoe": '{ kind = "mmoe", experts = 8, expert_hidden = [256, 128] }',
    "ple": '{ kind = "ple", levels = [[256], [128]] }',
    "home": '{ kind = "home", groups = { a = ["click", "like", "purchase"], b = ["long_view", "watch_minutes"] } }',
    "adatt": '{ kind = "adatt", levels = [[256], [128]] }',
}


@dataclass(frozen=True)
class Costs:
    """CPU seconds of epochs, pair by pair, and how much longer validations took that were watched."""

    watched: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)


class Unwatched:
    """Stands where the watch stands, and looks at nothing."""

    levels = ()

    def attached(self) -> nullcontext[None]:
        return nullcontext()

    def add_up_ranks(self) -> None:
        pass


def write_data(folder: Path, *, rows: int) -> None:
    recsys = str(Path(sys.executable).with_name("recsys"))
    size = ("--rows", str(rows), "--users", str(rows // 30), "--items", "300")
    for arguments in (
        ("simulate", "log", *size),
        ("fit", "log/pipeline.toml", "log/encoder"),
        ("build", "log/pipeline.toml", "log/data", "--encoder", "log/encoder"),
    ):
        subprocess.run((recsys, *arguments), cwd=folder, check=True, capture_output=True)


def new_training(folder: Path, run: str, *, mixing: str, batch: int) -> Training:
    overrides = (f"model.mixing={mixing}", f"data.batch_size={batch}", "train.threads=1")
    experiment = load_experiment(folder / "log" / "experiment.toml", overrides=overrides)
    with new_run(folder / run, experiment):
        return Training(open_run(folder / run))


def first_epoch(training: Training) -> list[Batch]:
    with closing(training.feed.batches(training.position)) as batches:
        return [item.batch for item in islice(batches, training.feed.batches_per_epoch)]


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def in_turns(
    first: Callable[[], object], second: Callable[[], object], turn: int
) -> tuple[float, float]:
    """CPU seconds of both; at odd turns the second goes first."""
    if turn % 2:
        late = cpu_seconds(second)
        return cpu_seconds(first), late
    return cpu_seconds(first), cpu_seconds(second)


def measure(folder: Path, kind: str, *, epochs: int, batch: int) -> Costs:
    watched, plain = (
        new_training(folder, f"{kind}-{arm}", mixing=MIXINGS[kind], batch=batch)
        for arm in ("watched", "plain")
    )
    batches = first_epoch(watched)

    def epoch(training: Training, validate: Callable[[Training], object]) -> None:
        for rows in batches:
            training.advance(rows)
        validate(training)

    # Both once, to warm up.
    epoch(watched, Training.evaluate)
    epoch(plain, unwatched)
    costs = Costs()
    for number in range(epochs):
        with_watch, without = in_turns(
            lambda: epoch(watched, Training.evaluate),
            lambda: epoch(plain, unwatched),
            number,
        )
        costs.watched.append(with_watch)
        costs.plain.append(without)
        for turn in range(VALIDATIONS):
            with_watch, without = in_turns(watched.evaluate, lambda: unwatched(watched), turn)
            costs.added.append(with_watch - without)
    return costs


def unwatched(training: Training) -> None:
    with mock.patch.object(training_module, "watch_over", return_value=Unwatched()):
        training.evaluate()


def report(kind: str, costs: Costs, steps: int) -> str:
    whole = statistics.median(costs.plain)
    ratios = [
        watched / plain - 1 for watched, plain in zip(costs.watched, costs.plain, strict=True)
    ]
    return (
        f"{kind:5} {len(ratios)} pairs of epochs of {steps} steps, {whole:.2f} CPU s: watched {_quartiles(ratios)}; "
        f"by validation alone {_quartiles([added / whole for added in costs.added])}, "
        f"{1000 * statistics.median(costs.added):+.1f} ms"
    )


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:+.2%} ({low:+.2%} to {high:+.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kinds", nargs="+", default=["mmoe", "ple", "home"], choices=MIXINGS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_fast_float32(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, rows=options.rows)
        for kind in options.kinds:
            costs = measure(folder, kind, epochs=options.epochs, batch=options.batch)
            steps = options.rows * 12 // 14 // options.batch
            print(report(kind, costs, steps), flush=True)


if __name__ == "__main__":
    main()
