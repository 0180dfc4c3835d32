"""Published days to batches: shuffled for training from any position, in order for evaluation.

```
days      | 2026-10-01            | 2026-10-02        |      row groups, numbered through
epoch     | g7 g2 g9 | g0 g4 g1 | g3 g8 | ...               row groups in an order drawn from (seed, epoch)
window    |    rows permuted    |  rows permuted  |         as many row groups as window_rows allow, read together
batches   |  b0  |  b1  |  b2  |  b3  |  b4  | ...          cut from the stream of rows, across windows too
```

The order is a pure function of (builds, seed, epoch, window_rows), so a position is two numbers, and a killed run
continues with exactly the batches it had left. With several ranks each takes its own rows of every batch,
`rows[rank::world_size]`: the rows of a step do not depend on how many ranks share it.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.batch import Batch, from_encoded
from recsys.days import Days, RowGroup
from recsys.layout import encoded_arrow, training_columns

T = TypeVar("T")
_PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Position:
    """A batch's number within an epoch, both counted from 0."""

    epoch: int = 0
    batch: int = 0


START = Position()


@dataclass(frozen=True)
class PlacedBatch:
    """A training batch and where in the feed it lies."""

    position: Position
    batch: Batch


@dataclass(frozen=True)
class EncodedBatch:
    """Rows as they lie in the day, kept columns included, and the same rows as a batch."""

    encoded: pa.Table
    batch: Batch


