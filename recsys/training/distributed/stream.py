"""Training days by Ray Data: raw rows are read and encoded by tasks on the cluster's cores while ranks train.

```
windows    | g7 g2 g9  | g0 g4 g1 | ...        as the feed of encoded days cuts an epoch
a task     read, Encoder.encode, rows permuted, cut in chunks
chunks     | c0 | c1 | c2 | c3 | c4 | c5 |     for each batch one a rank, of equal rows but for one more or less
ranks      c0 c2 c5 -> rank 0, c1 c3 c4 -> rank 1
```

An epoch has as many steps as that of the feed, each rank gets a chunk for each of them, and each row is in one chunk.
Which of several ranks gets a chunk depends on which one asks first. So a position within an epoch is only nearly found
again: a rank may have taken chunks ahead of others that it had not trained on.
"""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray import cloudpickle

from recsys.batch import from_encoded
from recsys.days import Days, RowGroup
from recsys.feed import START, Feed, PlacedBatch, Position, prefetched
from recsys.ranks import on_first, rank, world_size
from recsys.training.distributed.pieces import Piece, messages, table_of
from recsys.training.distributed.ray_cluster import LOCAL, cluster
from recsys.training.distributed.workers import check_stream

logger = logging.getLogger(__name__)


class Stream:
    """Batches of days that are encoded meanwhile. `batch_size` counts rows over all ranks."""

    def __init__(self, days: Days, *, batch_size: int, seed: int, window_rows: int) -> None:
        if world_size() > 1 and not ray.is_initialized():
            check_stream(days.groups[0].file)
        self._feed = Feed(days, batch_size=batch_size, seed=seed, window_rows=window_rows)
        self._seed = seed
        self.days = days
        self.batch_size = batch_size
        self.batches_per_epoch = self._feed.batches_per_epoch

    def after(self, position: Position) -> Position:
        """The position of the batch that follows."""
        return self._feed.after(position)

    def rows(self, position: Position) -> int:
        """Rows over all ranks of a batch there, to one a rank more or less: all batches of an epoch are alike."""
        every, batches = self.days.rows, self.batches_per_epoch
        return every * (position.batch + 1) // batches - every * position.batch // batches

    def batches(self, start: Position = START) -> Generator[PlacedBatch, None, None]:
        """Batches from a position on, epoch after epoch without end.

        Raises DataError naming the file of what cannot be read or encoded.
        """
        if start.batch:
            logger.warning(
                "stream.resumed epoch=%d batch=%d hint='a stream finds its place within an epoch only nearly: some "
                "rows of this epoch may come twice, others not at all; a checkpoint at an epoch's end has none such'",
                start.epoch,
                start.batch,
            )
        position = start
        with cluster(LOCAL, cpus=1):
            while True:
                # Ranks agree here, in their main threads: collectives of two threads would get mixed up.
                chunks = self._chunks(self._split(position))
                with closing(prefetched(chunks)) as tables:
                    for table in tables:
                        batch = from_encoded(table, self.days.schema, unmapped=self.days.unmapped)
                        yield PlacedBatch(position, batch)
                        position = self.after(position)
                assert position.batch == 0, "each rank has a chunk for each step"

    def pieces(self, position: Position, ranks: int) -> list[Piece]:
        """The tasks of an epoch from a position on: together they give a chunk a rank for each batch that is left."""
        every, taken = ranks * self.batches_per_epoch, ranks * position.batch
        pieces: list[Piece] = []
        groups: tuple[RowGroup, ...] = ()
        before = 0
        for window in self._feed.windows(position.epoch):
            groups += window.groups
            upto = (window.first_row + window.rows) * every // self.days.rows
            # A window smaller than a chunk goes with the next one; the last one has a chunk in any case.
            if upto > before:
                seed = (self._seed, position.epoch, 1 + window.number)
                piece = Piece(groups, upto - before, max(taken - before, 0), seed)
                pieces += [piece] if upto > taken else []
                groups, before = (), upto
        return pieces

    def _split(self, position: Position) -> Any:
        """This rank's part of the stream of an epoch, which the first rank starts."""
        parts = on_first(lambda: self._started(self.pieces(position, world_size())))
        return cloudpickle.loads(parts[rank()])

    def _started(self, pieces: list[Piece]) -> list[bytes]:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        shared = ray.put(self.days)

        def encode(batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
            for number in batch["item"]:
                for message in messages(pieces[int(number)], ray.get(shared)):
                    yield {"chunk": [message]}

        numbers = list(range(len(pieces)))
        tasks = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        chunks = tasks.map_batches(encode, batch_size=1)
        # Each chunk goes out as soon as it is there, those of the first window first.
        chunks.context.target_max_block_size = 1
        chunks.context.execution_options.preserve_order = True
        parts = chunks.streaming_split(world_size(), equal=True)
        return [cloudpickle.dumps(part) for part in parts]  # type: ignore[no-untyped-call]

    def _chunks(self, part: Any) -> Iterator[pa.Table]:
        for batch in part.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
            yield table_of(batch.column("chunk")[0].as_py())
