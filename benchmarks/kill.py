"""Whether a training survives `kill -9` at any instant: checkpoints and finished runs against one never killed.

A small training with dropout and a balancing method that learns is killed again and again, at random instants and at
instants inside the writing of checkpoints, and goes on with --resume. After each kill every checkpoint that can be
loaded has to be, file by file, the one of the same step of a training that was never interrupted; a run that reaches
its end has to have the same weights, optimizers, generators, records and best step.

    python benchmarks/kill.py FOLDER [--kills 200] [--seed 0] [--backend plain]

FOLDER is where the log, the days and the runs are written. The last line is a JSON object of counts.
"""

import argparse
import json
import logging
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from recsys.errors import ArtifactError
from recsys.experiment import load_experiment
from recsys.publish import CURRENT, Published, canonical_json, read_version, resolve, versions
from recsys.run import BEST, CHECKPOINT_KIND
from recsys.training.journal import read_records

ROWS = 2_400
EXPERIMENT = """
[data]
train = { from = "2026-10-01", to = "2026-10-03" }
validation = ["2026-10-04"]
batch_size = 64
window_rows = 500

[model]
embeddings = { backend = "BACKEND" }
mixing = { kind = "mmoe", experts = 2, expert_hidden = [16], expert_dropout = 0.2 }
heads = { kind = "towers", hidden = [8] }

[objective]
balance = { kind = "gradnorm" }

[optimizer]
warmup_steps = 5
decay = "cosine"

[train]
epochs = 1
checkpoint_every = 2
evaluate_every = 8
log_every = 4
threads = 1
"""
logger = logging.getLogger(__name__)
# What every attempt would import anew: the processes are forks of one that has it.
_IMPORTED = [
    "recsys.training.trainer",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "scipy.optimize",
]
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Counts:
    """What was seen. `in_write` counts kills that left a checkpoint half written, `damaged` those that cannot load."""

    kills: int = 0
    in_write: int = 0
    runs_finished: int = 0
    compared: int = 0
    damaged: int = 0
    different: int = 0


@dataclass(frozen=True)
class Whole:
    """The training that was never interrupted: its checkpoints by step, its records, and how long it took."""

    files: dict[int, bytes]
    records: list[dict[str, Any]]
    best_step: int
    seconds: float
    write_seconds: float


def prepare(folder: Path, *, backend: str) -> Path:
    """The experiment file of a small simulated log, its days built beside it."""
    from pipelines.build import build, fit
    from pipelines.simulate import simulate

    simulate(folder / "log", rows=ROWS, users=200, items=100, days=6)
    fit(folder / "log" / "pipeline.toml", folder / "log" / "encoder")
    build(
        folder / "log" / "pipeline.toml",
        folder / "log" / "data",
        encoder=folder / "log" / "encoder",
    )
    file = folder / "log" / "experiment.toml"
    file.write_text(EXPERIMENT.replace("BACKEND", backend), encoding="utf-8")
    return file


def attempt(experiment: Path, run: Path, keep: int) -> None:
    """Begin a run, or go on with it, to its end: what a process does that is killed."""
    import torch

    from recsys.training.trainer import train

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    overrides = [f"train.keep_checkpoints={keep}"]
    train(load_experiment(experiment, overrides=overrides), run, resume=run.exists())


def never_killed(experiment: Path, run: Path) -> Whole:
    """Train without interruption, keep every checkpoint, and watch how long one takes to write."""
    # The first process waits for all that is imported for the others.
    first = _CONTEXT.Process(target=time.sleep, args=(0,))
    first.start()
    first.join()
    began = time.monotonic()
    written: list[float] = []
    with started(experiment, run, keep=10_000) as process:
        while process.is_alive():
            if seen := draft_of(run, process):
                start = time.monotonic()
                while seen.exists():
                    time.sleep(0.0002)
                written.append(time.monotonic() - start)
    assert process.exitcode == 0
    root = run / "checkpoints"
    found = [read_version(root / name, kind=CHECKPOINT_KIND) for name in versions(root)]
    return Whole(
        {item.metadata["step"]: content(item) for item in found},
        records_of(run),
        best_of(run),
        time.monotonic() - began,
        sum(written) / len(written),
    )


