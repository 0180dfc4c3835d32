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

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.batch import Batch, from_encoded
from recsys.encode import Encoder
from recsys.errors import ArtifactError, DataError
from recsys.layout import encoded_arrow, kept_column, label_column, observed_column
from recsys.publish import Published, resolve
from recsys.schema import Schema

T = TypeVar("T")
_PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Build:
    """The version of a day that is read; what a checkpoint records of its data."""

    day: str
    version: str
    rows: int


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
class _RowGroup:
    file: Path
    index: int
    rows: int


@dataclass(frozen=True)
class _Window:
    """Row groups read together; `first_row` counts from the epoch's first row, `number` from its first window."""

    number: int
    groups: tuple[_RowGroup, ...]
    first_row: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class Days:
    """The rows of some days: their builds, resolved once, and their row groups. See `open_days`."""

    def __init__(
        self, schema: Schema, builds: tuple[Build, ...], groups: tuple[_RowGroup, ...]
    ) -> None:
        self.schema = schema
        self.builds = builds
        self.groups = groups
        self.rows = sum(group.rows for group in groups)

    def in_order(
        self, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Generator[EncodedBatch, None, None]:
        """All rows once, in stored order; a batch ends with its row group. Ranks take turns by batch.

        Raises DataError naming the file when one cannot be read.
        """
        return prefetched(self._in_order(batch_size, rank, world_size))

    def label_means(self, *, up_to_rows: int = 1_000_000) -> dict[str, float]:
        """Each task's mean label by sample weight over its observed rows among the first ones; 0 if it has none."""
        tasks = self.schema.task_names
        columns = ["weight", *(name for task in tasks for name in (label_column(task), observed_column(task)))]
        sums, weights = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0.0)
        rows = 0
        for group in self.groups:
            table = _read((group,), columns)
            weight_B = table.column("weight").to_numpy().astype(np.float64)
            for task in tasks:
                used_B = weight_B * table.column(observed_column(task)).to_numpy()
                weights[task] += float(used_B.sum())
                sums[task] += float(used_B @ table.column(label_column(task)).to_numpy())
            rows += group.rows
            if rows >= up_to_rows:
                break
        return {task: sums[task] / weights[task] if weights[task] else 0.0 for task in tasks}

    def _in_order(self, batch_size: int, rank: int, world_size: int) -> Iterator[EncodedBatch]:
        columns = encoded_arrow(self.schema).names
        number = 0
        for group in self.groups:
            table = _read((group,), columns)
            for start in range(0, group.rows, batch_size):
                if number % world_size == rank:
                    encoded = table.slice(start, batch_size)
                    yield EncodedBatch(encoded, from_encoded(encoded, self.schema))
                number += 1


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

    def batches(self, start: Position = START) -> Generator[PlacedBatch, None, None]:
        """Batches from a position on, epoch after epoch without end; close the iterator to end its thread.

        Raises DataError naming the file when one cannot be read.
        """
        return prefetched(self._batches(start))

    def _batches(self, start: Position) -> Iterator[PlacedBatch]:
        position = start
        # Small data fits one window: then its rows are read once, not once an epoch.
        read = _LastRead(_training_columns(self.days.schema))
        while True:
            for rows in self._epoch(position, read):
                yield PlacedBatch(position, from_encoded(rows, self.days.schema))
                position = self.after(position)

    def _epoch(self, start: Position, read: "_LastRead") -> Iterator[pa.Table]:
        """This rank's rows of each batch from a position to the end of its epoch."""
        pending: list[pa.Table] = []
        next_row = start.batch * self.batch_size
        for window in self._windows(start.epoch):
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

    def _windows(self, epoch: int) -> Iterator[_Window]:
        groups = self.days.groups
        order = self._rng(epoch, 0).permutation(len(groups))
        number, first_row, rows, gathered = 0, 0, 0, list[_RowGroup]()
        for index in order:
            if gathered and rows + groups[index].rows > self._window_rows:
                yield _Window(number, tuple(gathered), first_row)
                number, first_row, rows, gathered = number + 1, first_row + rows, 0, []
            gathered.append(groups[index])
            rows += groups[index].rows
        yield _Window(number, tuple(gathered), first_row)

    def _rng(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self._seed, epoch, stream]))


