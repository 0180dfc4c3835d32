"""Fitting an encoder in one pass over training rows, in memory that does not grow with their number.

Vocabularies count values exactly until a table's counter holds more distinct values than `counter_size` allows; then
the rarest are forgotten, so a count is a lower bound for values that hover at the edge. Means and deviations are exact
(Chan, Golub and LeVeque's pairwise update). Quantile edges come from a seeded uniform sample of the rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys import derived
from recsys.derived import Source
from recsys.encode import Encoder, Moments, transformed
from recsys.errors import ConfigError, DataError
from recsys.hashing import splitmix64
from recsys.raw import column_of, flat_list
from recsys.schema import (
    RESERVED_ROWS,
    BagFeature,
    BucketFeature,
    Feature,
    IdFeature,
    IdToken,
    NumberFeature,
    Schema,
    Table,
)
from recsys.vocabulary import Vocabulary

SAMPLE_ROWS = 200_000
COUNTER_FACTOR = 4
COUNTER_LEAST = 1_000_000
_MERGE_AT = 500_000


def fit(schema: Schema, batches: Iterable[pa.Table], *, previous: Encoder | None = None) -> Encoder:
    """The encoder of a schema, fitted on training rows (`Schema.raw_arrow` columns; others are passed over).

    With a `previous` encoder of the same data digest the result extends it: statistics and edges stay, fitted values
    keep their rows and new ones are appended, so rows encoded before stay valid. Raises DataError when there are no
    rows, and ConfigError when the previous encoder has another data digest.
    """
    if previous is not None and previous.schema.data_digest != schema.data_digest:
        raise ConfigError(
            "fit: the previous encoder was fitted for another schema; fit from scratch"
        )
    counters = {
        name: _Counter(table)
        for name, table in schema.tables.items()
        if table.id_kind == "vocabulary"
    }
    moments = {name: _Moments() for name, item in schema.features.items() if _is_zscored(item)}
    samples = {
        name: _Sample(item.buckets)
        for name, item in schema.features.items()
        if isinstance(item, BucketFeature) and item.edges is None
    }
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        _count(schema, batch, counters)
        _measure(schema, batch, moments, samples)
    if rows == 0:
        raise DataError(
            "fit: no training rows; check the source, the filters, the split and fit_on"
        )
    if previous is None:
        return Encoder(
            schema,
            {name: item.result(name) for name, item in moments.items()},
            _declared_edges(schema) | {name: item.edges() for name, item in samples.items()},
            {name: Vocabulary(counter.values(None)) for name, counter in counters.items()},
        )
    return Encoder(
        schema,
        previous.moments,
        previous.edges,
        {
            name: Vocabulary(counter.values(previous.vocabularies[name].values))
            for name, counter in counters.items()
        },
        (*previous.lineage, previous.digest),
    )


def _is_zscored(item: Feature) -> bool:
    return isinstance(item, NumberFeature) and item.normalize == "zscore"


def _declared_edges(schema: Schema) -> dict[str, NDArray[np.float64]]:
    return {
        name: np.asarray(item.edges, np.float64)
        for name, item in schema.features.items()
        if isinstance(item, BucketFeature) and item.edges is not None
    }


def _count(schema: Schema, batch: pa.Table, counters: Mapping[str, "_Counter"]) -> None:
    for name, item in schema.features.items():
        source = Source(batch, schema, f"feature {name!r}")
        if isinstance(item, IdFeature) and item.table in counters:
            counters[item.table].add(derived.ids(item, source))
        elif isinstance(item, BagFeature) and item.table in counters:
            counters[item.table].add(derived.bag(item, source).ids_N)
    for name, sequence in schema.sequences.items():
        for spec in sequence.tokens.values():
            if isinstance(spec, IdToken) and spec.table in counters:
                counters[spec.table].add(
                    flat_list(column_of(batch, spec.column, schema, f"sequence {name!r}"))[1]
                )


def _measure(
    schema: Schema,
    batch: pa.Table,
    moments: Mapping[str, "_Moments"],
    samples: Mapping[str, "_Sample"],
) -> None:
    for name in (*moments, *samples):
        item = schema.features[name]
        assert isinstance(item, NumberFeature | BucketFeature)
        number_B = derived.number(item, Source(batch, schema, f"feature {name!r}"))
        known_B = number_B[~np.isnan(number_B)]
        if isinstance(item, BucketFeature):
            samples[name].add(known_B)
        else:
            moments[name].add(transformed(item, known_B))


class _Counter:
    """Occurrences of the values of one table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._size = max(COUNTER_LEAST, COUNTER_FACTOR * table.rows)
        self._counted: pa.Table | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, values_N: pa.Array) -> None:
        if pa.types.is_boolean(values_N.type) or pa.types.is_integer(values_N.type):
            values_N = values_N.cast(pa.int64())
        counts = pc.value_counts(values_N.drop_null())
        self._waiting.append(pa.table({"value": counts.field(0), "count": counts.field(1)}))
        self._waiting_rows += len(counts)
        if self._waiting_rows > _MERGE_AT:
            self._merge()

    def values(self, previous: pa.Array | None) -> pa.Array:
        """Fitted values in row order: the previous ones, then the most frequent new ones, ties by value."""
        self._merge()
        assert self._counted is not None
        counted = self._counted.filter(
            pc.greater_equal(self._counted.column("count"), self._table.min_count)
        )
        room = self._table.rows - RESERVED_ROWS
        if previous is not None:
            known = pc.is_in(counted.column("value"), value_set=previous)
            counted, room = counted.filter(pc.invert(known)), room - len(previous)
        values = _most_frequent(counted, room).column("value").combine_chunks()
        return values if previous is None else pa.concat_arrays([previous, values])

    def _merge(self) -> None:
        tables = [*([] if self._counted is None else [self._counted]), *self._waiting]
        if not tables:
            return
        merged = (
            pa.concat_tables(tables)
            .group_by("value", use_threads=False)
            .aggregate([("count", "sum")])
        )
        merged = merged.rename_columns(["value", "count"])
        self._counted = (
            merged if merged.num_rows <= self._size else _most_frequent(merged, self._size // 2)
        )
        self._waiting, self._waiting_rows = [], 0


def _most_frequent(counted: pa.Table, most: int) -> pa.Table:
    return counted.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, most)


