"""Is a model worth its update? A simulated log, a model trained day by day, one that stays, and one trained anew.

    python benchmarks/daily.py FOLDER [--seeds 3]

Days 1 to 3 train the first model. Each day after it trains a copy of the model for one epoch (`--warm-start`), with an
encoder that knows the day's new ids. The last day judges: AUC of each task by the model that stays, the one trained day
by day, and one that is trained on all of the days at once.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from estimates import markdown, over_seeds

from pipelines.build import build, fit
from pipelines.simulate import simulate
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import Experiment, load_experiment
from recsys.report import BinaryMetrics
from recsys.training.trainer import train

ROWS, USERS, ITEMS, DAYS = 120_000, 2_000, 1_000, 12
FIRST_DAYS = 3
BATCH = "data.batch_size=512"
STAYS = "stays"
ONE_PASS = ("train.epochs=1", "optimizer.warmup_steps=0", "optimizer.decay=none")


@dataclass(frozen=True)
class Log:
    """A simulated log, encoded twice: `early` by ids of the first days, `late` by an encoder that extends it."""

    folder: Path
    days: tuple[str, ...]

    def experiment(self, data: str, *overrides: str) -> Experiment:
        paths = [f'data.directory="data-{data}"', f'data.encoder="encoder-{data}"', BATCH]
        return load_experiment(self.folder / "experiment.toml", overrides=[*paths, *overrides])


def simulated(folder: Path) -> Log:
    """The log, fitted and built."""
    log = simulate(folder, rows=ROWS, users=USERS, items=ITEMS, days=DAYS)
    pipeline = folder / "pipeline.toml"
    told = f'to = "{log.days[-3]}"'
    text = pipeline.read_text(encoding="utf-8")
    assert told in text
    early = text.replace(told, f'to = "{log.days[FIRST_DAYS - 1]}"')
    for name, content, previous in (
        ("early", early, None),
        ("late", text, folder / "encoder-early"),
    ):
        pipeline.write_text(content, encoding="utf-8")
        fit(pipeline, folder / f"encoder-{name}", previous=previous)
        build(pipeline, folder / f"data-{name}", encoder=folder / f"encoder-{name}", ray=False)
    return Log(folder, log.days)


def measured(log: Log, seed: int) -> dict[str, dict[str, float]]:
    """AUC on the last day by model and task."""
    runs = log.folder / f"runs-{seed}"
    runs.mkdir()
    own = f"train.seed={seed}"
    first = [f"data.train={list(log.days[:FIRST_DAYS])}", f"data.validation={log.days[FIRST_DAYS]}"]
    train(log.experiment("early", own, *first), runs / "stays")
    newest = runs / "stays"
    for day, next_day in zip(log.days[FIRST_DAYS:-2], log.days[FIRST_DAYS + 1 : -1], strict=True):
        days = (f"data.train={day}", f"data.validation={next_day}")
        train(log.experiment("late", own, *ONE_PASS, *days), runs / day, warm_start=newest)
        newest = runs / day
    train(log.experiment("late", own), runs / "anew")
    return {
        STAYS: aucs(runs / "stays", log),
        "day by day": aucs(newest, log),
        "anew on all days": aucs(runs / "anew", log),
    }


def aucs(run: Path, log: Log) -> dict[str, float]:
    report = evaluate(run, run.parent / f"report-{run.name}", days=log.days[-1]).report
    found = {entry.name: entry.auc for entry in report.entries if isinstance(entry, BinaryMetrics)}
    return {name: auc for name, auc in found.items() if auc is not None}


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    rows = []
    for task in seeds[0][STAYS]:
        for model in seeds[0]:
            found = over_seeds([seed[model][task] for seed in seeds])
            gain = over_seeds([seed[model][task] - seed[STAYS][task] for seed in seeds])
            more = "" if model == STAYS else gain.as_difference()
            rows.append({"task": task, "model": model, "AUC": str(found), "more": more})
    return markdown(rows, left=("task", "model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    log = simulated(arguments.folder)
    print(table([measured(log, seed) for seed in range(arguments.seeds)]))


if __name__ == "__main__":
    main()
