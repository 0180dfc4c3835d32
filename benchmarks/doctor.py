"""What the doctor costs: watching one training step in 200, and an evaluation that is watched.

CPU time, medians over rounds in which the measured parts take turns. A watched step is compared with a plain one, and
the difference spread over the steps between two watched ones; a watched scoring pass looks at every n-th row, as
evaluation does. The gradients of a report (8 x 1,024 rows) are a fixed cost that is not in it.

    python benchmarks/doctor.py [--rounds 15] [--rows 4096] [--every 200] [--tasks 4]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.models import mixings

WIDTH = 416
STAGES: dict[str, dict[str, object]] = {
    "mmoe": {"experts": 8, "expert_hidden": [256, 128]},
    "ple": {"levels": [[256], [128]]},
}


@dataclass(frozen=True)
class Costs:
    """Median CPU milliseconds."""

    step: float
    watched_step: float
    forward: float
    watched_forward: float


def training_step(stage: nn.Module, x_BI: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        stage.train()
        stage(x_BI).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def watched(stage: nn.Module, run: Callable[[], None], *, every: int) -> Callable[[], None]:
    watch = ExpertWatch(stage, every=every)

    def watched_run() -> None:
        with watch.attached():
            run()

    return watched_run


def measure(stage: nn.Module, x_BI: Tensor, *, rounds: int, every_row: int) -> Costs:
    step = training_step(stage, x_BI)

    def forward() -> None:
        stage.eval()
        with torch.no_grad():
            stage(x_BI)

    runs = (
        step,
        watched(stage, step, every=1),
        forward,
        watched(stage, forward, every=every_row),
    )
    milliseconds: list[list[float]] = [[] for _ in runs]
    for round_number in range(rounds + 1):
        for found, run in zip(milliseconds, runs, strict=True):
            start = time.process_time()
            run()
            # The first round warms up.
            if round_number:
                found.append(1000 * (time.process_time() - start))
    return Costs(*(statistics.median(found) for found in milliseconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--every-row", type=int, default=15, help="1 M rows a pass: every 15th")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x_BI = torch.randn(options.rows, WIDTH, generator=torch.Generator().manual_seed(0))
    tasks = tuple(f"t{number}" for number in range(options.tasks))
    for kind, settings in STAGES.items():
        config = mixings[kind].Config.parse({"kind": kind, **settings}, where=kind)
        stage = mixings[kind](config, width=WIDTH, tasks=tasks)
        found = measure(stage, x_BI, rounds=options.rounds, every_row=options.every_row)
        more = (found.watched_step - found.step) / found.step
        scoring = (found.watched_forward - found.forward) / found.forward
        print(
            f"{kind:5} step {found.step:7.1f} ms, watched {found.watched_step:7.1f} ms: {more:+.1%} of one step, "
            f"{more / options.every:+.3%} when one in {options.every} is; forward {found.forward:6.1f} ms, every "
            f"{options.every_row}th row watched {found.watched_forward:6.1f} ms: {scoring:+.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
