"""Where the time of the reference job goes, by part of a step, and what the feed gives alone.

    python benchmarks/speed_parts.py --work FOLDER [--rounds 5]

Cases and precisions take turns, a process each; kept are medians over rounds.
"""

import argparse
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measured import versions, write_record
from peers import CASES, HERE, RECORDS, rate, result_of
from speed_job import prepare

RECORD = RECORDS / "parts.json"
PRECISIONS = ("float32", "bf16")


def measure(work: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds by case, precision and part; samples a CPU second of the feed by case."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        case: {name: [] for name in (*PRECISIONS, "feed")} for case in CASES
    }
    for _ in range(rounds):
        for case, job in CASES.items():
            folder = work / "jobs" / case
            prepare(job, folder)
            for precision in PRECISIONS:
                part = _worker("speed_step.py", folder, "--precision", precision)
                found[case][precision].append(part)
            found[case]["feed"].append(_worker("speed_ours.py", folder, "--feed"))
            print(case, {name: values[-1] for name, values in found[case].items()}, flush=True)
    return {
        "jobs": {case: asdict(job) for case, job in CASES.items()},
        "versions": versions(),
        "milliseconds": {
            case: {name: _medians(values[name]) for name in PRECISIONS}
            for case, values in found.items()
        },
        "feed": {
            case: round(statistics.median(map(rate, values["feed"])))
            for case, values in found.items()
        },
    }


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(item[name] for item in rounds), 2) for name in rounds[0]}


def _worker(script: str, folder: Path, *options: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", str(HERE / script), str(folder), *options]
    return result_of(command, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    write_record(RECORD, measure(options.work, options.rounds))


if __name__ == "__main__":
    main()
