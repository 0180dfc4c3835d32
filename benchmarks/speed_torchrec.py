"""The plain loop of benchmarks/peers.py: the same layers by hand on TorchRec's fused collection, as its examples go.

python benchmarks/speed_torchrec.py FOLDER --day train --precision bf16 [--threads 1]
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from speed_clock import Job, measured, parquet_of, read_job, report
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

EXPERTS, EXPERT_HIDDEN, TOWER_HIDDEN = 8, (256, 128), 64
_WARM_STEPS = 2

Sample = tuple[KeyedJaggedTensor, Tensor]


class MMoE(nn.Module):
    """A list of experts, a gate and a tower a task."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        width, (wide, narrow) = job["fields"] * job["dim"], EXPERT_HIDDEN
        tables = [
            EmbeddingBagConfig(
                name=f"t_{n}",
                num_embeddings=job["table_rows"],
                embedding_dim=job["dim"],
                feature_names=[f"id_{n}"],
            )
            for n in range(job["fields"])
        ]
        self.embeddings = FusedEmbeddingBagCollection(
            tables=tables, optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": 0.02}
        )
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU())
            for _ in range(EXPERTS)
        )
        self.gates = nn.ModuleList(nn.Linear(width, EXPERTS) for _ in range(job["tasks"]))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(narrow, TOWER_HIDDEN), nn.ReLU(), nn.Linear(TOWER_HIDDEN, 1))
            for _ in range(job["tasks"])
        )

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        x_BI = self.embeddings(ids).values()
        outputs_BEH = torch.stack([expert(x_BI) for expert in self.experts], dim=1)
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weight_BE = gate(x_BI).softmax(dim=1)
            mixed_BH = torch.bmm(weight_BE.unsqueeze(1).to(outputs_BEH.dtype), outputs_BEH)
            logits.append(tower(mixed_BH.squeeze(1)))
        return torch.cat(logits, dim=1)


def batches(folder: Path, day: str) -> Iterator[Sample]:
    """Shuffled batches of a day, read whole."""
    job = read_job(folder)
    names = [f"id_{n}" for n in range(job["fields"])]
    labels = [f"label:task_{n}" for n in range(job["tasks"])]
    table = pq.read_table(parquet_of(folder, day), columns=names + labels, use_threads=False)
    ids_FB = np.stack([table[name].to_numpy() for name in names])
    labels_BT = np.stack([table[name].to_numpy() for name in labels], axis=1)
    order = np.random.default_rng(0).permutation(table.num_rows)
    for start in range(0, table.num_rows, job["batch_size"]):
        rows = order[start : start + job["batch_size"]]
        values = torch.from_numpy(ids_FB[:, rows].reshape(-1))
        lengths = torch.ones(len(values), dtype=torch.int32)
        ids = KeyedJaggedTensor(keys=names, values=values, lengths=lengths)
        yield ids, torch.from_numpy(labels_BT[rows])


class Loop:
    """A model, its optimizer and one pass over a day at a time."""

    def __init__(self, job: Job, *, bf16: bool) -> None:
        torch.manual_seed(0)
        self.model, self.bf16 = MMoE(job), bf16
        # The tables' optimizer is the fused one.
        dense = [
            item for name, item in self.model.named_parameters() if not name.startswith("embed")
        ]
        self.optimizer = torch.optim.AdamW(dense, lr=1e-3, fused=True)

    def train(self, samples: Iterator[Sample]) -> int:
        count = 0
        for ids, labels_BT in samples:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits_BT = self.model(ids)
            loss = nn.functional.binary_cross_entropy_with_logits(logits_BT.float(), labels_BT)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            count += len(labels_BT)
        return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--day", default="train")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loop = Loop(read_job(options.folder), bf16=options.precision == "bf16")
    loop.train(islice(batches(options.folder, options.day), _WARM_STEPS))
    report(measured(lambda: loop.train(batches(options.folder, options.day))))


if __name__ == "__main__":
    main()
