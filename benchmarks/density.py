"""Does a task leave its own experts when it loses 99 of 100 positives, and less so under HoME? An experiment.

    python benchmarks/density.py [--seeds 3] [--rows 30000] [--epochs 8]

On the simulated feed, `long_view` (a quarter of the rows) keeps every positive of the days trained on, or one in a
hundred, drawn at random; the test day is the same. CGC, PLE and HoME are trained on both with the same seeds. Looked at
on the test day, at the last level: the weight of long_view's gate on its own experts beside an even gate's (1: even),
the least of the other tasks', what HoME's self gate adds beside the whole mixture, and the test AUC. The result goes to
benchmarks/records/density.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measured import versions

from recsys.days import open_days
from recsys.evaluation.checkup import watch_over
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.experts import level_numbers
from recsys.evaluation.metrics import evaluate_tasks
from recsys.experiment import load_experiment
from recsys.report import BinaryMetrics
from recsys.run import load_run
from recsys.training.trainer import train

RECORD = Path(__file__).parent / "records" / "density.json"
TASK, COLUMN, POSITIVE_FROM = "long_view", "preview_seconds", 10.0
KEPT = {"full": 1.0, "rare": 0.01}
MIXINGS = {
    "cgc": '{ kind = "cgc", task_experts = 2, shared_experts = 2, expert_hidden = [64, 32] }',
    "ple": '{ kind = "ple", task_experts = 2, shared_experts = 2, levels = [[64], [32]] }',
    "home": '{ kind = "home", experts = 2, meta_hidden = [64], task_hidden = [32], groups = { '
    'act = ["click", "like", "purchase"], view = ["long_view", "watch_minutes"] } }',
}


@dataclass(frozen=True)
class Outcome:
    """One training: of the task's gate at the last level, what the module's docstring says."""

    mixing: str
    density: str
    seed: int
    training_rate: float
    own_mass_relative: float
    least_of_others: float
    self_contribution: float | None
    auc: float | None


def write_data(folder: Path, *, rows: int) -> None:
    """A folder for each density, with its log, encoder and data; the last day, which tests, stays as it is."""
    for density, kept in KEPT.items():
        log = folder / density
        _recsys("simulate", log, "--rows", rows, "--users", rows // 30, "--items", 300)
        for day, file in enumerate(sorted((log / "impressions").glob("*.parquet"))[:-1]):
            pq.write_table(_thinned(pq.read_table(file), kept, seed=day), file)
        _recsys("fit", log / "pipeline.toml", log / "encoder")
        _recsys("build", log / "pipeline.toml", log / "data", "--encoder", log / "encoder")


def outcome(folder: Path, mixing: str, density: str, *, seed: int, epochs: int) -> Outcome:
    settings = (
        f"model.mixing={MIXINGS[mixing]}",
        f"train.seed={seed}",
        f"train.epochs={epochs}",
        "train.threads=1",
        "data.batch_size=1024",
    )
    experiment = load_experiment(folder / density / "experiment.toml", overrides=settings)
    run = folder / f"{mixing}-{density}-{seed}"
    train(experiment, run)
    trained = load_run(run, checkpoint="CURRENT")
    days = open_days(
        trained.experiment.data.directory, experiment.data.test or (), encoder=trained.encoder
    )
    watch = watch_over(trained.model, days)
    with watch.attached():
        outcomes = outcomes_of(trained.model, days, batch_size=4096)
    gates = level_numbers(watch.levels[-1], level=len(watch.levels), labels={}).gates
    own = {gate.reader: gate.own_mass_relative or 0.0 for gate in gates}
    entry = next(
        item
        for item in evaluate_tasks(outcomes, trained.schema.tasks)
        if isinstance(item, BinaryMetrics) and item.name == TASK
    )
    return Outcome(
        mixing=mixing,
        density=density,
        seed=seed,
        training_rate=open_days(
            trained.experiment.data.directory, experiment.data.train, encoder=trained.encoder
        ).label_means()[TASK],
        own_mass_relative=own[TASK],
        least_of_others=min(mass for task, mass in own.items() if task != TASK),
        self_contribution=next(gate.self_contribution for gate in gates if gate.reader == TASK),
        auc=entry.auc,
    )


def table(found: Sequence[Outcome]) -> str:
    """Means over seeds with their deviations."""
    lines = []
    for mixing in MIXINGS:
        for density in KEPT:
            part = [item for item in found if (item.mixing, item.density) == (mixing, density)]
            own = [item.own_mass_relative for item in part]
            others = [item.least_of_others for item in part]
            added = [item.self_contribution for item in part if item.self_contribution is not None]
            aucs = [item.auc for item in part if item.auc is not None]
            self_gate = f", self gate adds {statistics.mean(added):.0%}" if added else ""
            lines.append(
                f"{mixing:4} {density:4} {part[0].training_rate:.4f} positives: own experts {_spread(own)} of an even "
                f"share, least of other tasks {_spread(others)}{self_gate}, AUC {_spread(aucs)}"
            )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} +- {deviation:.2f}"


def _thinned(table: pa.Table, kept: float, *, seed: int) -> pa.Table:
    """The rows with that part of the positives left, drawn at random."""
    values = table.column(COLUMN).to_numpy().copy()
    lost = (values >= POSITIVE_FROM) & (np.random.default_rng(seed).random(len(values)) >= kept)
    values[lost] = 0
    place = table.schema.get_field_index(COLUMN)
    return table.set_column(
        place, table.schema.field(place), pa.array(values, table.schema.types[place])
    )


def _recsys(*arguments: object) -> None:
    command = (str(Path(sys.executable).with_name("recsys")), *map(str, arguments))
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, rows=options.rows)
        found = [
            outcome(folder, mixing, density, seed=seed, epochs=options.epochs)
            for mixing in MIXINGS
            for density in KEPT
            for seed in range(options.seeds)
        ]
    record = {
        "settings": vars(options),
        "versions": versions(),
        "outcomes": [asdict(item) for item in found],
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
