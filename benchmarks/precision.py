"""What bf16 costs in quality: AUC of bf16 minus float32 at equal samples, on a simulated log, paired over seeds.

A seed is a log with its own truth and a training with its own weights; both precisions see the same rows in the same
order. Differences are paired on the test rows of each log (DeLong), and averaged over the logs.

    python benchmarks/precision.py FOLDER [--rows 120000] [--seeds 3] [--mixings mmoe home]
"""

import argparse
from pathlib import Path
from typing import Any

from estimates import markdown, over_seeds
from measured import auc_differences

from pipelines.build import build, fit
from pipelines.simulate import simulate
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import load_experiment
from recsys.training.trainer import train

PRECISIONS = ("float32", "bf16")


def differences(
    folder: Path, *, rows: int, seed: int, mixing: str
) -> dict[str, dict[str, float | None]]:
    """The paired difference in AUC by entry on one log."""
    log = folder / f"log-{seed}"
    if not log.exists():
        simulate(log, rows=rows, seed=seed)
        fit(log / "pipeline.toml", log / "encoder")
        build(log / "pipeline.toml", log / "data", encoder=log / "encoder")
    reports = []
    for precision in PRECISIONS:
        run = folder / f"{mixing}-{precision}-{seed}"
        overrides = [
            f"train.precision={precision}",
            f"train.seed={seed}",
            f'model.mixing={{ kind = "{mixing}" }}',
        ]
        train(load_experiment(log / "experiment.toml", overrides=overrides), run)
        evaluate(run, run / "report")
        reports.append(run / "report")
    return auc_differences(reports[1], reports[0])


def rows_of(found: list[dict[str, dict[str, float | None]]], mixing: str) -> list[dict[str, str]]:
    """The table's lines of a mixing: each entry's mean difference over logs, and the test rows' standard error."""
    lines = []
    for entry in found[0]:
        values: list[Any] = [seed[entry]["difference"] for seed in found]
        errors: list[Any] = [seed[entry]["standard_error"] for seed in found]
        lines.append(
            {
                "mixing": mixing,
                "entry": entry,
                "AUC of bf16 minus float32": over_seeds(values).as_difference(5),
                "its standard error on one log": f"{sum(errors) / len(errors):.5f}",
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mixings", nargs="+", default=["mmoe", "home"])
    options = parser.parse_args()
    lines = []
    for mixing in options.mixings:
        found = [
            differences(options.folder, rows=options.rows, seed=seed, mixing=mixing)
            for seed in range(options.seeds)
        ]
        lines += rows_of(found, mixing)
    print(markdown(lines, left=["mixing", "entry"]))


if __name__ == "__main__":
    main()
