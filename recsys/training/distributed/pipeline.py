"""Batches whose ids are on their way to other ranks while the batch before is learned from.

TorchRec's `TrainPipelineSparseDist` keeps three batches in flight:

```
step n     | copied to the device |        ids exchanged, n - 1 learned from        | looked up, learned from |
step n + 1                        | copied to the device |  ids exchanged, n learned from  | ...
```

Only ids travel early: rows are looked up after the step before has updated them, so training is the same to the bit.
Of TorchRec's class the stages are used and not its loop: a step here is more than a backward pass and an optimizer.
It finds a model's lookups by tracing from the batch; `_Lookups` is all that it gets to see.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.train_pipeline.train_pipelines import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.utils import _override_input_dist_forwards
from torchrec.streamable import Pipelineable

from recsys.batch import Batch
from recsys.feed import PlacedBatch, Position
from recsys.models.embeddings.lookup import Embeddings
from recsys.models.embeddings.replicated import MixedTables, ReplicatedTables
from recsys.models.embeddings.tables import Bags, Tables
from recsys.models.embeddings.torchrec import TorchRecTables


def read_ahead(
    batches: Generator[PlacedBatch, None, None],
    embeddings: Embeddings,
    device: torch.device,
    *,
    steps: int,
) -> Generator[PlacedBatch, None, None]:
    """The first `steps` batches, on the device, whose lookup finds the ids exchanged; tables sharded over ranks.

    While they are taken, other lookups of the same tables go their own way. Close the iterator to end that.
    """
    tables = spread_tables(embeddings.tables)
    if tables is None:
        yield from batches
        return
    ahead = _Ahead(tables, device)
    tables.ahead = ahead
    hook = embeddings.register_forward_pre_hook(ahead.look)
    try:
        with closing(batches):
            ready = (
                _Ready(item.position, item.batch, tables.streams(embeddings.bags(item.batch)))
                for item in islice(batches, steps)
            )
            yield from ahead.in_turn(ready)
    finally:
        hook.remove()
        tables.ahead = None
        ahead.detach()


def spread_tables(tables: Tables) -> TorchRecTables | None:
    """Those of a sharded model's tables whose ids travel; None where every rank holds all of them."""
    if isinstance(tables, ReplicatedTables):
        return None
    found = tables.spread if isinstance(tables, MixedTables) else tables
    assert isinstance(found, TorchRecTables)
    return found


@dataclass(frozen=True, eq=False)
class _Ready(Pipelineable):  # type: ignore[misc] # a class without types
    """A batch and what its ids ask each collection for."""

    position: Position
    batch: Batch
    streams: list[KeyedJaggedTensor]

    def to(self, device: torch.device, non_blocking: bool) -> "_Ready":
        batch, streams = self.batch, self.streams
        if device.type == "cuda":
            # The host would wait for a copy of other memory.
            batch = batch.map(Tensor.pin_memory)
            streams = [stream.pin_memory() for stream in streams]
        moved = [stream.to(device, non_blocking=non_blocking) for stream in streams]
        return _Ready(self.position, batch.to(device), moved)

    def record_stream(self, stream: torch.Stream) -> None:
        for item in (*self.batch.tensors, *self.streams):
            item.record_stream(stream)


class _Lookups(nn.Module):
    """The lookups of a batch, as TorchRec can trace them."""

    def __init__(self, collections: nn.ModuleList) -> None:
        super().__init__()
        self.collections = collections

    def forward(self, ready: _Ready) -> list[Any]:
        return [collection(ready.streams[i]) for i, collection in enumerate(self.collections)]


class _Ahead(TrainPipelineSparseDist):  # type: ignore[misc] # a class without types
    """TorchRec's pipeline over the collections of tables; the contract is `recsys.models.embeddings.torchrec.Ahead`."""

    def __init__(self, tables: TorchRecTables, device: torch.device) -> None:
        # Its optimizer is that of its own loop, which is not used.
        super().__init__(_Lookups(tables.collections), cast(Any, None), device)
        self._tables = tables
        # The ids of the batch whose lookup is due, those that are looked up, and whether the next batch's were sent.
        self._due_N: Tensor | None = None
        self._asked_N: Tensor | None = None
        self._is_sent = False

    def in_turn(self, ready: Iterator[_Ready]) -> Iterator[PlacedBatch]:
        """Each batch when its lookup is due."""
        self.fill_pipeline(ready)
        assert self._pipelined_modules == list(self._tables.collections), "some were not traced"
        while self.batches:
            self._wait_for_batch()
            if len(self.batches) > 1:
                # Ranks tell each other how many ids will come.
                self.start_sparse_data_dist(self.batches[1], self.contexts[1])
            self.enqueue_batch(ready)
            present = self.batches[0]
            self._due_N, self._is_sent = present.batch.values_N, False
            yield PlacedBatch(present.position, present.batch)
            # A step that was skipped has looked nothing up.
            self._send_next()
            self.dequeue_batch()

    def look(self, embeddings: nn.Module, arguments: tuple[Batch]) -> None:
        """See which batch is looked up now: a hook before the embeddings' forward."""
        self._asked_N = arguments[0].values_N

    def look_up(self, bags: Mapping[str, Bags]) -> list[Any]:
        """What the collections answer: to the batch whose lookup is due what travelled for it, to others as ever."""
        if self._due_N is None or self._asked_N is not self._due_N:
            with self._aside():
                return self._tables.look_up(self._tables.streams(bags))
        self._due_N = None
        answers = [collection(None) for collection in self._tables.collections]
        self._send_next()
        return answers

    def _send_next(self) -> None:
        """Send the ids of the next batch, which then travel while the present one is learned from."""
        if len(self.batches) > 1 and not self._is_sent:
            self.wait_sparse_data_dist(self.contexts[1])
        self._is_sent = True

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """The collections as they were before TorchRec's pipeline changed them; what is on its way stays so."""
        modules = self._pipelined_modules
        changed = [module.forward for module in modules]
        self.detach()
        try:
            yield
        finally:
            for module, forward in zip(modules, changed, strict=True):
                module.forward = forward
            self._original_kjt_dist_forwards = _override_input_dist_forwards(modules)
