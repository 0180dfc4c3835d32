"""What a balancing method costs a training step: CPU time by method, as a ratio to the plain weighted sum's.

Whole steps (forward, gradients, updates of tables and dense parameters, what the method learns) of MMoE 8 x [256, 128]
and towers [64] on 26 ids of width 16. The methods take turns within a round, each on a model of its own and all on the
same batch; medians of process CPU time and of the ratios within a round are printed.

    python benchmarks/objectives.py [--rows 4096] [--tasks 2 3 6] [--rounds 9] [--threads 1]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from steps import training_step

from recsys.batch import Batch, from_encoded
from recsys.experiment import ObjectiveConfig
from recsys.fitting import fit
from recsys.models import ModelConfig
from recsys.models.precision import use_fast_float32
from recsys.schema import Schema

KINDS = ("none", "uncertainty", "dwa", "gradnorm", "pcgrad", "cagrad", "config", "famo")
FEATURES, IDS, WIDTH = 26, 10_000, 16


def data(rows: int, tasks: int) -> tuple[Schema, Batch]:
    """Random ids, and labels that depend on one of them each."""
    features = [f"id_{number}" for number in range(FEATURES)]
    labels = [f"y_{number}" for number in range(tasks)]
    tree = {
        "columns": dict.fromkeys(features, "int64") | dict.fromkeys(labels, "bool"),
        "tables": {name: {"rows": IDS, "dim": WIDTH, "ids": "hash"} for name in features},
        "features": {name: {"kind": "categorical", "table": name} for name in features},
        "tasks": {name: {"label": name} for name in labels},
    }
    schema = Schema.parse(tree, where="benchmark")
    random = np.random.default_rng(0)
    ids = {name: random.integers(0, IDS, rows) for name in features}
    drawn = {
        label: (ids[features[number]] % 7 < 2) ^ (random.random(rows) < 0.1)
        for number, label in enumerate(labels)
    }
    raw = pa.table(ids | drawn)
    encoded = fit(schema, [raw]).encode(raw, row_key=np.arange(rows))
    return schema, from_encoded(encoded, schema)


def step_of(kind: str, schema: Schema, batch: Batch) -> Callable[[], None]:
    """One training step of a fresh model under a method."""
    objective = ObjectiveConfig.parse({"balance": {"kind": kind}}, where="objective")
    return training_step(schema, batch, ModelConfig(), objective)


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each method's steps, round by round; the first round is not counted."""
    found: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(rounds + 1):
        for kind, step in steps.items():
            start = time.process_time()
            step()
            if number:
                found[kind].append(1000 * (time.process_time() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 6])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_fast_float32(torch.device("cpu"))
    print(f"MMoE 8 x [256, 128], {options.rows} rows, {options.threads} threads; CPU ms a step")
    for tasks in options.tasks:
        schema, batch = data(options.rows, tasks)
        found = measure({kind: step_of(kind, schema, batch) for kind in KINDS}, options.rounds)
        for kind, times in found.items():
            ratios = [own / plain for own, plain in zip(times, found["none"], strict=True)]
            print(
                f"{tasks} tasks  {kind:12} {statistics.median(times):8.1f} ms  "
                f"{statistics.median(ratios):5.2f}x  ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
