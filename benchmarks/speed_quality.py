"""What bf16 costs in AUC: the reference job with its planted signal, trained in both precisions on the same batches.

    python benchmarks/speed_quality.py --work FOLDER [--seeds 3]

A pass over the rows in batches of 2,048, then the paired difference in validation AUC (DeLong) by task and seed.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measured import rounded, versions, write_record
from peers import CASES, RECORDS
from speed_job import Job, prepare
from speed_ours import one_epoch, training_of

from recsys.compare import delong_difference
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.outcomes import Outcomes
from recsys.measures import scored_rows

PRECISIONS = ("float32", "bf16")
RECORD = RECORDS / "quality.json"
JOB = replace(CASES["small"], rows=196_608, batch_size=2048)


def trained(folder: Path, precision: str, seed: int) -> Outcomes:
    """Predictions of the validation rows after an epoch."""
    with tempfile.TemporaryDirectory() as place:
        training = training_of(folder, Path(place) / "run", precision=precision, seed=seed)
        one_epoch(training)
        return outcomes_of(training.model, training.validation_days, batch_size=16_384)


def compared(folder: Path, job: Job, seed: int) -> dict[str, Any]:
    """By task the AUC in float32, and bf16's less float32's with its standard error."""
    exact, fast = (trained(folder, precision, seed) for precision in PRECISIONS)
    found = {}
    for task in job.task_names:
        rows = [scored_rows(item.logits_of(task), item.labels_of(task)) for item in (fast, exact)]
        difference = delong_difference(*rows)
        assert difference is not None
        found[task] = rounded(
            {
                "float32": difference.second,
                "difference": difference.difference,
                "standard_error": difference.standard_error,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = options.work / "jobs" / "quality"
    prepare(JOB, folder)
    seeds = [compared(folder, JOB, seed) for seed in range(options.seeds)]
    write_record(RECORD, {"job": asdict(JOB), "versions": versions(), "seeds": seeds})


if __name__ == "__main__":
    main()
