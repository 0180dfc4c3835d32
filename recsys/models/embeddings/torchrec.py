"""Embedding tables of TorchRec: fbgemm's fused kernels, in one process as in many.

`FusedEmbeddingBagCollection` updates rows inside the backward pass without a process group, and
`FusedEmbeddingBagCollectionSharder` replaces it in place when `DistributedModelParallel` wraps the model. An
unsharded `EmbeddingBagCollection` would build a dense gradient of the table's size.

Which table is in which collection, and in which form, is `recsys.models.embeddings.fused`'s. Only these two modules and
`recsys.training.distributed` may import torchrec or fbgemm.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from recsys.errors import ConfigError
from recsys.models.embeddings.fused import RAGGED, STREAM, Form, fused_collections, one_stream, sums
from recsys.models.embeddings.tables import (
    Bags,
    EmbeddingsConfig,
    Part,
    TableSpec,
    initialise,
    table_name,
)
from recsys.models.embeddings.updates import QUANTITIES, TableOptimizer, check_fused
from recsys.ranks import largest

# fbgemm's kernels read rows in vectors of four.
DIM_MULTIPLE = 4


class Ahead(Protocol):
    """Who has sent ids to other ranks before their lookup is due, and so answers it."""

    def look_up(self, bags: Mapping[str, Bags]) -> list[Any]: ...


class TorchRecTables(nn.Module):
    """Tables in TorchRec collections. The contract is `recsys.models.embeddings.tables.Tables`.

    `device` holds them and looks them up. On torch's meta device they hold nothing: who shards the collections, to look
    them up on the device `target`, calls `initialise` afterwards.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: EmbeddingsConfig,
        *,
        optimizer: TableOptimizer,
        seed: int,
        device: torch.device,
        target: torch.device | None = None,
    ) -> None:
        super().__init__()
        check_fused(optimizer)
        # The first lookup would tell users how TorchRec should ask whether it is being traced.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        for spec in specs:
            check_spec(spec)
        self._pooled_specs = tuple(spec for spec in specs if not spec.ragged)
        self._ragged_specs = tuple(spec for spec in specs if spec.ragged)
        self._form = RAGGED[(target or device).type]
        # Of sums alone, one a table; what TorchRec calls them depends on its optimizer.
        self._names = [quantity.name for quantity in QUANTITIES[optimizer]]
        # The pooled collection, if there is one, comes last.
        self.collections = fused_collections(
            specs, config, optimizer=optimizer, device=device, form=self._form
        )
        self.ahead: Ahead | None = None
        self._initialise = partial(initialise, specs=specs, config=config, seed=seed)
        if device.type != "meta":
            self.initialise()

    def initialise(self) -> None:
        """Give what this process holds of the tables the values that they begin with."""
        self._initialise(self.parts())

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        ahead = self.ahead
        answers = self.look_up(self.streams(bags)) if ahead is None else ahead.look_up(bags)
        return self._by_table(answers, bags)

    def streams(self, bags: Mapping[str, Bags]) -> list[KeyedJaggedTensor]:
        """The ids that each collection is asked for. Ranks agree on lengths here, so all come here in step."""
        strides = self._strides(bags)
        if self._form == "vectors":
            streams = [one_stream(bags[spec.name].ids_N) for spec in self._ragged_specs]
        else:
            streams = [
                _one_stream(bags[spec.name], stride)
                for spec, stride in zip(self._ragged_specs, strides, strict=False)
            ]
        if self._pooled_specs:
            streams.append(_streams(self._pooled_specs, bags, strides[-1]))
        return streams

    def look_up(self, streams: Sequence[KeyedJaggedTensor]) -> list[Any]:
        """What each collection answers, which may still be on its way from other ranks."""
        # The list is read anew each time: sharding replaces the modules in it.
        return [collection(ids) for collection, ids in zip(self.collections, streams, strict=True)]

    def _by_table(self, answers: Sequence[Any], bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        """The collections' answers as sums of these bags, by table."""
        found: dict[str, Tensor] = {}
        for spec, answer in zip(self._ragged_specs, answers, strict=False):
            found[spec.name] = _rows(answer, bags[spec.name], self._form)
        if self._pooled_specs:
            # As a dictionary: its one split has one backward, where each `pooled[name]` would fill all columns.
            pooled = answers[-1].to_dict()
            for spec in self._pooled_specs:
                rows = _count(bags[spec.name]) // len(spec.streams)
                parts = [_cut(pooled[name], rows) for name in spec.streams]
                found[spec.name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found

    def set_learning_rate(self, rate: float) -> None:
        for collection in self.collections:
            optimizer = _optimizer(collection)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # The step of a fused optimizer hands the rate to the kernel and does nothing else.
            optimizer.step()

    def parts(self) -> list[Part]:
        found: list[Part] = []
        for collection in self.collections:
            states = {
                _table(key): state
                for key, state in _optimizer(collection).state_dict()["state"].items()
            }
            for key, weight in collection.state_dict().items():
                table = _table(key)
                state = states.get(table, {}).values()
                found += _parts(table, weight, dict(zip(self._names, state, strict=False)))
        return found

    def _strides(self, bags: Mapping[str, Bags]) -> list[int]:
        """Bags a stream of each collection of sums is filled up to, with empty ones.

        At least one, for TorchRec 1.8 fails on a stream without bags, and on every rank as many, for gloo adds up
        parts of one size only.
        """
        ragged = () if self._form == "vectors" else self._ragged_specs
        own = [_count(bags[spec.name]) for spec in ragged]
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


def _rows(answer: Any, bags: Bags, form: Form) -> Tensor:
    """The sums of a ragged table's bags."""
    if form == "sums":
        return _cut(answer.to_dict()[STREAM], _count(bags))
    rows_NK: Tensor = answer[STREAM].values()
    return rows_NK if bags.lengths_M is None else sums(rows_NK, bags.lengths_M)


def _one_stream(bags: Bags, stride: int) -> KeyedJaggedTensor:
    """All bags of a table, and empty ones."""
    lengths = F.pad(_lengths(bags), (0, stride - _count(bags)))
    return KeyedJaggedTensor(keys=[STREAM], values=bags.ids_N, lengths=lengths, stride=stride)


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
    """The table of a state key such as `embedding_bags.item.weight`, or `embeddings.item.weight` of vectors."""
    for prefix in ("embedding_bags.", "embeddings."):
        key = key.removeprefix(prefix)
    return table_name(key.removesuffix(".weight"))
