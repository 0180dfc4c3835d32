"""Raw request rows that nobody sent: what golden requests hold whatever the data.

Known, unknown and null ids; empty, null and overlong lists; maps with and without the row's key; weights of 0; texts
of no word and of many. Crosses and n-grams are known only to vocabularies of hashes, so theirs are all unknown there.

Axes: **B** rows, **N** values of all rows.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.encode import Encoder, Moments
from recsys.schema import (
    ARROW_TYPES,
    BucketFeature,
    CategoricalFeature,
    DatePartFeature,
    IdToken,
    LookupFeature,
    MultiValuedFeature,
    NumericFeature,
    OverlapFeature,
    Schema,
    TextFeature,
    VectorFeature,
)

_SHOWN_AT = 1_790_000_000_000_000  # microseconds since 1970: 2026-09-21
_MONTH = 28 * 86_400_000_000
_NULL_SHARE = 0.1
_UNKNOWN_SHARE = 0.15
_WORDS = ("red", "Green", "blue", "shoe", "T-shirt", "größe", "帽子", "42")


def made_up_rows(encoder: Encoder, rows: int, *, seed: int) -> pa.Table:
    """Raw request rows of an encoder's schema. The first is null throughout; no row is real."""
    maker = _RowMaker(encoder, rows, np.random.default_rng(seed))
    schema = encoder.schema.raw_arrow(labels=False)
    return pa.table([maker.column(field.name) for field in schema], schema=schema)


