"""Every architecture under one equal budget: the same rows, embeddings, optimizer, batch order and seeds for all.

    RECSYS_DATA=/path/to/data python benchmarks/towers.py [SUITE ...] [--table equal_parameters] [--row ple ...]
    python benchmarks/towers.py --page

Builds each suite once under WORK. For every row of a table a model is trained at three learning rates with seed 0, and
with the one that validation likes best at four more seeds; boosted trees learn the same rows. One small record a run
is written under benchmarks/records/towers/; what has a record is not measured again, so a second call goes on where the
first stopped. `--page` writes docs/benchmark.md from the records.
"""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

os.environ.setdefault("OMP_NUM_THREADS", "1")

from towers_page import PAGE, render
from towers_rows import REFERENCES, SUITES, Suite
from towers_runs import (
    LEARNING_RATES,
    RECORDS,
    TREES,
    Cell,
    Place,
    Record,
    is_fresh,
    measure,
    measure_trees,
    prepare,
    search,
    trees_of,
)
from towers_speed import measure_speed

TABLES = ("equal_parameters", "equal_experts", "papers")


@dataclass(frozen=True)
class Part:
    """Rows of a suite in a table, of which some have no record yet."""

    table: str
    suite: Suite
    rows: tuple[str, ...]
    seeds: int
    records: Path
    work: Path
    again: bool

    def cells(self, row: str) -> list[Cell]:
        """What is left to measure of a row. Of what others are compared with, the predictions must be there too."""
        seeds = range(1 if row == TREES else self.seeds)
        cells = [Cell(self.table, self.suite.name, row, seed, self.records) for seed in seeds]
        if row == TREES:
            cells = [trees_of(cell) for cell in cells]
        return [cell for cell in cells if not self._is_done(cell)]

    def _is_done(self, cell: Cell) -> bool:
        if cell.row in (*REFERENCES, TREES):
            return is_fresh(cell) and Place(self.suite, self.work / self.suite.name).has_report(
                cell
            )
        return is_fresh(cell) and not self.again

    @property
    def is_done(self) -> bool:
        """Whether every row has its records."""
        cells = [
            Cell(self.table, self.suite.name, row, seed, self.records)
            for row in self.rows
            for seed in range(self.seeds)
        ]
        return not self.again and all(
            is_fresh(trees_of(cell) if cell.row == TREES else cell) for cell in cells
        )

    @property
    def runs_left(self) -> int:
        """Trainings, searches of the learning rate among them."""
        left = {row: len(self.cells(row)) for row in self.rows}
        return sum(
            count + len(LEARNING_RATES) * (row != TREES) for row, count in left.items() if count
        )


