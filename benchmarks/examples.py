"""Every example of examples/, measured: models of several seeds against boosted trees on the same rows.

    RECSYS_DATA=/path/to/data python benchmarks/examples.py [EXAMPLE ...] [--seeds 5] [--work benchmarks-work] [--again]
    python benchmarks/examples.py --table

Fits and builds each example once under WORK, trains and evaluates a model and the trees once a seed on one thread, and
writes one small record a run under benchmarks/records/examples/. A seed whose records were made with the same TOML
files is kept, so a second call goes on where the first stopped. `--table` writes docs/examples.md from the records.
"""

import hashlib
import json
import logging
import shutil
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from examples_table import EXAMPLES, PAGE, RECORDS, Record, render
from measured import auc_differences, entry_numbers, versions, write_record

from pipelines.build import build, fit
from recsys.baseline.baseline import baseline
from recsys.errors import UserError, nearest
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import Experiment, load_experiment
from recsys.report import Report
from recsys.training.trainer import train

logger = logging.getLogger("recsys.benchmarks.examples")

TOML_FILES = ("schema.toml", "pipeline.toml", "experiment.toml")


@dataclass(frozen=True)
class Example:
    """An example, and where it is built and trained. `digest` is of what its TOML files say, comments left out."""

    name: str
    folder: Path
    digest: str

    def experiment(self, seed: int) -> Experiment:
        return load_experiment(
            self.folder / "experiment.toml",
            overrides=(f"train.seed={seed}", "train.threads=1", 'train.device="cpu"'),
        )


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="EXAMPLE")] = None,
    work: Annotated[Path, typer.Option(help="Encoders, data, runs.")] = Path("benchmarks-work"),
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what has a record.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Write docs/examples.md.")] = False,
) -> None:
    """Measure the examples, or write the page about them."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    if table:
        PAGE.write_text(render(), encoding="utf-8")
        typer.echo(f"written: docs/{PAGE.name}")
        return
    failed = [name for name in _chosen(names or []) if not _measured(name, work, seeds, again)]
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; the reason stands above")


def _chosen(names: list[str]) -> list[str]:
    known = sorted(path.parent.name for path in EXAMPLES.glob("*/experiment.toml"))
    for name in names:
        if name not in known:
            sys.exit(f"no example {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return names or known


def _measured(name: str, work: Path, seeds: int, again: bool) -> bool:
    """Whether every seed of an example has its two records now; what went wrong is printed."""
    digest = _digest(EXAMPLES / name)
    try:
        for seed in range(seeds):
            if not again and all(
                _is_fresh(name, kind, seed, digest) for kind in ("trees", "model")
            ):
                continue
            # Building anew is for the first seed alone; the others use what it built.
            example = _built(name, work, digest, again and seed == 0)
            _measure_seed(example, seed, seeds)
    except UserError as error:
        typer.echo(f"{name}: {error}", err=True)
        return False
    return True


def _digest(folder: Path) -> str:
    trees = [tomllib.loads((folder / file).read_text(encoding="utf-8")) for file in TOML_FILES]
    return hashlib.sha256(json.dumps(trees, default=str).encode()).hexdigest()[:16]


def _is_fresh(name: str, kind: str, seed: int, digest: str) -> bool:
    file = _record_file(name, kind, seed)
    return file.is_file() and json.loads(file.read_text())["files"] == digest


def _built(name: str, work: Path, digest: str, again: bool) -> Example:
    """The example with its encoder and data under `work`, made now unless its files made them before."""
    folder, mark = work / name, work / name / "built"
    if again or not mark.is_file() or mark.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in TOML_FILES:
            shutil.copy(EXAMPLES / name / file, folder)
        fit(folder / "pipeline.toml", folder / "encoder")
        build(folder / "pipeline.toml", folder / "data", encoder=folder / "encoder")
        mark.write_text(digest)
    return Example(name, folder, digest)


def _measure_seed(example: Example, seed: int, seeds: int) -> None:
    experiment = example.experiment(seed)
    run, report, trees = (example.folder / f"{what}-{seed}" for what in ("run", "report", "trees"))
    started = time.process_time()
    grown = baseline(experiment, trees)
    _write_record(example, "trees", seed, grown.report, grown.rows_total, started, {})
    shutil.rmtree(run, ignore_errors=True)
    started = time.process_time()
    train(experiment, run)
    measured = evaluate(run, report).report
    compared = auc_differences(report, trees)
    _write_record(example, "model", seed, measured, grown.rows_total, started, compared)
    gaps = " ".join(f"{name} {item['difference']:+.4f}" for name, item in compared.items())
    typer.echo(f"{example.name}, seed {seed + 1} of {seeds}: AUC minus trees: {gaps}")


def _write_record(
    example: Example,
    kind: str,
    seed: int,
    report: Report,
    training_rows: int,
    started: float,
    minus_trees: dict[str, dict[str, float]],
) -> None:
    record: Record = {
        "example": example.name,
        "kind": kind,
        "seed": seed,
        "files": example.digest,
        "training_rows": training_rows,
        "test_rows": report.rows,
        "parameters": report.model.parameters,
        "steps": report.model.step,
        "cpu_seconds": round(time.process_time() - started, 1),
        "versions": versions(),
        "entries": {entry.name: entry_numbers(entry) for entry in report.entries},
    }
    if kind == "model":
        record["minus_trees"] = minus_trees
    write_record(_record_file(example.name, kind, seed), record)


def _record_file(name: str, kind: str, seed: int) -> Path:
    return RECORDS / name / f"{kind}-{seed}.json"


if __name__ == "__main__":
    typer.run(main)
