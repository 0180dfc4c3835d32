"""How speed and memory change with rows a table, tables, tasks and workers, each from the same small job.

    python benchmarks/speed_growth.py --work FOLDER [--rounds 3] [--axis tables workers]

The job is the reference job of docs/speed.md with 8 tables of 10,000 rows, in bf16 on one thread; each row of the page
changes one size. Samples are per CPU second; for workers, which wait for each other, per second of the clock.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measured import versions, write_record
from peers import HERE, RECORDS, result_of
from speed_job import Job, experiment_of, prepare

RECORD = RECORDS / "growth.json"
BASE = Job(fields=8, rows=81_920, short_rows=8_192, validation_rows=8_192)
AXES: dict[str, dict[int, Job]] = {
    "rows a table": {
        rows: replace(BASE, table_rows=rows) for rows in (10_000, 100_000, 1_000_000, 10_000_000)
    },
    "tables": {tables: replace(BASE, fields=tables) for tables in (1, 4, 16, 64)},
    "tasks": {tasks: replace(BASE, tasks=tasks) for tasks in (2, 8, 32)},
}
SIZES = {axis: tuple(points) for axis, points in AXES.items()} | {"workers": (1, 2)}

Point = dict[str, Any]


def once(job: Job, folder: Path) -> dict[str, float]:
    """One process on a job."""
    prepare(job, folder)
    command = [sys.executable, "-W", "ignore", str(HERE / "speed_ours.py"), str(folder)]
    return result_of([*command, "--precision", "bf16"], threads=1)


def with_workers(workers: int, folder: Path) -> dict[str, float]:
    """`recsys train --workers` on the base job: rows a second of its best training record."""
    prepare(BASE, folder)
    run = folder / f"run-{workers}"
    shutil.rmtree(run, ignore_errors=True)
    train = {"precision": "bf16", "threads": 1, "log_every": 5, "epochs": 2}
    asked = folder / "experiment.json"
    asked.write_text(experiment_of(BASE, folder, train=train).to_json(folder), encoding="utf-8")
    began = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "recsys", "train", str(asked), str(run)]
    subprocess.run(
        [*command, "--workers", str(workers)],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [item["rows_per_second"] for item in records if item["kind"] == "training"]
    return {
        "rows_per_second": round(max(rates), 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def measure(work: Path, axes: list[str], *, rounds: int, file: Path = RECORD) -> None:
    """Add rounds to a record, in each of which the points of these axes take turns."""
    record: dict[str, Any] = {"job": asdict(BASE), "versions": versions(), "points": {}}
    if file.is_file() and (found := json.loads(file.read_text()))["job"] == record["job"]:
        record["points"] = found["points"]
    for _ in range(rounds):
        for axis in axes:
            points = record["points"].setdefault(axis, {})
            for size in SIZES[axis]:
                points.setdefault(str(size), []).append(point(axis, size, work / "jobs"))
                print(axis, size, points[str(size)][-1], flush=True)
        write_record(file, record)


def point(axis: str, size: int, jobs: Path) -> Point:
    """One measurement."""
    folder = jobs / f"{axis.replace(' ', '-')}-{size}"
    if axis == "workers":
        return with_workers(size, folder)
    return once(AXES[axis][size], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--axis", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measure(options.work, options.axis, rounds=options.rounds)


if __name__ == "__main__":
    main()