@dataclass
class Bench:
    """The processes that do the work, and how far they are. A failed run is told and left out."""

    pool: ProcessPoolExecutor
    left: int
    failed: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    done: int = 0

    def measure(self, part: Part) -> None:
        """The rows of a part, those first that others are compared with."""
        trees = [
            (cell.name, self.pool.submit(measure_trees, cell, part.work))
            for cell in part.cells(TREES)
        ]
        references = [row for row in part.rows if row in REFERENCES]
        others = [row for row in part.rows if row not in (*REFERENCES, TREES)]
        scores = self._searched(part, references)
        self._wait(dict(trees))
        # The others' searches need no reference: both cores stay busy.
        measured = self._measured(part, references, scores)
        scores = self._searched(part, others)
        self._wait(dict(measured))
        self._wait(dict(self._measured(part, others, scores)))

    def _searched(self, part: Part, rows: Sequence[str]) -> dict[str, dict[str, float]]:
        """The validation score of every learning rate, by row; rows that are measured already are left out."""
        found: dict[str, dict[str, Future[float]]] = {}
        for row in rows:
            if part.cells(row):
                cell = Cell(part.table, part.suite.name, row, 0, part.records)
                found[row] = {
                    f"{rate:g}": self.pool.submit(search, cell, rate, part.work)
                    for rate in LEARNING_RATES
                }
        self._wait(
            {
                f"{part.table} {part.suite.name} {row} rate {rate}": item
                for row, rates in found.items()
                for rate, item in rates.items()
            }
        )
        scores = {
            row: {rate: item.result() for rate, item in rates.items() if not item.exception()}
            for row, rates in found.items()
        }
        return {row: rates for row, rates in scores.items() if rates}

    def _measured(
        self, part: Part, rows: Sequence[str], scores: dict[str, dict[str, float]]
    ) -> list[tuple[str, "Future[Record]"]]:
        return [
            (cell.name, self.pool.submit(measure, cell, scores[row], part.work))
            for row in rows
            if row in scores
            for cell in part.cells(row)
        ]

    def _wait(self, submitted: Mapping[str, "Future[Any]"]) -> None:
        names = {item: name for name, item in submitted.items()}
        for item in as_completed(names):
            self.done += 1
            error = item.exception()
            if error is not None:
                self.failed.append(f"{names[item]}: {error}")
            self._tell(names[item], "failed" if error else _shown(item.result()))

    def _tell(self, name: str, what: str) -> None:
        spent = (time.monotonic() - self.began) / 60
        left = max(self.left - self.done, 0) * spent / self.done
        typer.echo(f"{self.done:4d}/{self.left} {spent:5.1f} min, {left:5.1f} left: {name}: {what}")


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="SUITE")] = None,
    table: Annotated[str, typer.Option(help=", ".join(TABLES))] = "",
    row: Annotated[list[str] | None, typer.Option(help="Only these rows.")] = None,
    work: Annotated[Path, typer.Option(help="Encoders, data, runs.")] = Path(
        "benchmarks-work/towers"
    ),
    records: Annotated[Path, typer.Option(help="Where records go.")] = RECORDS,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    rows: Annotated[int | None, typer.Option(help="Training rows of simulated suites.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread.")] = 2,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what has a record.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Only time training steps.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Only write docs/benchmark.md.")] = False,
) -> None:
    """Measure suites, or write the page about them."""
    if page:
        PAGE.write_text(render(), encoding="utf-8")
        typer.echo(f"written: docs/{PAGE.name}")
        return
    logging.basicConfig(format="%(message)s")
    plan = [
        Part(name, suite, asked, seeds, records, work, again)
        for name, suite, asked in _plan(names or list(SUITES), table, tuple(row or ()))
    ]
    if speed:
        for part in plan:
            if part.table == "equal_parameters":
                typer.echo(f"{part.suite.name}: training steps")
                measure_speed(prepare(part.suite, work), part.suite.rows)
        return
    plan = [part for part in plan if not part.is_done]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        bench = Bench(pool, sum(part.runs_left for part in plan))
        for part in plan:
            prepare(part.suite, work, rows=rows)
            bench.measure(part)
    for line in bench.failed:
        typer.echo(line, err=True)
    if bench.failed:
        sys.exit(f"{len(bench.failed)} runs failed; call again to try those once more")


def _plan(
    names: list[str], table: str, asked: tuple[str, ...]
) -> Iterator[tuple[str, Suite, tuple[str, ...]]]:
    """Tables, their suites and rows, in the order of the page."""
    for unknown in set(names) - set(SUITES):
        sys.exit(f"no suite {unknown!r}; there are {', '.join(SUITES)}")
    for name in (table,) if table else TABLES:
        if name not in TABLES:
            sys.exit(f"no table {name!r}; there are {', '.join(TABLES)}")
        for suite in SUITES.values():
            if suite.name in names and name in suite.tables:
                known = (TREES, *suite.rows)
                for unknown in set(asked) - set(known):
                    sys.exit(f"{suite.name} has no row {unknown!r}; there are {', '.join(known)}")
                wanted = {TREES, *REFERENCES, *asked}
                yield name, suite, tuple(row for row in known if not asked or row in wanted)


def _shown(found: Record | float) -> str:
    if isinstance(found, float):
        return f"{found:.4f} on validation"
    aucs = [entry["auc"] for entry in found["entries"].values() if entry.get("auc") is not None]
    return f"AUC {' '.join(f'{auc:.4f}' for auc in aucs[:6])}, {found['cpu_seconds']} CPU s"


if __name__ == "__main__":
    typer.run(main)