@dataclass(frozen=True)
class Window:
    """Row groups read together; `first_row` counts from the epoch's first row, `number` from its first window."""

    number: int
    groups: tuple[RowGroup, ...]
    first_row: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class Feed:
    """Shuffled batches of days. `batch_size` counts rows over all ranks; the last batch of an epoch may be smaller."""

    def __init__(
        self,
        days: Days,
        *,
        batch_size: int,
        seed: int,
        window_rows: int = 1_000_000,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.days = days
        self.batch_size = batch_size
        self.batches_per_epoch = -(-days.rows // batch_size)
        self._seed = seed
        self._window_rows = window_rows
        self._rank = rank
        self._world_size = world_size

    def after(self, position: Position) -> Position:
        """The position of the batch that follows."""
        if position.batch + 1 < self.batches_per_epoch:
            return Position(position.epoch, position.batch + 1)
        return Position(position.epoch + 1, 0)

    def rows(self, position: Position) -> int:
        """Rows over all ranks of the batch at a position."""
        return min(self.batch_size, self.days.rows - position.batch * self.batch_size)

    def batches(self, start: Position = START) -> Generator[PlacedBatch, None, None]:
        """Batches from a position on, epoch after epoch without end; close the iterator to end its thread.

        Raises DataError naming the file when one cannot be read.
        """
        return prefetched(self._batches(start))

    def _batches(self, start: Position) -> Iterator[PlacedBatch]:
        position = start
        # Small data fits one window: then its rows are read once, not once an epoch.
        read = _LastRead(self.days)
        while True:
            for rows in self._epoch(position, read):
                yield PlacedBatch(position, _batch(rows, self.days))
                position = self.after(position)

    def _epoch(self, start: Position, read: "_LastRead") -> Iterator[pa.Table]:
        """This rank's rows of each batch from a position to the end of its epoch."""
        pending: list[pa.Table] = []
        next_row = start.batch * self.batch_size
        for window in self.windows(start.epoch):
            end = window.first_row + window.rows
            if end <= next_row:
                continue
            table = read(window.groups)
            order = self._rng(start.epoch, 1 + window.number).permutation(window.rows)
            while next_row < end:
                # A batch that an earlier window began is completed first.
                stop = min((next_row // self.batch_size + 1) * self.batch_size, end)
                pending.append(table.take(order[self._own(next_row, stop) - window.first_row]))
                if stop % self.batch_size == 0 or stop == self.days.rows:
                    yield pa.concat_tables(pending) if len(pending) > 1 else pending[0]
                    pending = []
                next_row = stop

    def _own(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers in [start, stop) that are this rank's: every world_size-th of each batch."""
        rows = np.arange(start, stop, dtype=np.int64)
        own: NDArray[np.int64] = rows[rows % self.batch_size % self._world_size == self._rank]
        return own

    def windows(self, epoch: int) -> Iterator[Window]:
        """An epoch's windows, in its order of row groups."""
        groups = self.days.groups
        order = self._rng(epoch, 0).permutation(len(groups))
        number, first_row, rows, gathered = 0, 0, 0, list[RowGroup]()
        for index in order:
            if gathered and rows + groups[index].rows > self._window_rows:
                yield Window(number, tuple(gathered), first_row)
                number, first_row, rows, gathered = number + 1, first_row + rows, 0, []
            gathered.append(groups[index])
            rows += groups[index].rows
        yield Window(number, tuple(gathered), first_row)

    def _rng(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self._seed, epoch, stream]))


def _batch(rows: pa.Table, days: Days) -> Batch:
    """Training rows as a batch: ids that a step maps are hashes in it."""
    return from_encoded(rows, days.schema, unmapped=days.unmapped)


class _LastRead:
    """Reads row groups of a window in stored order and keeps the last one read."""

    def __init__(self, days: Days) -> None:
        self._days = days
        self._columns = training_columns(days.schema)
        self._key: tuple[RowGroup, ...] | None = None
        self._table = pa.table({})

    def __call__(self, groups: tuple[RowGroup, ...]) -> pa.Table:
        key = tuple(sorted(groups, key=lambda group: (str(group.file), group.index)))
        if key != self._key:
            # Give the old window's memory back before the new one is read.
            self._key, self._table = None, pa.table({})
            self._table = self._days.read(key, self._columns)
            self._key = key
        return self._table


def in_order(
    days: Days, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Generator[EncodedBatch, None, None]:
    """All rows once, in stored order; a batch ends with its row group.

    Ranks take turns by batch, and those whose last turn does not come get an empty batch, so that all have as many.
    Raises DataError naming the file when one cannot be read.
    """
    return prefetched(_in_order(days, batch_size, rank, world_size))


def prefetched(items: Iterator[T], *, depth: int = _PREFETCHED_BATCHES) -> Generator[T, None, None]:
    """The same items, made up to `depth` ahead by one background thread, which ends when the iterator is closed."""
    return _Prefetch(items, depth).run()


def _in_order(days: Days, batch_size: int, rank: int, world_size: int) -> Iterator[EncodedBatch]:
    columns = encoded_arrow(days.schema).names
    number = 0
    for group in days.groups:
        table = days.read((group,), columns)
        for start in range(0, group.rows, batch_size):
            if number % world_size == rank:
                encoded = table.slice(start, batch_size)
                yield EncodedBatch(encoded, from_encoded(encoded, days.schema))
            number += 1
    if 0 < number % world_size <= rank:
        nothing = table.slice(0, 0)
        yield EncodedBatch(nothing, from_encoded(nothing, days.schema))


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _End:
    pass


class _Prefetch(Generic[T]):
    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._ready: Queue[T | _Failure | _End] = Queue(maxsize=depth)
        self._closed = Event()
        self._thread = Thread(target=self._fill, name="recsys-feed", daemon=True)

    def run(self) -> Generator[T, None, None]:
        self._thread.start()
        try:
            while not isinstance(item := self._ready.get(), _End):
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self._close()

    def _fill(self) -> None:
        try:
            for item in self._items:
                self._ready.put(item)
                if self._closed.is_set():
                    return
            self._ready.put(_End())
        except BaseException as error:
            # Raised again where the items are taken.
            self._ready.put(_Failure(error))

    def _close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():
            # The thread may wait for room in the queue.
            try:
                self._ready.get_nowait()
            except Empty:
                self._thread.join(timeout=0.01)
