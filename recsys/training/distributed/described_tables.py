"""Tables as TorchRec collections that hold nothing, for the planner, and the sharders that say how they may be cut.

They are those that training looks up: `recsys.models.embeddings.fused` makes both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchrec.distributed.fused_embedding import FusedEmbeddingCollectionSharder
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder

from recsys.models.embeddings.fused import RAGGED, Vectors, fused_collections
from recsys.models.embeddings.tables import EmbeddingsConfig, TableSpec
from recsys.sharding import Kernel, ShardingKind
from recsys.training.distributed.cluster import Device
from recsys.training.distributed.demand import Demand

_BAGS: tuple[ShardingKind, ...] = (
    "table_wise",
    "row_wise",
    "table_row_wise",
    "column_wise",
    "table_column_wise",
    "data_parallel",
)


def collections(demands: Sequence[Demand], device: Device) -> nn.ModuleList:
    """The collections of these tables on torch's meta device: shapes without memory, whatever their size."""
    return fused_collections(
        [demand.spec for demand in demands],
        EmbeddingsConfig(),
        optimizer=demands[0].optimizer if demands else "rowwise_adagrad",
        device=torch.device("meta"),
        form=RAGGED[device],
    )


def kinds(spec: TableSpec) -> tuple[ShardingKind, ...]:
    """The ways in which training can cut or copy a table."""
    return ("table_wise", "row_wise", "column_wise", "data_parallel") if spec.ragged else _BAGS


def kernels(device: Device) -> tuple[Kernel, ...]:
    """Where training on a device can keep rows."""
    return ("fused", "fused_uvm", "fused_uvm_caching") if device == "cuda" else ("fused",)


def sharders() -> list[Any]:
    """One sharder a class of collection, for the planner and for `DistributedModelParallel`."""
    return [_BagSharder(), _VectorSharder()]


def _with_state(module: Any, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Parameters marked with their optimizer: without the mark the planner counts no optimizer state."""
    for parameter in parameters.values():
        parameter._optimizer_classes = [module.optimizer_type()]  # type: ignore[attr-defined]
    return parameters


class _BagSharder(FusedEmbeddingBagCollectionSharder):  # type: ignore[misc] # a class without types
    """Row-wise on CPUs too, where it works though TorchRec does not offer it."""

    def shardable_parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return _with_state(module, super().shardable_parameters(module))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(_BAGS)


class _VectorSharder(FusedEmbeddingCollectionSharder):  # type: ignore[misc] # a class without types
    @property
    def module_type(self) -> type[nn.Module]:
        return Vectors

    def shardable_parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return _with_state(module, super().shardable_parameters(module))