class _RowMaker:
    def __init__(self, encoder: Encoder, rows: int, random: np.random.Generator) -> None:
        self._encoder = encoder
        self._schema = encoder.schema
        self._rows = rows
        self._random = random
        self._made: dict[str, pa.Array] = {}
        longest = max((item.max_length for item in self._schema.sequences.values()), default=0)
        # One length a row for all sequences: columns may be shared between them.
        self._events_B = random.integers(0, min(longest, 64) + 3, rows)
        self._events_B[1::4] = 0
        self._events_B[2] = longest + 2
        # So too for all weighted ids and their weights.
        self._weighted_B = self._bag_lengths()

    def column(self, name: str) -> pa.Array:
        """A whole raw column, made for the first feature or token that reads it."""
        if name not in self._made:
            self._made[name] = self._column(name)
        return self._made[name]

    def _column(self, name: str) -> pa.Array:
        dtype = self._schema.columns[name]
        if dtype.startswith("map"):
            return pa.array(self._maps(name), ARROW_TYPES[dtype])
        if dtype.startswith("list"):
            return pa.array(self._lists(name), ARROW_TYPES[dtype])
        nulls_B = self._random.random(self._rows) < _NULL_SHARE
        nulls_B[0] = True
        return pa.array(self._values(name, self._rows), ARROW_TYPES[dtype], mask=nulls_B)

    def _lists(self, name: str) -> list[list[Any] | None]:
        dim = _vector_dim(self._schema, name)
        if dim is not None:
            vectors = self._random.standard_normal((self._rows, dim)).tolist()
            return [None if row % 8 == 0 else vector for row, vector in enumerate(vectors)]
        lengths_B = self._lengths(name)
        count = int(lengths_B.sum())
        if name in _weights(self._schema):
            weights = iter((self._random.integers(0, 5, count) / 2).tolist())
            # Every fourth row is a bag without weight.
            return [
                [next(weights) * (row % 4 > 0) for _ in range(length)]
                for row, length in enumerate(lengths_B.tolist())
            ]
        values = iter(self._values(name, count).tolist())
        nulls = iter(self._random.random(count) < _NULL_SHARE)
        lists: list[list[Any] | None] = []
        for row, length in enumerate(lengths_B.tolist()):
            items = [None if next(nulls) else next(values) for _ in range(length)]
            lists.append(None if row % 8 == 1 and not items else items)
        lists[0] = [None] * int(lengths_B[0]) or None
        return lists

    def _lengths(self, name: str) -> NDArray[np.int64]:
        """How long each row's list is; lists that belong together agree."""
        events, weighted = _token_columns(self._schema), _weighted(self._schema)
        if name in events or (events & weighted and name in weighted | _weights(self._schema)):
            return self._events_B
        if name in weighted | _weights(self._schema):
            return self._weighted_B
        return self._bag_lengths()

    def _bag_lengths(self) -> NDArray[np.int64]:
        lengths_B = self._random.integers(0, 5, self._rows)
        lengths_B[1::4] = 0
        return lengths_B

    def _maps(self, name: str) -> list[list[tuple[Any, float | None]] | None]:
        """Maps of about half the keys that rows have and one that none has; some empty, some null."""
        keys = next(
            item.key
            for item in self._schema.features.values()
            if isinstance(item, LookupFeature) and item.column == name
        )
        known = list(dict.fromkeys(self.column(keys).drop_null().to_pylist()))
        string = self._schema.columns[name].startswith("map<string")
        maps: list[list[tuple[Any, float | None]] | None] = []
        for row in range(self._rows):
            kept = [key for key in known if self._random.random() < 0.5]
            pairs: list[tuple[Any, float | None]] = [
                (key if string else int(key), float(self._random.standard_normal())) for key in kept
            ]
            pairs += [("unknown" if string else -(2**62), None)]
            maps.append(None if row % 8 == 0 else [] if row % 8 == 4 else pairs)
        return maps

    def _values(self, name: str, count: int) -> NDArray[Any]:
        dtype = self._schema.columns[name].removeprefix("list<").removesuffix(">")
        if dtype == "timestamp":
            return self._times(name, count)
        if dtype == "string" and _is_text(self._schema, name):
            return self._texts(count)
        table = next(_tables_of(self._schema, name), None)
        if table is not None or dtype == "string":
            return self._also_of_others(name, self._ids(table, dtype, count))
        numbers = self._numbers(name, count)
        if dtype == "bool":
            return numbers > 0
        if dtype.startswith("int"):
            bounds = np.iinfo(dtype)
            rounded = np.clip(np.rint(numbers), bounds.min // 2, bounds.max // 2).astype(dtype)
            return self._also_of_others(name, rounded)
        return numbers.astype(dtype)

    def _times(self, name: str, count: int) -> NDArray[np.int64]:
        if name == self._schema.keys.time:
            # All at once, for gaps of seconds, unless a feature tells the parts of dates apart.
            spread = _MONTH if _tells_dates_apart(self._schema, name) else 0
            late_B = self._random.random(count) < 0.5
            return _SHOWN_AT + np.where(late_B, self._random.integers(0, spread + 1, count), 0)
        ago = 2.0 ** self._random.uniform(0, 24, count)
        return _SHOWN_AT - np.floor(ago * 1e6).astype(np.int64)

    def _texts(self, count: int) -> NDArray[Any]:
        lengths = self._random.integers(0, 6, count)
        lengths[2:3] = 200
        texts = [" ".join(self._random.choice(_WORDS, length)) for length in lengths]
        return np.array(texts, object)

    def _ids(self, table: str | None, dtype: str, count: int) -> NDArray[Any]:
        vocabulary = None if table is None else self._encoder.vocabularies.get(table)
        if dtype == "bool":
            return self._random.random(count) < 0.5
        bits = 62 if dtype == "int64" else int(dtype[3:]) - 2 if dtype.startswith("int") else 30
        unknown = self._random.integers(0, 2**bits, count)
        ids: NDArray[Any] = (
            np.array([f"unknown-{number}" for number in unknown], object)
            if dtype == "string"
            else unknown.astype(dtype)
        )
        if vocabulary is None or len(vocabulary.values) == 0:
            return ids
        fitted = vocabulary.values.take(
            pa.array(self._random.integers(0, len(vocabulary.values), count))
        )
        known: NDArray[Any] = np.array(fitted.to_pylist(), ids.dtype)
        return np.where(self._random.random(count) < _UNKNOWN_SHARE, ids, known)

    def _also_of_others(self, name: str, ids: NDArray[Any]) -> NDArray[Any]:
        """Every other id one that a column holds which an overlap compares with this one: few would be common."""
        columns = list(self._schema.columns)
        earlier = [
            column
            for item in self._schema.features.values()
            if isinstance(item, OverlapFeature) and name in item.columns
            for column in item.columns
            # Of two columns the later one takes from the earlier, so that this ends.
            if columns.index(column) < columns.index(name)
        ]
        if not earlier:
            return ids
        other = self.column(earlier[0])
        flat = other.flatten() if pa.types.is_list(other.type) else other
        held = np.array(flat.drop_null().unique().to_pylist(), object)
        if ids.dtype != object:
            bounds = np.iinfo(ids.dtype)
            held = held[(held >= bounds.min) & (held <= bounds.max)].astype(ids.dtype)
        if not len(held):
            return ids
        drawn = self._random.choice(held, len(ids))
        return np.where(self._random.random(len(ids)) < 0.5, ids, drawn)

    def _numbers(self, name: str, count: int) -> NDArray[np.float64]:
        """Numbers spread as the feature's statistics say, tails beyond the clip included."""
        spread_B: NDArray[np.float64] = 2.0 * self._random.standard_normal(count)
        for feature, item in self._schema.features.items():
            if name not in item.columns or item.serve == "fixed":
                continue
            if isinstance(item, BucketFeature) and len(self._encoder.edges[feature]):
                edges = self._encoder.edges[feature]
                return self._random.choice(edges, count) + spread_B * 0.01 * float(np.ptp(edges))
            if isinstance(item, NumericFeature):
                moments = self._encoder.moments.get(feature, Moments(0.0, 1.0))
                number_B = moments.mean + moments.std * spread_B
                if item.transform == "log1p":
                    number_B = np.sign(number_B) * np.expm1(np.minimum(np.abs(number_B), 60.0))
                return number_B
        return spread_B


def _tables_of(schema: Schema, column: str) -> Iterator[str]:
    for item in schema.features.values():
        if isinstance(item, CategoricalFeature | MultiValuedFeature) and item.column == column:
            yield item.table
    for sequence in schema.sequences.values():
        for spec in sequence.tokens.values():
            if isinstance(spec, IdToken) and spec.column == column:
                yield spec.table


def _is_text(schema: Schema, column: str) -> bool:
    """Whether all features that read a column take it apart, and none takes it for an id."""
    readers = [item for item in schema.features.values() if column in item.columns]
    return bool(readers) and all(isinstance(item, TextFeature) for item in readers)


def _token_columns(schema: Schema) -> set[str]:
    return {spec.column for item in schema.sequences.values() for spec in item.tokens.values()}


def _weights(schema: Schema) -> set[str]:
    """Columns that weigh the ids of another."""
    return {
        item.weights
        for item in schema.features.values()
        if isinstance(item, MultiValuedFeature) and item.weights is not None
    }


def _weighted(schema: Schema) -> set[str]:
    """Columns of ids that another column weighs."""
    return {
        item.column
        for item in schema.features.values()
        if isinstance(item, MultiValuedFeature) and item.weights is not None
    }


def _vector_dim(schema: Schema, column: str) -> int | None:
    dims = (
        item.dim
        for item in schema.features.values()
        if isinstance(item, VectorFeature) and item.column == column
    )
    return next(dims, None)


def _tells_dates_apart(schema: Schema, column: str) -> bool:
    return any(
        isinstance(item, DatePartFeature) and item.column == column
        for item in schema.features.values()
    )