@dataclass
class _Moments:
    """Running mean and sum of squared deviations."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, number_B: NDArray[np.float64]) -> None:
        if not len(number_B):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # `result` refuses what overflows
            mean = float(number_B.mean())
            squares = float(np.square(number_B - mean).sum())
        total = self.count + len(number_B)
        gap = mean - self.mean
        self.squares += squares + gap * gap * self.count * len(number_B) / total
        self.mean += gap * len(number_B) / total
        self.count = total

    def result(self, feature: str) -> Moments:
        """Mean and deviation; a constant column keeps deviation 1, so that it encodes to 0. Raises DataError."""
        if not np.isfinite(self.squares):
            raise DataError(
                f"feature {feature!r}: its numbers are too large for a mean and a deviation; filter or scale them"
            )
        std = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        return Moments(self.mean, std if std > 1e-12 * max(1.0, abs(self.mean)) else 1.0)


@dataclass
class _Sample:
    """A uniform sample of at most SAMPLE_ROWS values: those whose row numbers hash lowest."""

    buckets: int
    seen: int = 0
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    priorities: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, number_B: NDArray[np.float64]) -> None:
        priority_B = splitmix64(np.arange(self.seen, self.seen + len(number_B), dtype=np.int64))
        self.seen += len(number_B)
        values = np.concatenate([self.values, number_B])
        priorities = np.concatenate([self.priorities, priority_B])
        if len(values) > SAMPLE_ROWS:
            kept = np.argpartition(priorities, SAMPLE_ROWS)[:SAMPLE_ROWS]
            values, priorities = values[kept], priorities[kept]
        self.values, self.priorities = values, priorities

    def edges(self) -> NDArray[np.float64]:
        """Inner quantile edges; fewer than `buckets - 1` when values repeat."""
        if not len(self.values):
            return np.empty(0, np.float64)
        return np.unique(np.quantile(self.values, np.linspace(0, 1, self.buckets + 1)[1:-1]))
