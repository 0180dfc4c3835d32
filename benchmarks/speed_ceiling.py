"""The ceiling in benchmarks/peers.py: samples a second of a step that is nothing but its products, at the best rate.

    python benchmarks/speed_ceiling.py FOLDER --precision bf16 [--threads 1]

The rate is that of `torch.mm` of the best of three square sizes (benchmarks/ceiling.py); a sample's work is three times
the multiply-adds of experts, gates, mixture and towers.
"""

import argparse
from pathlib import Path

import torch
from ceiling import Ceiling
from speed_clock import measured, report
from speed_job import EXPERT_HIDDEN, EXPERTS, TOWER_HIDDEN, Job
from speed_ours import job_in

from recsys.models.precision import use_fast_float32

_ROUNDS = 7


def multiply_adds(job: Job) -> int:
    """Of one sample's forward pass."""
    width = job.fields * job.dim
    wide, narrow = EXPERT_HIDDEN
    experts = EXPERTS * (width * wide + wide * narrow)
    a_task = EXPERTS * (width + narrow) + narrow * TOWER_HIDDEN[0] + TOWER_HIDDEN[0]
    return experts + job.tasks * a_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--day")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_fast_float32(torch.device("cpu"))
    ceiling = Ceiling(options.precision)
    ceiling.measure()

    def products() -> int:
        for _ in range(_ROUNDS):
            ceiling.measure()
        return 0

    result = measured(products)
    gflops = sorted(ceiling.rates[ceiling.best])[_ROUNDS // 2]
    rate = 1e9 * gflops / (6 * multiply_adds(job_in(options.folder)))
    report(result | {"samples": rate * result["cpu_seconds"]})


if __name__ == "__main__":
    main()
