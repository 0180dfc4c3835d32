"""How near a training step comes to what this machine's matrix products allow, for every architecture.

One thread, batch 8192, an input of 26 ids of width 16, two tasks, towers [64]: forward, gradients of parameters and of
the blocks (embedding tables are left out), clipping and AdamW, in float32 through oneDNN and in bf16 autocast. The
stages have about the multiply-adds of MMoE 8 x [256, 128] (`ceiling_models.py`); DTRN also reads two sequences of 20.

The ceiling is the rate of `torch.mm` of the best of three square sizes, taken right before each step; a share is the
median over rounds of a step's rate by the ceiling's beside it, in process CPU time. The work of a step is counted as
torch dispatches its products, forward and backward: a formula would have to know which gates are products, and which
inputs need no gradient. `alone` is the rate of a step's products one by one, each repeated on operands of its own.

    python benchmarks/ceiling.py [--rounds 7] [--rows 8192] [--only mmoe home] [--record]
"""

import argparse
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The profiler would tell of every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from ceiling_models import PRECISIONS, Architecture, Step, architectures, trained
from ceiling_parts import by_part, counted_flops, largest, products_alone, profiled
from ceiling_table import render, what_keeps
from measured import rounded, versions, write_record

from recsys.memory import keep_freed_memory
from recsys.models.precision import use_fast_float32

RECORD = Path(__file__).resolve().parent / "records" / "ceiling.json"
SQUARES = (1024, 1536, 2048)
_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Ceiling:
    """Square products of one type, and the rates they had, by size."""

    def __init__(self, precision: str) -> None:
        self._operands = {
            size: [torch.randn(size, size).to(_TYPES[precision]) for _ in range(3)]
            for size in SQUARES
        }
        self.rates: dict[int, list[float]] = {size: [] for size in SQUARES}

    def measure(self) -> None:
        """Add a rate in GFLOP/s of each size."""
        for size, (left, right, out) in self._operands.items():
            began = time.process_time()
            torch.mm(left, right, out=out)
            self.rates[size].append(2e-9 * size**3 / (time.process_time() - began))

    @property
    def best(self) -> int:
        """The size whose median is highest."""
        return max(SQUARES, key=lambda size: statistics.median(self.rates[size]))


@dataclass
class Subject:
    """One architecture in one precision, and CPU seconds by round; `beside` tells the ceiling's round beside each."""

    name: str
    precision: str
    step: Step
    flops: int
    products: list[tuple[Step, int]]
    shares: dict[str, float]
    seconds: list[float] = field(default_factory=list)
    seconds_alone: list[float] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)

    def measure(self) -> None:
        self.seconds.append(_cpu_seconds(self.step))
        self.seconds_alone.append(
            sum(count * _warm_cpu_seconds(run) for run, count in self.products)
        )

    def figures(self, ceiling: Ceiling) -> dict[str, Any]:
        """What the record keeps."""
        beside = [ceiling.rates[ceiling.best][index] for index in self.beside]
        return {
            "milliseconds": round(1000 * statistics.median(self.seconds), 1),
            "share": self._share(self.seconds, beside),
            "alone": self._share(self.seconds_alone, beside),
            "parts": rounded(by_part(self.shares)),
            "largest": rounded(largest(self.shares)),
        }

    def _share(self, seconds: list[float], ceiling: list[float]) -> float:
        rates = [1e-9 * self.flops / item for item in seconds]
        ratios = [rate / most for rate, most in zip(rates, ceiling, strict=True)]
        return round(statistics.median(ratios), 4)


def subjects(architecture: Architecture, rows: int) -> list[Subject]:
    """An architecture in each precision, warm, counted and profiled."""
    found = []
    for precision, step in trained(architecture, rows=rows).steps.items():
        step()
        flops, products = counted_flops(step), products_alone(step)
        found.append(Subject(architecture.name, precision, step, flops, products, profiled(step)))
    return found


def measure(found: list[Subject], ceilings: dict[str, Ceiling], *, rounds: int) -> None:
    """Rounds in which all take turns, each right behind its ceiling."""
    for _ in range(rounds):
        for subject in found:
            ceiling = ceilings[subject.precision]
            ceiling.measure()
            subject.beside.append(len(ceiling.rates[SQUARES[0]]) - 1)
            subject.measure()


def record_of(
    found: list[Subject], ceilings: dict[str, Ceiling], *, rows: int, rounds: int
) -> dict[str, Any]:
    """Everything as the page and the next reader want it."""
    by_name: dict[str, dict[str, Any]] = {}
    for subject in found:
        entry = by_name.setdefault(subject.name, {"multiply_adds": round(subject.flops / 6 / rows)})
        entry[subject.precision] = subject.figures(ceilings[subject.precision])
    for entry in by_name.values():
        entry["what_keeps"] = what_keeps(entry)
    return {
        "device": _device(),
        "versions": {name: versions()[name] for name in ("python", "torch")},
        "threads": torch.get_num_threads(),
        "rows": rows,
        "rounds": rounds,
        "ceiling": {
            precision: {
                "size": item.best,
                "gflops": round(statistics.median(item.rates[item.best]), 1),
            }
            for precision, item in ceilings.items()
        },
        "architectures": by_name,
    }


def _cpu_seconds(run: Step) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def _warm_cpu_seconds(run: Step) -> float:
    run()
    return _cpu_seconds(run)


def _device() -> str:
    """The processor's name and the widest instructions that torch uses on it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((item.partition(":")[2].strip() for item in lines if "model name" in item), "CPU")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_fast_float32(torch.device("cpu"))
    keep_freed_memory()
    chosen = [item for item in architectures() if not options.only or item.name in options.only]
    found = [subject for item in chosen for subject in subjects(item, options.rows)]
    ceilings = {precision: Ceiling(precision) for precision in PRECISIONS}
    measure(found, ceilings, rounds=options.rounds)
    record = record_of(found, ceilings, rows=options.rows, rounds=options.rounds)
    print(render(record))
    if options.record:
        write_record(RECORD, record)


if __name__ == "__main__":
    main()
