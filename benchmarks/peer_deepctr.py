"""DeepCTR-Torch's side of benchmarks/peers.py, in DeepCTR-Torch's own environment.

    python benchmarks/peer_deepctr.py FOLDER --day short [--threads 1]

Measured is `MMOE.fit` for one epoch. It is installed without its dependencies, which would pin torch, and an empty
`requests` stands in for the one with which its import asks a package index for a newer version.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import torch
from speed_clock import Job, measured, parquet_of, read_job, report

sys.modules["requests"] = ModuleType("requests")
from deepctr_torch.inputs import SparseFeat  # noqa: E402
from deepctr_torch.models import MMOE  # noqa: E402

Rows = tuple[dict[str, np.ndarray], np.ndarray]


def model_of(job: Job) -> MMOE:
    fields = [
        SparseFeat(f"id_{n}", vocabulary_size=job["table_rows"], embedding_dim=job["dim"])
        for n in range(job["fields"])
    ]
    tasks = [f"task_{n}" for n in range(job["tasks"])]
    model = MMOE(
        fields,
        num_experts=8,
        expert_dnn_hidden_units=(256, 128),
        gate_dnn_hidden_units=(),
        tower_dnn_hidden_units=(64,),
        task_types=["binary"] * len(tasks),
        task_names=tasks,
        device="cpu",
    )
    model.compile("adam", loss=["binary_crossentropy"] * len(tasks), metrics=[])
    return model


def rows_of(folder: Path, day: str, rows: int | None = None) -> Rows:
    job = read_job(folder)
    names = [f"id_{n}" for n in range(job["fields"])]
    labels = [f"label:task_{n}" for n in range(job["tasks"])]
    table = pq.read_table(parquet_of(folder, day), columns=names + labels, use_threads=False)
    table = table.slice(0, rows)
    x = {name: table[name].to_numpy() for name in names}
    return x, np.stack([table[name].to_numpy() for name in labels], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--day", default="short")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = read_job(options.folder)
    model = model_of(job)

    def epoch(rows: int | None = None) -> int:
        x, y = rows_of(options.folder, options.day, rows)
        model.fit(x, y, batch_size=job["batch_size"], epochs=1, verbose=2)
        return len(y)

    epoch(job["batch_size"])
    report(measured(epoch))


if __name__ == "__main__":
    main()
