"""Events sorted by key and time, and which of them lie before or after the moment of a row.

All events are gathered first, in compact arrays; then any batch of rows finds its events with binary searches.
E events, K keys, T distinct times, B rows, N tokens of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.hashing import hash_ids

Ints = NDArray[np.int64]
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True)
class Moments:
    """Whose and when: a 64-bit number for each row's key, its time in microseconds; `known_B`: neither is null."""

    key_B: Ints
    time_B: Ints
    known_B: NDArray[np.bool_]

    def later(self, microseconds: int) -> Ints:
        """The times so much later; the last time there is where that would be beyond it."""
        return np.minimum(self.time_B, _INT64.max - microseconds) + microseconds

    def earlier(self, microseconds: int) -> Ints:
        """The times so much earlier; the first time there is where that would be beyond it."""
        return np.maximum(self.time_B, _INT64.min + microseconds) - microseconds


def moments(keys: Sequence[pa.Array], time_B: pa.Array) -> Moments:
    """The moments of rows by the columns of their key (text, integers, booleans or timestamps) and their timestamps.

    A key of one integer column maps one to one; others are 64-bit hashes.
    """
    known_B = _valid(time_B)
    number_B = np.zeros(len(time_B), np.uint64)
    for seed, values in enumerate(keys):
        valid_B = _valid(values)
        # A seed for each column: (a, b) and (b, a) are two keys.
        number_B[valid_B] += hash_ids(values.drop_null(), seed)
        known_B &= valid_B
    microseconds_B = time_B.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return Moments(number_B.view(np.int64), microseconds_B, known_B)


def is_id(dtype: pa.DataType) -> bool:
    """Whether values of a type can be a key, or a part of one."""
    types = pa.types
    return bool(
        types.is_string(dtype)
        or types.is_integer(dtype)
        or types.is_boolean(dtype)
        or types.is_timestamp(dtype)
    )


@dataclass(frozen=True)
class Spans:
    """For each row the events from `start_B` up to, not including, `end_B` of a timeline."""

    start_B: Ints
    end_B: Ints

    def counts(self) -> Ints:
        """The number of events of each row."""
        return self.end_B - self.start_B

    def last(self, count: int) -> "Spans":
        """Only the last `count` events of each row."""
        return Spans(np.maximum(self.start_B, self.end_B - count), self.end_B)


@dataclass(frozen=True)
class _Coded:
    """A column of events as codes into its sorted distinct values; -1 is null."""

    codes_E: NDArray[np.int32]
    values: pa.Array

    def take(self, index_N: Ints) -> pa.Array:
        codes_N = self.codes_E[index_N]
        return self.values.take(pa.array(codes_N, mask=codes_N < 0))


@dataclass(frozen=True)
class Timeline:
    """Events sorted by key, time and tokens. `rank_E` is (rank of the key) * (T + 1) + (rank of the time)."""

    key_K: Ints
    time_T: Ints
    rank_E: Ints
    tokens: Mapping[str, _Coded]

    def before(self, rows: Moments, *, window: int | None = None) -> Spans:
        """Events of each row's key strictly before its time; with a `window`, at most so many microseconds before."""
        end_B = _ranks(self.time_T, rows.time_B)
        if window is None:
            return self._spans(rows, np.zeros_like(end_B), end_B)
        return self._spans(rows, _ranks(self.time_T, rows.earlier(window)), end_B)

    def since(self, rows: Moments, *, window: int) -> Spans:
        """Events of each row's key at its time and up to `window` microseconds later, both ends included."""
        start_B = _ranks(self.time_T, rows.time_B)
        end_B = _ranks(self.time_T, rows.later(window), side="right")
        return self._spans(rows, start_B, end_B)

    def lists(self, spans: Spans) -> dict[str, pa.ListArray]:
        """For each token a list a row: its values in the row's events, oldest first."""
        count_B = spans.counts()
        offsets = np.concatenate([[0], np.cumsum(count_B)])
        index_N = np.arange(offsets[-1]) + np.repeat(spans.start_B - offsets[:-1], count_B)
        arrow_offsets = pa.array(offsets.astype(np.int32))
        return {
            name: pa.ListArray.from_arrays(arrow_offsets, coded.take(index_N))
            for name, coded in self.tokens.items()
        }

    def _spans(self, rows: Moments, start_rank_B: Ints, end_rank_B: Ints) -> Spans:
        """Events of each row's key whose time has a rank in an interval; none where key or time are unknown."""
        rank_B = _ranks(self.key_K, rows.key_B)
        known_B = rows.known_B & (_ranks(self.key_K, rows.key_B, side="right") > rank_B)
        first_B = rank_B * (len(self.time_T) + 1)
        start_B = _ranks(self.rank_E, first_B + start_rank_B)
        end_B = _ranks(self.rank_E, first_B + end_rank_B)
        return Spans(np.where(known_B, start_B, 0), np.where(known_B, end_B, 0))


