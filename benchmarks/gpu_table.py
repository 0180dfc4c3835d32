"""The record of benchmarks/gpu.py as a section of a page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from estimates import markdown

RECORD = Path(__file__).resolve().parent / "records" / "gpu.json"
_TITLE = "## Training on a GPU\n\n"


def render(record: Path = RECORD) -> str:
    """The section, or the sentence that there are no figures."""
    if not record.exists():
        return f"{_TITLE}Not measured: `benchmarks/gpu.py` has not been run on a GPU yet.\n"
    found = json.loads(record.read_text(encoding="utf-8"))
    jobs = found["jobs"].items()
    return _TITLE + _introduction(found) + "".join(_job(name, job) for name, job in jobs)


def _introduction(found: Mapping[str, Any]) -> str:
    ceilings = found["ceilings"]
    products = ", ".join(
        f"{item['product_tflops']:.1f} TFLOP/s in {name}" for name, item in ceilings.items()
    )
    tests = found["tests"]
    ran = "were not run" if tests is None else f"ended with: {tests['last_line'].strip('= ')}"
    return (
        f"{found['device']}; Python {found['versions']['python']}, torch {found['versions']['torch']}. In the same run "
        f"it copied {ceilings['float32']['copy_gb_a_second']:.0f} GB/s (read and written) and multiplied "
        f"{products}. *of floor* is the least time that a step's products and its tables' bytes take at these rates, "
        f"by the time that the step took (`benchmarks/gpu.py`). The tests marked `gpu` {ran}.\n"
    )


def _job(name: str, job: Mapping[str, Any]) -> str:
    runs = markdown([_row(run) for run in job["runs"]], left=["tables", "precision", "step"])
    far = [item for item in job["operators"] if item["far"]]
    told = ", ".join(
        f"`{item['name']}` ({_percent(item['share'])} of the time, at {_percent(item['of_limit'])} of its limit)"
        for item in far
    )
    ending = f"Far from their limits in the eager float32 step: {told}.\n" if far else ""
    return f"\n### {name}, {job['batch']:,} rows a step\n\n{runs}\n{ending}"


def _row(run: Mapping[str, Any]) -> dict[str, str]:
    row = {"tables": run["backend"], "precision": run["precision"], "step": run["mode"]}
    if "failed" in run:
        return row | {"rows/s": "failed", "ms": "", "of floor": ""}
    return row | {
        "rows/s": f"{run['samples_a_second']:,}",
        "ms": f"{run['ms']:.2f}",
        "of floor": _percent(run["of_floor"]),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
