"""torch-rechub's side of benchmarks/peers.py, in torch-rechub's own environment.

    python benchmarks/peer_rechub.py FOLDER --day short [--threads 1] [--without-norms]

Its MLPs bring a batch normalisation that cannot be switched off; `--without-norms` takes it out, so that the layers are
ours. Measured is the training epoch of its `MTLTrainer`, without the evaluation and the saving of `fit`.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from speed_clock import Job, measured, parquet_of, read_job, report
from torch import nn
from torch.utils.data import DataLoader
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator


def model_of(job: Job) -> MMOE:
    """The job's model with the library's own layers."""
    fields = [
        SparseFeature(f"id_{n}", vocab_size=job["table_rows"], embed_dim=job["dim"])
        for n in range(job["fields"])
    ]
    tasks = ["classification"] * job["tasks"]
    return MMOE(
        fields,
        tasks,
        8,
        expert_params={"dims": [256, 128], "activation": "relu"},
        tower_params_list=[{"dims": [64], "activation": "relu"} for _ in tasks],
    )


def take_norms_out(model: MMOE) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, nn.Identity())


def loader_of(folder: Path, day: str, rows: int | None = None) -> DataLoader:
    """A day's rows as its own generator makes them ready."""
    job = read_job(folder)
    names = [f"id_{n}" for n in range(job["fields"])]
    labels = [f"label:task_{n}" for n in range(job["tasks"])]
    table = pq.read_table(parquet_of(folder, day), columns=names + labels, use_threads=False)
    table = table.slice(0, rows)
    x = {name: table[name].to_numpy() for name in names}
    y = np.stack([table[name].to_numpy() for name in labels], axis=1)
    generator = DataGenerator(x, y)
    size = len(y)
    loaders = generator.generate_dataloader(
        x_val={name: item[:1] for name, item in x.items()},
        y_val=y[:1],
        x_test={name: item[:1] for name, item in x.items()},
        y_test=y[:1],
        batch_size=min(job["batch_size"], size),
    )
    return loaders[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--day", default="short")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-norms", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = read_job(options.folder)
    model = model_of(job)
    if options.without_norms:
        take_norms_out(model)
    trainer = MTLTrainer(model, task_types=["classification"] * job["tasks"], device="cpu")
    trainer.train_one_epoch(loader_of(options.folder, options.day, job["batch_size"]))

    def epoch() -> int:
        loader = loader_of(options.folder, options.day)
        trainer.train_one_epoch(loader)
        return len(loader.dataset)

    report(measured(epoch))


if __name__ == "__main__":
    main()