@dataclass
class EventLog:
    """Gathers events batch by batch; `timeline` sorts them."""

    tokens: tuple[str, ...] = ()
    key_chunks: list[Ints] = field(default_factory=list)
    time_chunks: list[Ints] = field(default_factory=list)
    token_chunks: dict[str, list[pa.Array]] = field(default_factory=dict)

    @property
    def events(self) -> int:
        return sum(map(len, self.key_chunks))

    def add(self, rows: Moments, tokens: Mapping[str, pa.Array]) -> None:
        """Take in a batch of events; those without a key or a time are none."""
        self.key_chunks.append(rows.key_B[rows.known_B])
        self.time_chunks.append(rows.time_B[rows.known_B])
        mask = pa.array(rows.known_B)
        for name in self.tokens:
            # Codes now, so that a text that many events share is held once a batch.
            self.token_chunks.setdefault(name, []).append(
                tokens[name].filter(mask).dictionary_encode()
            )

    def timeline(self, types: Mapping[str, pa.DataType]) -> Timeline:
        """The events sorted. `types` are those of the tokens' values, for a log without events."""
        key_E = np.concatenate([np.empty(0, np.int64), *self.key_chunks])
        time_E = np.concatenate([np.empty(0, np.int64), *self.time_chunks])
        coded = {name: _coded(self.token_chunks.get(name, []), types[name]) for name in self.tokens}
        # Ties of key and time are ordered by tokens: then the order of rows in the files means nothing.
        order_E = np.lexsort(
            (*[coded[name].codes_E for name in reversed(self.tokens)], time_E, key_E)
        )
        key_K, key_rank_E = np.unique(key_E[order_E], return_inverse=True)
        time_T, time_rank_E = np.unique(time_E[order_E], return_inverse=True)
        assert (len(key_K) + 1) * (len(time_T) + 1) < 2**63, "key and time ranks fit one int64"
        return Timeline(
            key_K,
            time_T,
            key_rank_E * (len(time_T) + 1) + time_rank_E,
            {name: _Coded(item.codes_E[order_E], item.values) for name, item in coded.items()},
        )


def _ranks(sorted_E: Ints, values_B: Ints, *, side: Literal["left", "right"] = "left") -> Ints:
    """np.searchsorted, with the values in order: then each search begins where memory is warm from the last."""
    order_B = np.argsort(values_B)
    rank_B = np.empty(len(values_B), np.int64)
    rank_B[order_B] = np.searchsorted(sorted_E, values_B[order_B], side=side)
    return rank_B


def _coded(chunks: Sequence[pa.Array], value_type: pa.DataType) -> _Coded:
    if not chunks:
        return _Coded(np.empty(0, np.int32), pa.array([], value_type))
    encoded = pa.chunked_array(chunks).unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks)
    order_V = pc.array_sort_indices(encoded.dictionary).to_numpy(zero_copy_only=False)
    code_V = np.empty(len(order_V), np.int32)
    code_V[order_V] = np.arange(len(order_V), dtype=np.int32)
    codes_E = np.full(len(encoded), -1, np.int32)
    present_E = _valid(encoded)
    codes_E[present_E] = code_V[encoded.indices.drop_null().to_numpy(zero_copy_only=False)]
    return _Coded(codes_E, encoded.dictionary.take(pa.array(order_V)))


def _valid(values: pa.Array) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = values.is_valid().to_numpy(zero_copy_only=False)
    return valid.copy()
