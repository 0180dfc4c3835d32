"""Embedding tables of TorchRec: fbgemm's fused kernels, in one process as in many.

`FusedEmbeddingBagCollection` updates rows inside the backward pass without a process group, and
`FusedEmbeddingBagCollectionSharder` replaces it in place when `DistributedModelParallel` wraps the model. An
unsharded `EmbeddingBagCollection` would build a dense gradient of the table's size.

Tables whose slots all have one bag a row share one collection. A ragged table, one that a sequence or weighted ids
read, has a collection of its own, fed with all of its ids as one stream: two lookups of one table would be two
optimizer updates, and on CPU `EmbeddingCollection` is an order of magnitude slower.

Only this module and `recsys.training.distributed` may import torchrec or fbgemm.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from recsys.errors import ConfigError
from recsys.models.embeddings.tables import (
    INITIAL_RATE,
    Bags,
    EmbeddingsConfig,
    TableSpec,
    initial_rows,
    module_name,
    table_name,
)

# fbgemm's kernels read rows in vectors of four.
DIM_MULTIPLE = 4
# The one feature of a ragged table's collection.
_STREAM = "ids"


class TorchRecTables(nn.Module):
    """Tables in TorchRec collections. The contract is `recsys.models.embeddings.tables.Tables`."""

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: EmbeddingsConfig,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        # The first lookup would tell users how TorchRec should ask whether it is being traced.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        for spec in specs:
            check_spec(spec)
        self._pooled_specs = tuple(spec for spec in specs if not spec.ragged)
        self._ragged_specs = tuple(spec for spec in specs if spec.ragged)
        groups = [[spec] for spec in self._ragged_specs]
        if self._pooled_specs:
            groups.append(list(self._pooled_specs))
        # The pooled collection, if there is one, comes last.
        self.collections = nn.ModuleList(_collection(group, config, device) for group in groups)
        self._initialise(specs, config, seed=seed)

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        collections = self._collections()
        for spec, collection in zip(self._ragged_specs, collections, strict=False):
            rows_MK = collection(_one_stream(bags[spec.name]))[_STREAM]
            found[spec.name] = rows_MK[: len(_lengths(bags[spec.name]))]
        if self._pooled_specs:
            # As a dictionary: its one split has one backward, where each `pooled[name]` would fill all columns.
            pooled = collections[-1](_streams(self._pooled_specs, bags)).to_dict()
            for spec in self._pooled_specs:
                parts: list[Tensor] = [pooled[name] for name in spec.streams]
                found[spec.name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found

    def set_learning_rate(self, rate: float) -> None:
        for collection in self._collections():
            optimizer = _optimizer(collection)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # The step of a fused optimizer hands the rate to the kernel and does nothing else.
            optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for collection in self._collections():
            for key, weight in collection.state_dict().items():
                found[_table(key)] = _local(weight)
        return found

    def accumulators(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for collection in self._collections():
            for key, state in _optimizer(collection).state_dict()["state"].items():
                (found[_table(key)],) = (_local(item) for item in state.values())
        return found

    def _collections(self) -> list[Any]:
        # Read anew each time: sharding replaces the modules in the list.
        return list(self.collections)

    @torch.no_grad()
    def _initialise(
        self, specs: Sequence[TableSpec], config: EmbeddingsConfig, *, seed: int
    ) -> None:
        weights, accumulators = self.weights(), self.accumulators()
        for spec in specs:
            for start, rows in initial_rows(spec, seed=seed, deviation=config.initial_deviation):
                weights[spec.name][start : start + len(rows)] = rows
            accumulators[spec.name].fill_(config.initial_accumulator)


def check_spec(spec: TableSpec) -> None:
    """Raise ConfigError for a table that TorchRec's kernels or collections cannot hold."""
    if spec.dim % DIM_MULTIPLE:
        raise ConfigError(
            f"tables.{spec.name}: dim {spec.dim} is no multiple of {DIM_MULTIPLE}, which TorchRec's kernels need; "
            'change it or set model.embeddings.backend = "plain"'
        )
    if spec.rows >= 2**31:
        raise ConfigError(
            f"tables.{spec.name}: {spec.rows} rows; TorchRec's collections count rows in 32 bits"
        )


def _collection(
    specs: Sequence[TableSpec], config: EmbeddingsConfig, device: torch.device
) -> nn.Module:
    tables = [
        EmbeddingBagConfig(
            name=module_name(spec.name),
            num_embeddings=spec.rows,
            embedding_dim=spec.dim,
            feature_names=[_STREAM] if spec.ragged else list(spec.streams),
            # Means are sums divided by our own code: one pooling for all slots means one kernel for all tables.
            pooling=PoolingType.SUM,
        )
        for spec in specs
    ]
    # The default would rewrite an id outside the table to row 0 and go on.
    settings = {
        "lr": INITIAL_RATE,
        "eps": config.epsilon,
        "bounds_check_mode": BoundsCheckMode.FATAL,
    }
    collection: nn.Module = FusedEmbeddingBagCollection(
        tables=tables, optimizer_type=RowWiseAdagrad, optimizer_kwargs=settings, device=device
    )
    return collection


def _optimizer(collection: Any) -> Any:
    """The fused optimizer: a method of TorchRec's collection, a property of the sharded one that may replace it."""
    found = collection.fused_optimizer
    return found() if callable(found) else found


def _local(tensor: Any) -> Tensor:
    """A view of a table, or of this process's part of a sharded one."""
    shards = getattr(tensor, "local_shards", None)
    whole_or_part: Tensor = tensor if shards is None else shards()[0].tensor
    return whole_or_part.detach()


def _one_stream(bags: Bags) -> KeyedJaggedTensor:
    """All bags of a table; where there are none, an empty one: TorchRec 1.8 fails on a stream without bags."""
    lengths_M = _lengths(bags)
    if not len(lengths_M):
        lengths_M = lengths_M.new_zeros(1)
    return KeyedJaggedTensor(
        keys=[_STREAM], values=bags.ids_N, lengths=lengths_M, stride=len(lengths_M)
    )


def _streams(specs: Sequence[TableSpec], bags: Mapping[str, Bags]) -> KeyedJaggedTensor:
    keys = [name for spec in specs for name in spec.streams]
    lengths = torch.cat([_lengths(bags[spec.name]) for spec in specs])
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([bags[spec.name].ids_N for spec in specs]),
        lengths=lengths,
        stride=len(lengths) // len(keys),
    )


def _lengths(bags: Bags) -> Tensor:
    if bags.lengths_M is None:
        return torch.ones(len(bags.ids_N), dtype=torch.int32, device=bags.ids_N.device)
    return bags.lengths_M


def _table(key: str) -> str:
    """The table of a state key such as `embedding_bags.item.weight`."""
    return table_name(key.removeprefix("embedding_bags.").removesuffix(".weight"))
