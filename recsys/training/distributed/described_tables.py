"""Tables as TorchRec collections that hold nothing, for the planner, and the sharders that say how they may be cut.

On GPUs a ragged table, one that gives a vector back for every id, is an `EmbeddingCollection`: each rank sends the
vectors of its own rows. As an `EmbeddingBagCollection` of bags of one, cut by rows, a rank would send zeros for all the
ids that lie elsewhere, W times as much. On CPUs, whose kernel for the former is slow, it is bags of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.distributed.fused_embedding import FusedEmbeddingCollectionSharder
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    FusedEmbeddingCollection,
)

from recsys.models.embeddings.tables import TableSpec, module_name
from recsys.models.embeddings.torchrec import OPTIMIZERS
from recsys.sharding import Kernel, ShardingKind
from recsys.training.distributed.cluster import Device
from recsys.training.distributed.demand import Demand

_FUSED: dict[str, Any] = {"optimizer_kwargs": {"lr": 0.02}, "device": torch.device("meta")}
_BAGS: tuple[ShardingKind, ...] = (
    "table_wise",
    "row_wise",
    "table_row_wise",
    "column_wise",
    "table_column_wise",
)


def collections(demands: Sequence[Demand], device: Device) -> nn.ModuleList:
    """The collections of these tables on torch's meta device: shapes without memory, whatever their size."""
    single = [demand for demand in demands if demand.spec.ragged]
    pooled = [demand for demand in demands if not demand.spec.ragged]
    found = [_vectors(demand) if device == "cuda" else _bags([demand]) for demand in single]
    return nn.ModuleList([*found, *([_bags(pooled)] if pooled else [])])


def kinds(spec: TableSpec) -> tuple[ShardingKind, ...]:
    """The ways in which training can cut a table."""
    return ("table_wise", "row_wise", "column_wise") if spec.ragged else _BAGS


def kernels(device: Device) -> tuple[Kernel, ...]:
    """Where training on a device can keep rows."""
    return ("fused", "fused_uvm", "fused_uvm_caching") if device == "cuda" else ("fused",)


def sharders() -> list[Any]:
    """One sharder a class of collection, for the planner and for `DistributedModelParallel`."""
    return [_BagSharder(), _VectorSharder()]


def _vectors(demand: Demand) -> nn.Module:
    config = EmbeddingConfig(**_shape(demand.spec), feature_names=["ids"])
    found: nn.Module = FusedEmbeddingCollection(
        tables=[config], optimizer_type=OPTIMIZERS[demand.optimizer], **_FUSED
    )
    return found


def _bags(demands: Sequence[Demand]) -> nn.Module:
    tables = [
        EmbeddingBagConfig(
            **_shape(spec),
            feature_names=["ids"] if spec.ragged else list(spec.streams),
            pooling=PoolingType.SUM,
        )
        for spec in (demand.spec for demand in demands)
    ]
    found: nn.Module = FusedEmbeddingBagCollection(
        tables=tables, optimizer_type=OPTIMIZERS[demands[0].optimizer], **_FUSED
    )
    return found


def _shape(spec: TableSpec) -> dict[str, Any]:
    return {
        "name": module_name(spec.name),
        "num_embeddings": spec.rows,
        "embedding_dim": spec.dim,
    }


def _with_state(module: Any, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Parameters marked with their optimizer: without the mark the planner counts no optimizer state."""
    for parameter in parameters.values():
        parameter._optimizer_classes = [module.optimizer_type()]  # type: ignore[attr-defined]
    return parameters


class _BagSharder(FusedEmbeddingBagCollectionSharder):  # type: ignore[misc] # a class without types
    """Row-wise on CPUs too, where it works though TorchRec does not offer it; no data parallelism anywhere."""

    def shardable_parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return _with_state(module, super().shardable_parameters(module))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(_BAGS)


class _VectorSharder(FusedEmbeddingCollectionSharder):  # type: ignore[misc] # a class without types
    def shardable_parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return _with_state(module, super().shardable_parameters(module))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        found: list[str] = super().sharding_types(compute_device_type)
        return [kind for kind in found if kind != "data_parallel"]
