"""Golden requests: raw rows with the scores that the trained model gives them, carried inside the bundle.

They are replayed whenever a bundle is loaded, so other kernels, another encoder or a swapped table refuse to serve.

```
golden/user.arrow         raw user and context columns, one row a user (U)
golden/candidates.arrow   raw candidate columns and `user_of_row`, one row a candidate (N)
golden/expected.arrow     `logit:<task>` of each candidate, from the model in float32
```

Real rows may be given; made-up rows always follow them, so that known, unknown and null ids, empty, null and
overlong lists are there whatever the data. Axes: **U** users, **N** candidates, **T** tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.encode import Encoder, Moments
from recsys.errors import ArtifactError
from recsys.layout import logit_column
from recsys.schema import (
    ARROW_TYPES,
    BucketFeature,
    CategoricalFeature,
    IdToken,
    MultiValuedFeature,
    NumericFeature,
    Schema,
)

USER_OF_ROW = "user_of_row"
_PARTS = ("user", "candidates", "expected")
_SHOWN_AT = 1_790_000_000_000_000  # microseconds since 1970: 2026-09-21
_NULL_SHARE = 0.1
_UNKNOWN_SHARE = 0.15


@dataclass(frozen=True)
class Golden:
    """Raw requests and the logits expected of them."""

    user: pa.Table
    candidates: pa.Table
    user_of_row_N: NDArray[np.int64]
    logits_NT: NDArray[np.float32]

    def write(self, directory: Path, tasks: tuple[str, ...]) -> None:
        directory.mkdir()
        columns = dict(zip(self.candidates.column_names, self.candidates.columns, strict=True))
        pairs = pa.table(columns | {USER_OF_ROW: pa.array(self.user_of_row_N)})
        logits = {logit_column(task): self.logits_NT[:, t] for t, task in enumerate(tasks)}
        for name, table in zip(_PARTS, (self.user, pairs, pa.table(logits)), strict=True):
            file = str(directory / f"{name}.arrow")
            with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)


def read_golden(directory: Path, tasks: tuple[str, ...]) -> Golden:
    """The golden requests of a bundle. Raises ArtifactError when they are missing or damaged."""
    try:
        user, pairs, expected = (
            pa.ipc.open_file(pa.py_buffer((directory / f"{name}.arrow").read_bytes())).read_all()
            for name in _PARTS
        )
        logits_NT = np.stack(
            [expected.column(logit_column(task)).to_numpy() for task in tasks], axis=1
        )
        user_of_row_N = pairs.column(USER_OF_ROW).to_numpy()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{directory}: not readable golden requests ({error}); export again"
        ) from error
    return Golden(user, pairs.drop_columns([USER_OF_ROW]), user_of_row_N, logits_NT)


def made_up_rows(encoder: Encoder, rows: int, *, seed: int) -> pa.Table:
    """Raw request rows of an encoder's schema: fitted values, unknown ones, nulls, empty and overlong lists.

    The first row is null throughout; no row is real.
    """
    maker = _RowMaker(encoder, rows, np.random.default_rng(seed))
    schema = encoder.schema.raw_arrow(labels=False)
    return pa.table([maker.column(field.name) for field in schema], schema=schema)


class _RowMaker:
    def __init__(self, encoder: Encoder, rows: int, random: np.random.Generator) -> None:
        self._encoder = encoder
        self._schema = encoder.schema
        self._rows = rows
        self._random = random
        longest = max((item.max_length for item in self._schema.sequences.values()), default=0)
        # One length a row for all sequences: columns may be shared between them.
        self._events_B = random.integers(0, min(longest, 64) + 3, rows)
        self._events_B[1::4] = 0
        self._events_B[2] = longest + 2

    def column(self, name: str) -> pa.Array:
        """A whole raw column, made for the first feature or token that reads it."""
        dtype = self._schema.columns[name]
        if not dtype.startswith("list"):
            nulls_B = self._chance(_NULL_SHARE)
            nulls_B[0] = True
            return pa.array(self._values(name, self._rows), ARROW_TYPES[dtype], mask=nulls_B)
        lengths_B = self._events_B if name in _token_columns(self._schema) else self._bag_lengths()
        count = int(lengths_B.sum())
        values = iter(self._values(name, count).tolist())
        nulls = iter(self._random.random(count) < _NULL_SHARE)
        lists: list[list[Any] | None] = []
        for row, length in enumerate(lengths_B.tolist()):
            items = [None if next(nulls) else next(values) for _ in range(length)]
            lists.append(None if row % 8 == 1 and not items else items)
        lists[0] = [None] * int(lengths_B[0]) or None
        return pa.array(lists, ARROW_TYPES[dtype])

    def _bag_lengths(self) -> NDArray[np.int64]:
        lengths_B = self._random.integers(0, 5, self._rows)
        lengths_B[1::4] = 0
        return lengths_B

    def _values(self, name: str, count: int) -> NDArray[Any]:
        dtype = self._schema.columns[name].removeprefix("list<").removesuffix(">")
        if dtype == "timestamp":
            ago = 0 if name == self._schema.keys.time else 2.0 ** self._random.uniform(0, 24, count)
            return np.asarray(_SHOWN_AT - np.floor(ago * 1e6), np.int64) + np.zeros(count, np.int64)
        table = next(_tables_of(self._schema, name), None)
        if table is not None:
            return self._ids(table, dtype, count)
        numbers = self._numbers(name, count)
        if dtype == "bool":
            return numbers > 0
        if dtype.startswith("int"):
            bounds = np.iinfo(dtype)
            return np.clip(np.rint(numbers), bounds.min // 2, bounds.max // 2).astype(dtype)
        return numbers.astype(dtype)

    def _ids(self, table: str, dtype: str, count: int) -> NDArray[Any]:
        vocabulary = self._encoder.vocabularies.get(table)
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

    def _chance(self, share: float) -> NDArray[np.bool_]:
        return self._random.random(self._rows) < share


def _tables_of(schema: Schema, column: str) -> Iterator[str]:
    for item in schema.features.values():
        if isinstance(item, CategoricalFeature | MultiValuedFeature) and item.column == column:
            yield item.table
    for sequence in schema.sequences.values():
        for spec in sequence.tokens.values():
            if isinstance(spec, IdToken) and spec.column == column:
                yield spec.table


def _token_columns(schema: Schema) -> set[str]:
    return {spec.column for item in schema.sequences.values() for spec in item.tokens.values()}
