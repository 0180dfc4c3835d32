"""What a worker of benchmarks/peers.py measures and prints. Runs in each peer's environment: standard library alone."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def read_job(folder: Path) -> Job:
    """The sizes of the reference job that lies in a folder."""
    found: Job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    return found


def parquet_of(folder: Path, day: str) -> Path:
    """The one file of a day's rows."""
    (found,) = folder.glob(read_job(folder)["files"][day])
    return found


def measured(run: Callable[[], int]) -> dict[str, float]:
    """Samples, seconds and the process's peak of memory so far, for a run that returns how many samples it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    samples = run()
    return {
        "samples": samples,
        "cpu_seconds": round(time.process_time() - cpu, 4),
        "wall_seconds": round(time.perf_counter() - wall, 4),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def report(result: dict[str, Any]) -> None:
    """Print a result as the line that the parent looks for."""
    print("RESULT " + json.dumps(result), flush=True)
