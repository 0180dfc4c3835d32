"""One run of the comparison of towers: a model trained and measured, or boosted trees, and the record of it.

Records are `records/towers/<table>/<suite>/<row>-<seed>.json`. The learning rate of a row is chosen on validation with
seed 0; what that search found is in each of the row's records.
"""

import json
import logging
import shutil
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measured import auc_differences, entry_numbers, rounded, versions, write_record
from planted_pairs import found_pairs
from torch.utils.flop_counter import FlopCounterMode
from towers_rows import REFERENCES, ROWS, SUITES, TOML_FILES, Sized, Suite, sized

from pipelines.build import build, fit
from recsys.baseline.baseline import baseline
from recsys.diagnosis import Diagnosis
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import Experiment
from recsys.models import build_program
from recsys.models.inputs import Blocks, InputLayout
from recsys.report import Report
from recsys.training.trainer import train

RECORDS = Path(__file__).resolve().parent / "records" / "towers"
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
TREES = "trees"
# The rows a multiply-add count is averaged over.
_COUNTED_ROWS = 64

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What a run is of, and where its record goes. `seed` is that of weights and batch order; trees have one too."""

    table: str
    suite: str
    row: str
    seed: int
    records: Path = RECORDS

    @property
    def record(self) -> Path:
        return self.records / self.table / self.suite / f"{self.row}-{self.seed}.json"

    @property
    def name(self) -> str:
        return f"{self.table} {self.suite} {self.row} seed {self.seed}"


@dataclass(frozen=True)
class Place:
    """Where a suite lies while it is measured."""

    suite: Suite
    folder: Path

    def experiment(self, **changes: Any) -> Experiment:
        """The suite's experiment with sections replaced, on one thread of the CPU."""
        tree = tomllib.loads((self.folder / "experiment.toml").read_text(encoding="utf-8"))
        tree.setdefault("train", {}).update(threads=1, device="cpu")
        for section, values in changes.items():
            tree[section] = tree.get(section, {}) | values
        where = str(self.folder / "experiment.toml")
        return Experiment.parse(tree, where=where).resolved(self.folder)

    def report(self, cell: Cell) -> Path:
        return self.folder / "reports" / f"{cell.table}-{cell.row}-{cell.seed}"

    def has_report(self, cell: Cell) -> bool:
        """Whether its report is published; while it is being written it is not."""
        return (self.report(cell) / "CURRENT").is_file()

    def run(self, cell: Cell, rate: float) -> Path:
        return self.folder / "runs" / f"{cell.table}-{cell.row}-{cell.seed}-{rate:g}"


def prepare(suite: Suite, work: Path, *, rows: int | None = None) -> Place:
    """The suite's rows under `work`, made now unless the same files made them before. `rows` is for simulated ones."""
    folder, mark = work / suite.name, work / suite.name / "built"
    if not mark.is_file() or mark.read_text() != suite.digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in TOML_FILES:
            shutil.copy(suite.folder / file, folder)
        if suite.make is not None:
            suite.make(folder, **({} if rows is None else {"rows": rows}))
        fit(folder / "pipeline.toml", folder / "encoder")
        build(folder / "pipeline.toml", folder / "data", encoder=folder / "encoder")
        mark.write_text(suite.digest)
    return Place(suite, folder)


def trees_of(cell: Cell) -> Cell:
    """The trees that a cell is compared with: one seed, for all tables."""
    return replace(cell, table="equal_parameters", row=TREES, seed=0)


def digest_of(cell: Cell) -> str:
    """What a record must have been made with to count."""
    return SUITES[cell.suite].digest


def is_fresh(cell: Cell) -> bool:
    return cell.record.is_file() and json.loads(cell.record.read_text())[
        "suite_digest"
    ] == digest_of(cell)


def search(cell: Cell, rate: float, work: Path) -> float:
    """The validation score of one learning rate with the cell's seed; the run stays for `measure`."""
    return _trained(cell, _quiet_place(cell, work), rate)


def measure(cell: Cell, scores: dict[str, float], work: Path) -> Record:
    """The record of a cell at the best of the searched rates, by `scores` (rate: score on validation), written."""
    place = _quiet_place(cell, work)
    rate = float(max(scores, key=lambda name: scores[name]))
    _trained(cell, place, rate)
    run, report = place.run(cell, rate), place.report(cell)
    shutil.rmtree(report, ignore_errors=True)
    measured = evaluate(run, report).report
    item = _sized(cell, place)
    record = _header(cell, measured) | {
        "dense_lr": rate,
        "search": scores,
        "width": item.width,
        "dense_parameters": item.parameters,
        "multiply_adds": multiply_adds(place, item),
        "settings": item.model["mixing"],
        "steps": measured.model.step,
        "cpu_seconds": json.loads((run / "cpu_seconds.json").read_text()),
        "findings": _findings(measured.experts),
        "levels": _levels(measured.experts),
        "minus": {
            name: auc_differences(report, place.report(reference))
            for name, reference in _references(cell).items()
            if place.has_report(reference)
        },
    }
    if cell.suite == "planted_behaviours":
        record["pairs"] = found_pairs(run)
    write_record(cell.record, record)
    for other in LEARNING_RATES:
        shutil.rmtree(place.run(cell, other), ignore_errors=True)
    if cell.row not in REFERENCES:
        shutil.rmtree(report)
    return record


