"""What `train.ema` brings: AUC of the averaged model minus that of the last weights, on real logs, paired over seeds.

Both are trained alike: the same rows, weights to begin with, batches and rates. Each keeps the checkpoint that its own
validations like best. The interval covers test rows and seeds (`estimates.paired`).

    RECSYS_DATA=/path/to/data python benchmarks/averages.py FOLDER [--seeds 5]

Prints the table and writes benchmarks/records/averages.json.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from estimates import markdown, paired
from measured import auc_differences, versions, write_record
from towers_rows import SUITES
from towers_runs import Place, prepare

from recsys.evaluation.evaluate import evaluate
from recsys.training.trainer import train

RECORD = Path(__file__).resolve().parent / "records" / "averages.json"
# The best rate of MMoE in the comparison of towers.
DENSE_LR = 3e-3
ARMS = {"cosine": (0.9, 0.99, 0.999), "none": (0.9, 0.99)}

Differences = dict[str, dict[str, float | None]]


def report_of(place: Place, *, schedule: str, decay: float | None, seed: int) -> tuple[Path, int]:
    """Where the report of one training on the test rows lies, and how many steps it took."""
    run = place.folder / "runs" / f"averages-{schedule}-{decay}-{seed}"
    experiment = place.experiment(
        optimizer={"dense_lr": DENSE_LR, "decay": schedule},
        train={"seed": seed, "ema": decay},
    )
    steps = train(experiment, run, resume=run.is_dir()).steps
    evaluate(run, run / "report")
    return run / "report", steps


def measure(place: Place, *, schedule: str, seeds: int) -> list[dict[str, Any]]:
    """A suite under a schedule: by decay, each seed's paired differences by entry."""
    found: dict[float, list[Differences]] = {decay: [] for decay in ARMS[schedule]}
    steps = 0
    for seed in range(seeds):
        plain, steps = report_of(place, schedule=schedule, decay=None, seed=seed)
        for decay, differences in found.items():
            averaged, _ = report_of(place, schedule=schedule, decay=decay, seed=seed)
            differences.append(auc_differences(averaged, plain))
    about = {"suite": place.suite.name, "schedule": schedule, "steps": steps}
    return [about | {"ema": decay, "seeds": differences} for decay, differences in found.items()]


def line_of(item: dict[str, Any]) -> dict[str, str]:
    """A row of the table: each entry's mean difference."""
    entries = item["seeds"][0]
    shown = [
        f"{name} {paired([seed[name] for seed in item['seeds']]).as_difference()}"
        for name in entries
    ]
    about = {name: str(item[name]) for name in ("suite", "steps", "schedule", "ema")}
    return about | {"AUC with averages minus without": ", ".join(shown)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--suites", nargs="+", default=["census", "kuairand", "retailrocket"])
    options = parser.parse_args()
    found = []
    for name in options.suites:
        place = prepare(SUITES[name], options.folder)
        for schedule in ARMS:
            found += measure(place, schedule=schedule, seeds=options.seeds)
            write_record(RECORD, {"versions": versions(), "measured": found})
    print(markdown([line_of(item) for item in found], left=["suite", "schedule"]))


if __name__ == "__main__":
    main()
