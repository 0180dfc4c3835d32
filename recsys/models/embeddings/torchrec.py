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
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
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
    Part,
    TableSpec,
    initialise,
    module_name,
    table_name,
)
from recsys.models.embeddings.updates import QUANTITIES, TableOptimizer, check_fused
from recsys.ranks import largest

# fbgemm's kernels read rows in vectors of four.
DIM_MULTIPLE = 4
OPTIMIZERS: dict[TableOptimizer, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
# The one feature of a ragged table's collection.
_STREAM = "ids"


class TorchRecTables(nn.Module):
    """Tables in TorchRec collections. The contract is `recsys.models.embeddings.tables.Tables`.

    On torch's meta device they hold nothing: who shards the collections calls `initialise` afterwards.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: EmbeddingsConfig,
        *,
        optimizer: TableOptimizer,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        check_fused(optimizer)
        # The first lookup would tell users how TorchRec should ask whether it is being traced.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        for spec in specs:
            check_spec(spec)
        self._pooled_specs = tuple(spec for spec in specs if not spec.ragged)
        self._ragged_specs = tuple(spec for spec in specs if spec.ragged)
        groups = [[spec] for spec in self._ragged_specs]
        if self._pooled_specs:
            groups.append(list(self._pooled_specs))
        # Of sums alone, one a table; what TorchRec calls them depends on its optimizer.
        self._names = [quantity.name for quantity in QUANTITIES[optimizer]]
        # The pooled collection, if there is one, comes last.
        self.collections = nn.ModuleList(
            _collection(group, config, optimizer, device) for group in groups
        )
        self._initialise = partial(initialise, specs=specs, config=config, seed=seed)
        if device.type != "meta":
            self.initialise()

    def initialise(self) -> None:
        """Give what this process holds of the tables the values that they begin with."""
        self._initialise(self.parts())

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        return self.by_table(self.look_up(self.streams(bags)), bags)

    def streams(self, bags: Mapping[str, Bags]) -> list[KeyedJaggedTensor]:
        """The ids that each collection is asked for. Ranks agree on lengths here, so all come here in step."""
        strides = self._strides(bags)
        streams = [
            _one_stream(bags[spec.name], stride)
            for spec, stride in zip(self._ragged_specs, strides, strict=False)
        ]
        if self._pooled_specs:
            streams.append(_streams(self._pooled_specs, bags, strides[-1]))
        return streams

    def look_up(self, streams: Sequence[KeyedJaggedTensor]) -> list[Any]:
        """What each collection answers, which may still be on its way from other ranks."""
        collections = self._collections()
        return [collection(ids) for collection, ids in zip(collections, streams, strict=True)]

    def by_table(self, answers: Sequence[Any], bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        """The collections' answers as sums of these bags, by table."""
        found: dict[str, Tensor] = {}
        for spec, answer in zip(self._ragged_specs, answers, strict=False):
            found[spec.name] = _cut(answer.to_dict()[_STREAM], _count(bags[spec.name]))
        if self._pooled_specs:
            # As a dictionary: its one split has one backward, where each `pooled[name]` would fill all columns.
            pooled = answers[-1].to_dict()
            for spec in self._pooled_specs:
                rows = _count(bags[spec.name]) // len(spec.streams)
                parts = [_cut(pooled[name], rows) for name in spec.streams]
                found[spec.name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found

    def set_learning_rate(self, rate: float) -> None:
        for collection in self._collections():
            optimizer = _optimizer(collection)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # The step of a fused optimizer hands the rate to the kernel and does nothing else.
            optimizer.step()

    def parts(self) -> list[Part]:
        found: list[Part] = []
        for collection in self._collections():
            states = {
                _table(key): state
                for key, state in _optimizer(collection).state_dict()["state"].items()
            }
            for key, weight in collection.state_dict().items():
                table = _table(key)
                state = states.get(table, {}).values()
                found += _parts(table, weight, dict(zip(self._names, state, strict=False)))
        return found

    def _collections(self) -> list[Any]:
        # Read anew each time: sharding replaces the modules in the list.
        return list(self.collections)

    def _strides(self, bags: Mapping[str, Bags]) -> list[int]:
        """Bags a stream of each collection is filled up to, with empty ones.

        At least one, for TorchRec 1.8 fails on a stream without bags, and on every rank as many, for gloo adds up
        parts of one size only.
        """
        own = [_count(bags[spec.name]) for spec in self._ragged_specs]
        own += [_count(bags[spec.name]) // len(spec.streams) for spec in self._pooled_specs[:1]]
        return largest([max(1, count) for count in own])


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
    specs: Sequence[TableSpec],
    config: EmbeddingsConfig,
    optimizer: TableOptimizer,
    device: torch.device,
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
        tables=tables,
        optimizer_type=OPTIMIZERS[optimizer],
        optimizer_kwargs=settings,
        device=device,
    )
    return collection


def _optimizer(collection: Any) -> Any:
    """The fused optimizer: a method of TorchRec's collection, a property of the sharded one that may replace it."""
    found = collection.fused_optimizer
    return found() if callable(found) else found


def _parts(table: str, weight: Any, state: Mapping[str, Any]) -> list[Part]:
    """A table as one part or, of a sharded one, this process's shards."""
    if not hasattr(weight, "local_shards"):
        own = {name: values.detach() for name, values in state.items()}
        return [Part(table, weight.detach(), own)]
    return [
        Part(
            table,
            shard.tensor.detach(),
            {name: values.local_shards()[i].tensor.detach() for name, values in state.items()},
            *shard.metadata.shard_offsets,
        )
        for i, shard in enumerate(weight.local_shards())
    ]


def _one_stream(bags: Bags, stride: int) -> KeyedJaggedTensor:
    """All bags of a table, and empty ones."""
    lengths = F.pad(_lengths(bags), (0, stride - _count(bags)))
    return KeyedJaggedTensor(keys=[_STREAM], values=bags.ids_N, lengths=lengths, stride=stride)


def _streams(
    specs: Sequence[TableSpec], bags: Mapping[str, Bags], stride: int
) -> KeyedJaggedTensor:
    """Each slot's bags, and empty ones."""
    keys = [name for spec in specs for name in spec.streams]
    lengths = torch.cat([_lengths(bags[spec.name]) for spec in specs])
    rows = len(lengths) // len(keys)
    if rows < stride:
        lengths = F.pad(lengths.view(len(keys), rows), (0, stride - rows)).flatten()
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([bags[spec.name].ids_N for spec in specs]),
        lengths=lengths,
        stride=stride,
    )


def _cut(rows_MK: Tensor, count: int) -> Tensor:
    """The first rows. Those of all bags as they are: a slice would fill a whole gradient."""
    return rows_MK if len(rows_MK) == count else rows_MK[:count]


def _count(bags: Bags) -> int:
    return len(bags.ids_N) if bags.lengths_M is None else len(bags.lengths_M)


def _lengths(bags: Bags) -> Tensor:
    if bags.lengths_M is None:
        return torch.ones(len(bags.ids_N), dtype=torch.int32, device=bags.ids_N.device)
    return bags.lengths_M


def _table(key: str) -> str:
    """The table of a state key such as `embedding_bags.item.weight`."""
    return table_name(key.removeprefix("embedding_bags.").removesuffix(".weight"))
