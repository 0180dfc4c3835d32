"""What `gpu.py` trains: the reference job and a DLRM of MLPerf's shape, each a dense part behind embedding tables.

Axes: **B** rows, **F** tables, **K** embedding width, **D** dense inputs, **I** input width, **T** tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models import Blocks, ModelConfig, build_program
from recsys.models.embeddings.plain import PlainTables
from recsys.models.embeddings.tables import Bags, EmbeddingsConfig, Tables, TableSpec
from recsys.schema import Schema

FIELDS = 26
TASKS = ("click", "buy")
BATCHES = 4
# MLPerf's Criteo tables have up to 40 million rows; here as many as leave room for the rest.
_DLRM_ROWS = 1_000_000
_ZIPF = 1.05


@dataclass(frozen=True)
class Shape:
    """A job's sizes. `dense` inputs stand beside the tables."""

    name: str
    batch: int
    rows: int
    dim: int
    dense: int = 0
    dlrm: bool = False

    def tiny(self) -> "Shape":
        """The same job small enough for a test."""
        return replace(self, batch=64, rows=200, dim=8)


SHAPES = (
    Shape("MMoE, 26 x 10 k rows", batch=8192, rows=10_000, dim=16),
    Shape("MMoE, 26 x 1 M rows", batch=8192, rows=1_000_000, dim=16),
    Shape("DLRM, 26 x 1 M rows of 128", 65_536, rows=_DLRM_ROWS, dim=128, dense=13, dlrm=True),
)


@dataclass(frozen=True, eq=False)
class Job:
    """Tables, a dense part from their rows and dense inputs to logits [B, T], and batches to take turns with."""

    shape: Shape
    tables: Tables
    dense: nn.Module
    batches: tuple["JobBatch", ...]

    @property
    def table_bytes(self) -> int:
        """What a step must move at the least for the tables, float32: each distinct row once each way.

        Forward: distinct rows in, a vector a row of the batch out. Backward: as many gradients in, distinct rows and
        their optimizer's number in and out.
        """
        distinct = sum(batch.distinct for batch in self.batches) // len(self.batches)
        vectors = self.shape.batch * FIELDS
        return 4 * (self.shape.dim * (3 * distinct + 2 * vectors) + 2 * distinct)


@dataclass(frozen=True, eq=False)
class JobBatch:
    """Ids by table, dense inputs [B, D], labels [B, T], and how many distinct rows the ids read."""

    bags: Mapping[str, Bags]
    dense_BD: Tensor
    labels_BT: Tensor
    distinct: int


def build_tables(shape: Shape, device: torch.device, *, backend: str) -> Tables:
    """Fresh tables on a device: what takes longest to build, for they are drawn on the CPU."""
    specs = tuple(
        TableSpec(f"id_{n}", shape.rows, shape.dim, (f"id_{n}",), False) for n in range(FIELDS)
    )
    config = EmbeddingsConfig(backend="plain" if backend == "plain" else "torchrec")
    return _tables_of(backend)(specs, config, optimizer="rowwise_adagrad", seed=0, device=device)


def build_job(shape: Shape, device: torch.device, tables: Tables) -> Job:
    """A job on tables, with a fresh dense part."""
    torch.manual_seed(0)
    dense = DLRM(shape) if shape.dlrm else Ranker(shape)
    batches = tuple(_batch(shape, device, seed=seed) for seed in range(BATCHES))
    return Job(shape, tables, dense.to(device).train(), batches)


def backends() -> tuple[str, ...]:
    """Backends of tables that import here."""
    try:
        import recsys.models.embeddings.torchrec  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return ("plain",)
    return ("plain", "torchrec")


class Ranker(nn.Module):
    """The project's MMoE of 8 experts [256, 128] with towers [64], from looked-up rows [B, F K] to logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        sections = {
            "mixing": {"kind": "mmoe", "experts": 8, "expert_hidden": [256, 128]},
            "heads": {"kind": "towers", "hidden": [64]},
        }
        config = ModelConfig.parse(sections, where="benchmark")
        self.program = build_program(_schema(shape), config, seed=0)

    def forward(self, rows_BI: Tensor, dense_BD: Tensor) -> Tensor:
        blocks = Blocks(user_UI=rows_BI[:, :0], candidate_NI=rows_BI)
        logits_BT: Tensor = self.program(blocks)
        return logits_BT


class DLRM(nn.Module):
    """Bottom MLP 512-256-K, dot products of all pairs of vectors, top MLP 1024-1024-512-256-1 (arXiv 1906.00091)."""

    lower_index: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dim = shape.dim
        self.bottom = _mlp(shape.dense, 512, 256, shape.dim)
        vectors = FIELDS + 1
        pairs = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("lower_index", pairs[0] * vectors + pairs[1], persistent=False)
        width = shape.dim + pairs.shape[1]
        self.top = nn.Sequential(*_mlp(width, 1024, 1024, 512, 256), nn.Linear(256, 1))

    def forward(self, rows_BI: Tensor, dense_BD: Tensor) -> Tensor:
        bottom_BK = self.bottom(dense_BD)
        vectors = torch.cat(
            [bottom_BK[:, None], rows_BI.to(bottom_BK.dtype).unflatten(1, (FIELDS, self.dim))],
            dim=1,
        )
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        pairs = products.index_select(1, self.lower_index)
        logits_BT: Tensor = self.top(torch.cat([bottom_BK, pairs], dim=1))
        return logits_BT


def loss_of(logits_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the tasks that there are logits for."""
    return F.binary_cross_entropy_with_logits(logits_BT.float(), labels_BT[:, : logits_BT.shape[1]])


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, out in pairwise(widths):
        layers += [nn.Linear(fan_in, out), nn.ReLU()]
    return nn.Sequential(*layers)


def _tables_of(backend: str) -> Callable[..., Tables]:
    if backend == "plain":
        return PlainTables
    from recsys.models.embeddings.torchrec import TorchRecTables

    found: Callable[..., Tables] = TorchRecTables
    return found


def _batch(shape: Shape, device: torch.device, *, seed: int) -> JobBatch:
    """Ids of a Zipf law, the popular ones scattered over the rows."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(0).permutation(shape.rows)
    shares = np.cumsum(1.0 / np.arange(1, shape.rows + 1) ** _ZIPF)
    ids = [
        places[np.searchsorted(shares, random.random(shape.batch) * shares[-1])]
        for _ in range(FIELDS)
    ]
    one = torch.ones(shape.batch, dtype=torch.int32, device=device)
    generator = torch.Generator().manual_seed(seed)
    return JobBatch(
        bags={
            f"id_{n}": Bags(torch.from_numpy(found).to(device), one) for n, found in enumerate(ids)
        },
        dense_BD=torch.rand(shape.batch, shape.dense, generator=generator).to(device),
        labels_BT=(torch.rand(shape.batch, len(TASKS), generator=generator) < 0.3)
        .float()
        .to(device),
        distinct=sum(len(np.unique(found)) for found in ids),
    )


def _schema(shape: Shape) -> Schema:
    names = [f"id_{n}" for n in range(FIELDS)]
    tree: dict[str, Any] = {
        "columns": dict.fromkeys(names, "int64") | dict.fromkeys(TASKS, "bool"),
        "tables": {name: {"rows": shape.rows, "dim": shape.dim, "ids": "hash"} for name in names},
        "features": {name: {"kind": "categorical", "table": name} for name in names},
        "tasks": {name: {"label": name} for name in TASKS},
    }
    return Schema.parse(tree, where="benchmark")