def survive(experiment: Path, folder: Path, *, kills: int, seed: int) -> Counts:
    """Kill trainings that many times, every second one inside a write; AssertionError once one is not what it was."""
    chosen, counts = random.Random(seed), Counts()
    whole = never_killed(experiment, folder / "whole")
    number = 0
    while counts.kills < kills:
        run = folder / f"run-{number}"
        with started(experiment, run, keep=3) as process:
            wait = wait_for_write if counts.kills % 2 else wait_anywhere
            wait(process, run, whole, chosen)
            process.kill()
        check_checkpoints(run, whole, counts)
        if process.exitcode == 0:
            assert records_of(run) == whole.records
            assert best_of(run) == whole.best_step
            counts.runs_finished += 1
            number += 1
            shutil.rmtree(run)
            continue
        assert process.exitcode == -9, f"{run}: does not go on"
        counts.kills += 1
        counts.in_write += leave_no_draft(run)
        logger.info("%s", json.dumps(asdict(counts)))
    return counts


@contextmanager
def started(experiment: Path, run: Path, *, keep: int) -> Iterator[ForkServerProcess]:
    """A process that trains, until the block ends and it has ended."""
    process = _CONTEXT.Process(target=attempt, args=(experiment, run, keep))
    process.start()
    yield process
    process.join()


def wait_anywhere(
    process: ForkServerProcess, run: Path, whole: Whole, chosen: random.Random
) -> None:
    process.join(chosen.uniform(0, whole.seconds))


def wait_for_write(
    process: ForkServerProcess, run: Path, whole: Whole, chosen: random.Random
) -> None:
    process.join(chosen.uniform(0, whole.seconds / 2))
    if draft_of(run, process):
        time.sleep(chosen.uniform(0, whole.write_seconds))


def draft_of(run: Path, process: ForkServerProcess) -> Path | None:
    """The checkpoint that is being written, once there is one; None when the process has ended."""
    while process.is_alive():
        if found := next((run / "checkpoints").glob(".draft-*"), None):
            return found
        time.sleep(0.0002)
    return None


def leave_no_draft(run: Path) -> int:
    """Whether a checkpoint was left half written; it is removed, so that the next one is seen."""
    drafts = list((run / "checkpoints").glob(".draft-*"))
    for draft in drafts:
        shutil.rmtree(draft)
    return len(drafts)


def check_checkpoints(run: Path, whole: Whole, counts: Counts) -> None:
    """Compare every checkpoint that can be loaded, and make sure that there is one where there was one before."""
    root = run / "checkpoints"
    for name in versions(root):
        try:
            found = read_version(root / name, kind=CHECKPOINT_KIND, verify="digests")
        except ArtifactError:
            counts.damaged += 1
            continue
        counts.compared += 1
        if content(found) != whole.files[found.metadata["step"]]:
            counts.different += 1
    assert not counts.different, f"{run}: a checkpoint is not that of its step"
    if (root / CURRENT).exists():
        resolve(root, kind=CHECKPOINT_KIND, verify="digests")


def content(checkpoint: Published) -> bytes:
    """The digests of all files of a checkpoint."""
    return canonical_json(checkpoint.files)


def best_of(run: Path) -> int:
    return int(resolve(run / "checkpoints", kind=CHECKPOINT_KIND, pointer=BEST).metadata["step"])


def records_of(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what the clock decides."""
    found = read_records(run / "metrics.jsonl")
    return [
        {name: value for name, value in record.items() if name != "rows_per_second"}
        for record in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("plain", "torchrec"), default="plain")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    imported = [
        *_IMPORTED,
        *["recsys.models.embeddings.torchrec"] * (options.backend == "torchrec"),
    ]
    _CONTEXT.set_forkserver_preload(imported)
    options.folder.mkdir(parents=True, exist_ok=True)
    experiment = prepare(options.folder, backend=options.backend)
    counts = survive(experiment, options.folder, kills=options.kills, seed=options.seed)
    print(json.dumps(asdict(counts)))


if __name__ == "__main__":
    main()
