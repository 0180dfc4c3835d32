"""Point-in-time histories: for each row the last events of its user that happened strictly before it.

All events are gathered first, in compact arrays sorted by user and time; then any batch of rows looks its histories up
with three binary searches. E events, U users, T distinct times, B rows, N tokens of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipelines.rules import Rule
from recsys.config import Config
from recsys.hashing import hash_ids

Ints = NDArray[np.int64]


class History(Config):
    """The last `max_length` earlier events of a row's user. `tokens`: list column of the schema <- column of events."""

    user: str | None = None
    time: str | None = None
    where: tuple[Rule, ...] = ()
    max_length: int = Field(default=50, ge=1, le=10_000)
    tokens: dict[str, str] = Field(min_length=1)

    @field_validator("where", mode="before")
    @classmethod
    def _one_or_several(cls, where: Any) -> Any:
        return (where,) if isinstance(where, Mapping) else where


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
    """Events sorted by user, time and tokens. `key_E` is (rank of the user) * (T + 1) + (rank of the time)."""

    user_U: Ints
    time_T: Ints
    key_E: Ints
    tokens: Mapping[str, _Coded]

    def lists(
        self, user_B: pa.Array, time_B: pa.Array, *, max_length: int
    ) -> dict[str, pa.ListArray]:
        """For each token a list a row: its values in the last `max_length` earlier events of the user, oldest first."""
        start_B, end_B = self._spans(user_B, time_B)
        start_B = np.maximum(start_B, end_B - max_length)
        offsets = np.concatenate([[0], np.cumsum(end_B - start_B)])
        index_N = np.arange(offsets[-1]) + np.repeat(start_B - offsets[:-1], end_B - start_B)
        arrow_offsets = pa.array(offsets.astype(np.int32))
        return {
            name: pa.ListArray.from_arrays(arrow_offsets, coded.take(index_N))
            for name, coded in self.tokens.items()
        }

    def _spans(self, user_B: pa.Array, time_B: pa.Array) -> tuple[Ints, Ints]:
        """First event of each row's user, and the end of those strictly before the row's time; equal where none are."""
        user_hash_B = _user_hashes(user_B)
        rank_B = np.searchsorted(self.user_U, user_hash_B, side="left")
        known_B = _valid(user_B) & _valid(time_B)
        known_B &= np.searchsorted(self.user_U, user_hash_B, side="right") > rank_B
        # The rank of a time among the events' distinct times: events of rank below it are strictly earlier.
        time_rank_B = np.searchsorted(self.time_T, _microseconds(time_B), side="left")
        first_B = rank_B * (len(self.time_T) + 1)
        start_B = np.searchsorted(self.key_E, first_B, side="left")
        end_B = np.searchsorted(self.key_E, first_B + time_rank_B, side="left")
        return np.where(known_B, start_B, 0), np.where(known_B, end_B, 0)


@dataclass
class EventLog:
    """Gathers events batch by batch; `timeline` sorts them."""

    tokens: tuple[str, ...]
    user_chunks: list[Ints] = field(default_factory=list)
    time_chunks: list[Ints] = field(default_factory=list)
    token_chunks: dict[str, list[pa.Array]] = field(default_factory=dict)

    def add(self, user_B: pa.Array, time_B: pa.Array, tokens: Mapping[str, pa.Array]) -> int:
        """Take in a batch of events; those without a user or a time are none. Returns how many were taken."""
        known_B = _valid(user_B) & _valid(time_B)
        mask = pa.array(known_B)
        self.user_chunks.append(_user_hashes(user_B)[known_B])
        self.time_chunks.append(_microseconds(time_B)[known_B])
        for name in self.tokens:
            # Codes now, so that a text that many events share is held once a batch.
            self.token_chunks.setdefault(name, []).append(
                tokens[name].filter(mask).dictionary_encode()
            )
        return int(known_B.sum())

    def timeline(self, types: Mapping[str, pa.DataType]) -> Timeline:
        """The events sorted. `types` are those of the tokens' values, for a log without events."""
        user_E = np.concatenate([np.empty(0, np.int64), *self.user_chunks])
        time_E = np.concatenate([np.empty(0, np.int64), *self.time_chunks])
        coded = {name: _coded(self.token_chunks.get(name, []), types[name]) for name in self.tokens}
        # Ties of user and time are ordered by tokens: then the order of rows in the files means nothing.
        order_E = np.lexsort(
            (*[coded[name].codes_E for name in reversed(self.tokens)], time_E, user_E)
        )
        user_U, user_rank_E = np.unique(user_E[order_E], return_inverse=True)
        time_T, time_rank_E = np.unique(time_E[order_E], return_inverse=True)
        assert (len(user_U) + 1) * (len(time_T) + 1) < 2**63, "user and time ranks fit one int64"
        return Timeline(
            user_U,
            time_T,
            user_rank_E * (len(time_T) + 1) + time_rank_E,
            {name: _Coded(item.codes_E[order_E], item.values) for name, item in coded.items()},
        )


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


def _user_hashes(user_B: pa.Array) -> Ints:
    """A 64-bit number for each user, 0 for null; integers map one to one, texts by XXH3."""
    hash_B = np.zeros(len(user_B), np.int64)
    hash_B[_valid(user_B)] = hash_ids(user_B.drop_null()).view(np.int64)
    return hash_B


def _microseconds(time_B: pa.Array) -> Ints:
    microseconds_B: Ints = time_B.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return microseconds_B


def _valid(values: pa.Array) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = values.is_valid().to_numpy(zero_copy_only=False)
    return valid.copy()
