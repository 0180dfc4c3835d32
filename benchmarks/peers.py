"""Training speed beside torch-rechub, DeepCTR-Torch and a plain TorchRec loop, from Parquet on disk to updated weights.

    python benchmarks/peers.py --work FOLDER [--case small large] [--rounds 5] [--threads 1]
        [--precision float32 bf16] [--records FOLDER]

Each side is a process of its own on the same rows: it builds its model, takes a step or two to get warm, then is
measured over a pass of a day, reading included. Sides take turns, so what else the machine does falls on all alike;
what counts is CPU time on one thread, and of ratios the median over rounds. Peers have environments of their own under
`--work`, made on the first call; they run float32, as their trainers do. Records go to records/speed; a call goes on
where another stopped. Another processor has records of its own, and float32 alone where it only emulates bf16.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measured import versions, write_record
from speed_job import Job, prepare

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "records" / "speed"
CASES = {
    "small": Job(table_rows=10_000, rows=98_304, short_rows=49_152),
    # A step of who updates every row of every table takes many seconds.
    "large": Job(table_rows=1_000_000, rows=98_304, short_rows=16_384),
}


@dataclass(frozen=True)
class Environment:
    """A peer's own packages: torch first, and what is installed without its dependencies."""

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()


TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "rechub": Environment(("torch-rechub==0.9.0", "pyarrow")),
    "deepctr": Environment(
        ("scikit-learn", "pandas", "pyarrow", "tqdm"), alone=("DeepCTR-Torch==0.3.0",)
    ),
}


@dataclass(frozen=True)
class Side:
    """One of those compared: a script, where it runs, on which day's rows, and its options."""

    script: str
    day: str
    environment: str | None = None
    options: tuple[str, ...] = ()


PRECISIONS = ("float32", "bf16")
SIDES = {
    "torch-rechub": Side("peer_rechub.py", "short", "rechub"),
    "torch-rechub, our layers": Side("peer_rechub.py", "short", "rechub", ("--without-norms",)),
    "DeepCTR-Torch": Side("peer_deepctr.py", "short", "deepctr"),
} | {
    f"{name} {precision}": Side(script, "train", options=("--precision", precision))
    for precision in PRECISIONS
    for name, script in (
        ("TorchRec loop", "speed_torchrec.py"),
        ("recsys", "speed_ours.py"),
        ("ceiling", "speed_ceiling.py"),
    )
}

Round = dict[str, dict[str, float]]


def sides_in(precisions: Sequence[str]) -> tuple[str, ...]:
    """Sides that compute in one of these precisions, and the peers."""
    return tuple(
        name
        for name, side in SIDES.items()
        if side.environment is not None or name.split()[-1] in precisions
    )


def python_of(environment: str | None, work: Path) -> Path:
    """The interpreter of an environment, which is made if it is not there; None is this one."""
    if environment is None:
        return Path(sys.executable)
    folder = work / environment
    found, mark = folder / "bin" / "python", folder / "ready"
    if not mark.exists():
        wanted = ENVIRONMENTS[environment]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # Whatever asks for torch later finds this one and brings no other.
        for packages in ((TORCH,), ("--no-deps", *wanted.alone), wanted.requirements):
            if packages != ("--no-deps",):
                command = [str(found), "-m", "pip", "install", "--quiet", *packages]
                subprocess.run(command, check=True)
        mark.touch()
    return found


def result_of(command: list[str], *, threads: int) -> dict[str, float]:
    """What a worker reports, on so many threads."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    found: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def one_round(names: Sequence[str], folder: Path, work: Path, *, threads: int) -> Round:
    """Every side once."""
    found: Round = {}
    for name in names:
        side = SIDES[name]
        command = [str(python_of(side.environment, work)), "-W", "ignore", str(HERE / side.script)]
        command += [str(folder), "--day", side.day, "--threads", str(threads), *side.options]
        found[name] = result_of(command, threads=threads)
        print(f"{folder.name} {name:22}{rate(found[name]):10,.0f} samples/s", flush=True)
    return found


def rate(result: dict[str, float]) -> float:
    """Samples a CPU second."""
    return result["samples"] / result["cpu_seconds"]


def record_file(case: str, threads: int, records: Path = RECORDS) -> Path:
    return records / (f"peers-{case}.json" if threads == 1 else f"peers-{case}-{threads}.json")


def measure(
    case: str,
    job: Job,
    work: Path,
    *,
    rounds: int,
    threads: int = 1,
    sides: Sequence[str] = tuple(SIDES),
    records: Path = RECORDS,
) -> None:
    """Add rounds to a case's record until it has so many."""
    file = record_file(case, threads, records)
    folder = work / "jobs" / case
    prepare(job, folder)
    record: dict[str, Any] = {
        "case": case,
        "job": asdict(job),
        "threads": threads,
        "versions": versions()
        | {"peers": [*ENVIRONMENTS["rechub"].requirements[:1], *ENVIRONMENTS["deepctr"].alone]},
        "rounds": [],
    }
    if file.is_file() and (found := json.loads(file.read_text()))["job"] == record["job"]:
        record["rounds"] = found["rounds"]
    while len(record["rounds"]) < rounds:
        record["rounds"].append(one_round(sides, folder, work, threads=threads))
        write_record(file, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for case in options.case:
        measure(
            case,
            CASES[case],
            options.work,
            rounds=options.rounds,
            threads=options.threads,
            sides=sides_in(options.precision),
            records=options.records,
        )


if __name__ == "__main__":
    main()