class _LastRead:
    """Reads row groups of a window in stored order and keeps the last one read."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._key: tuple[_RowGroup, ...] | None = None
        self._table = pa.table({})

    def __call__(self, groups: tuple[_RowGroup, ...]) -> pa.Table:
        key = tuple(sorted(groups, key=lambda group: (str(group.file), group.index)))
        if key != self._key:
            # Give the old window's memory back before the new one is read.
            self._key, self._table = None, pa.table({})
            self._table = _read(key, self._columns)
            self._key = key
        return self._table


def open_days(
    directory: Path,
    names: Sequence[str],
    *,
    encoder: Encoder,
    versions: Mapping[str, str] | None = None,
) -> Days:
    """The named days under a directory, each resolved to its current build, or to the version given for it.

    Raises ArtifactError for a day that is missing, damaged or encoded for another schema or by another encoder, and
    DataError for one that cannot be read or when there are no rows at all.
    """
    builds: list[Build] = []
    groups: list[_RowGroup] = []
    for name in names:
        path = directory / name if versions is None else directory / name / versions[name]
        day = resolve(path, kind="day")
        _require_lineage(day, encoder)
        found = [
            group
            for file in sorted(day.path.glob("part-*.parquet"))
            for group in _row_groups(file, encoder.schema)
        ]
        rows = sum(group.rows for group in found)
        if rows != day.metadata["rows"]:
            raise DataError(
                f"{day.path}: holds {rows} rows, its manifest says {day.metadata['rows']}; build it again"
            )
        builds.append(Build(name, day.version, rows))
        groups += [group for group in found if group.rows]
    if not groups:
        raise DataError(
            f"{directory}: {', '.join(names)} hold no rows; build days with rows, or name others"
        )
    return Days(encoder.schema, tuple(builds), tuple(groups))


def prefetched(items: Iterator[T], *, depth: int = _PREFETCHED_BATCHES) -> Generator[T, None, None]:
    """The same items, made up to `depth` ahead by one background thread, which ends when the iterator is closed."""
    return _Prefetch(items, depth).run()


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


def _training_columns(schema: Schema) -> list[str]:
    kept = {kept_column(name) for name in schema.keys.kept}
    return [name for name in encoded_arrow(schema).names if name not in kept]


def _require_lineage(day: Published, encoder: Encoder) -> None:
    found = day.metadata
    if found["data_digest"] != encoder.schema.data_digest:
        raise ArtifactError(
            f"{day.path}: encoded for another schema (data digest {found['data_digest'][:12]}, the schema has "
            f"{encoder.schema.data_digest[:12]}); build the day again with this schema"
        )
    if not encoder.accepts(found["encoder_digest"]):
        raise ArtifactError(
            f"{day.path}: encoded by encoder {found['encoder_digest'][:12]}, which {encoder.digest[:12]} does not "
            "extend; build the day again with this encoder, or name the one it was built with"
        )


def _row_groups(file: Path, schema: Schema) -> list[_RowGroup]:
    try:
        with pq.ParquetFile(file) as parquet:
            found, metadata = parquet.schema_arrow, parquet.metadata
            groups = [
                _RowGroup(file, index, metadata.row_group(index).num_rows)
                for index in range(metadata.num_row_groups)
            ]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: not a readable Parquet file ({_first_line(error)}); build the day again"
        ) from error
    for field in encoded_arrow(schema):
        if field.name not in found.names:
            raise DataError(f"{file}: column {field.name!r} is missing; build the day again")
        if found.field(field.name).type != field.type:
            raise DataError(
                f"{file}: column {field.name!r} is {found.field(field.name).type}, the schema says {field.type}; "
                "build the day again"
            )
    return groups


def _read(groups: tuple[_RowGroup, ...], columns: list[str]) -> pa.Table:
    """The named columns of row groups, one chunk a column."""
    tables: list[pa.Table] = []
    for file in dict.fromkeys(group.file for group in groups):
        indices = [group.index for group in groups if group.file == file]
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                tables.append(parquet.read_row_groups(indices, columns=columns))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{file}: cannot be read ({_first_line(error)}); build the day again"
            ) from error
    return pa.concat_tables(tables).combine_chunks().select(columns)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
