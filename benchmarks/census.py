"""Test AUC of examples/census over several seeds: mean, standard error, and the difference from published figures.

    RECSYS_DATA=/path/to/data python benchmarks/census.py [WORK] [--seeds 5]

Builds once into WORK (default: census-runs), trains and evaluates a run a seed, and prints one table. Finished seeds
are kept: a second call goes on where the first stopped. Published: PLE (Tang et al., RecSys 2020, Table 5) and the
single-task and MMoE rows of that table; boosted trees are scikit-learn's HistGradientBoostingClassifier on the same
columns.
"""

import json
import logging
import math
import shutil
import statistics
from pathlib import Path
from typing import Annotated

import typer

from pipelines.build import build, fit
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import load_experiment
from recsys.report import read_report
from recsys.training.trainer import train

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "census"
PUBLISHED = {
    "income": {"PLE": 0.9522, "single task": 0.9445, "MMoE": 0.9393, "boosted trees": 0.9520},
    "never_married": {
        "PLE": 0.9945,
        "single task": 0.9923,
        "MMoE": 0.9928,
        "boosted trees": 0.9946,
    },
}


def main(work: Annotated[Path, typer.Argument()] = Path("census-runs"), seeds: int = 5) -> None:
    """Train and evaluate the census example once a seed, and print the table."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    if not (work / "data").exists():
        shutil.copytree(EXAMPLE, work, dirs_exist_ok=True)
        fit(work / "pipeline.toml", work / "encoder")
        build(work / "pipeline.toml", work / "data", encoder=work / "encoder")
    found: dict[str, list[float]] = {task: [] for task in PUBLISHED}
    for seed in range(seeds):
        for task, value in _test_auc(work, seed).items():
            found[task].append(value)
        _print(found)
    (work / "census.json").write_text(json.dumps(found, indent=2))


def _test_auc(work: Path, seed: int) -> dict[str, float]:
    run, report = work / f"run-{seed}", work / f"report-{seed}"
    if not report.exists():
        experiment = load_experiment(
            work / "experiment.toml", overrides=(f"train.seed={seed}", "train.threads=1")
        )
        train(experiment, run, resume=run.exists())
        evaluate(run, report)
    measured = read_report(report)
    return {task: measured.binary(task).auc or math.nan for task in PUBLISHED}


def _print(found: dict[str, list[float]]) -> None:
    for task, values in found.items():
        mean = statistics.fmean(values)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        against = ", ".join(
            f"{name} {mean - value:+.4f}" for name, value in PUBLISHED[task].items()
        )
        print(
            f"{task:14} {mean:.5f} +- {error:.5f} ({len(values)} seeds); minus published: {against}"
        )


if __name__ == "__main__":
    typer.run(main)