def measure_trees(cell: Cell, work: Path) -> Record:
    """The record of boosted trees on the cell's suite, written."""
    place = _quiet_place(cell, work)
    started = time.process_time()
    shutil.rmtree(place.report(cell), ignore_errors=True)
    grown = baseline(place.experiment(train={"seed": cell.seed}), place.report(cell))
    record = _header(cell, grown.report) | {
        "training_rows": grown.rows_total,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    write_record(cell.record, record)
    return record


def multiply_adds(place: Place, item: Sized) -> int:
    """Multiply-adds of bottom, mixing and heads for one row of one user, by counting the products of a forward pass."""
    experiment = place.experiment(model=item.model)
    schema = experiment.load_schema()
    program = build_program(schema, experiment.model, seed=0).eval()
    blocks = _zeros(program.layout, rows=_COUNTED_ROWS)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        program(blocks)
    return counted.get_total_flops() // 2 // _COUNTED_ROWS


def _zeros(layout: InputLayout, *, rows: int) -> Blocks:
    """Blocks as training has them, a user a row, with sequences of full length."""
    sequences = layout.sequences.items()
    return Blocks(
        user_UI=torch.zeros(rows, layout.user_width),
        candidate_NI=torch.zeros(rows, layout.candidate_width),
        user_of_row_N=None,
        tokens={name: torch.zeros(rows, item.max_length, item.width) for name, item in sequences},
        valid={
            name: torch.ones(rows, item.max_length, dtype=torch.bool) for name, item in sequences
        },
    )


def _quiet_place(cell: Cell, work: Path) -> Place:
    logging.getLogger("recsys").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    return Place(SUITES[cell.suite], work / cell.suite)


def _sized(cell: Cell, place: Place) -> Sized:
    base = place.experiment()
    return sized(place.suite, cell.table, ROWS[cell.row], base, base.load_schema())


def _trained(cell: Cell, place: Place, rate: float) -> float:
    """The best validation score of the cell's run at a rate, trained now unless it lies there finished."""
    run = place.run(cell, rate)
    done = run / "score.json"
    if done.is_file():
        return float(json.loads(done.read_text()))
    shutil.rmtree(run, ignore_errors=True)
    experiment = place.experiment(
        model=_sized(cell, place).model, optimizer={"dense_lr": rate}, train={"seed": cell.seed}
    )
    started = time.process_time()
    finished = train(experiment, run)
    (run / "cpu_seconds.json").write_text(str(round(time.process_time() - started, 2)))
    done.write_text(str(finished.score))
    return finished.score


def _header(cell: Cell, measured: Report) -> Record:
    return {
        "table": cell.table,
        "suite": cell.suite,
        "row": cell.row,
        "seed": cell.seed,
        "suite_digest": digest_of(cell),
        "test_rows": measured.rows,
        "parameters": measured.model.parameters,
        "versions": versions(),
        "entries": {entry.name: entry_numbers(entry) for entry in measured.entries},
        "oracle": {
            entry.name: round(entry.reference.auc, 6)
            for entry in measured.entries
            if entry.kind == "binary" and entry.reference is not None
        },
    }


def _references(cell: Cell) -> dict[str, Cell]:
    """The runs on the same seed that a cell is compared with."""
    names = [name for name in REFERENCES if name != cell.row]
    return {name: replace(cell, row=name) for name in names} | {TREES: trees_of(cell)}


def _findings(diagnosis: Diagnosis | None) -> list[dict[str, Any]]:
    if diagnosis is None:
        return []
    kept = {"check", "severity", "level", "expert", "task", "number"}
    found = [item.model_dump(mode="json", include=kept) for item in diagnosis.findings]
    return [{name: value for name, value in item.items() if value is not None} for item in found]


def _levels(diagnosis: Diagnosis | None) -> list[dict[str, float | None]]:
    """The worst numbers of each level of experts."""
    if diagnosis is None:
        return []
    found = []
    for level in diagnosis.levels:
        occupied = [item.occupancy.score for item in level.experts if item.occupancy is not None]
        own = [gate.own_mass_relative for gate in level.gates if gate.own_mass_relative is not None]
        found.append(
            rounded(
                {
                    "zero_share": max(item.zero_share for item in level.experts),
                    "deviation_ratio": level.deviation_ratio,
                    "divergence": level.divergence,
                    "dominance": level.dominance,
                    "occupancy_score": max(occupied, default=None),
                    "own_mass_relative": min(own, default=None),
                    "density_coupling": level.density_coupling,
                }
            )
        )
    return found
