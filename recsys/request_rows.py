"""Rows as a request carries them: which raw columns, in which section, and how they are encoded.

A request carries each column once: the user's and the context's for all candidates, the others in one value a
candidate. Where a candidate-side feature reads a column of the request too (a cross of user and item, a lookup in the
user's map), each candidate takes the value of its own user before the candidate side is encoded.

Axes: **N** candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.encode import Encoder
from recsys.layout import BlockSide, column_sides
from recsys.raw import one_array
from recsys.schema import ARROW_TYPES, OneColumn, Schema

_FIXED = "fixed:"


@dataclass(frozen=True)
class RequestColumns:
    """The raw columns that a request carries, by the section it carries them in. Fixed features are in none.

    `shared` are those of the user and the context that candidate-side features read.
    """

    user: tuple[str, ...]
    context: tuple[str, ...]
    candidate: tuple[str, ...]
    shared: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema) -> "RequestColumns":
        sides = column_sides(schema)
        read_by_candidates = {
            column
            for item in schema.features.values()
            if item.side == "candidate" and item.serve == "request"
            for column in item.columns
        }
        return cls(
            user=tuple(name for name, side in sides.items() if side == "user"),
            context=tuple(name for name, side in sides.items() if side == "context"),
            candidate=tuple(name for name, side in sides.items() if side == "candidate"),
            shared=tuple(
                name
                for name, side in sides.items()
                if side != "candidate" and name in read_by_candidates
            ),
        )

    def joined(
        self, candidates: pa.Table, *, user: pa.Table, user_of_row_N: NDArray[np.int64]
    ) -> pa.Table:
        """Candidate rows with the shared columns of the user that each row belongs to."""
        if not self.shared:
            return candidates
        columns = dict(zip(candidates.column_names, candidates.columns, strict=True))
        index = pa.array(user_of_row_N)
        for name in self.shared:
            # A column that the rows lack is the encoder's to report.
            if name in user.column_names:
                columns[name] = _taken(user.column(name), index)
        return pa.table(columns)


def _taken(column: pa.ChunkedArray, index: pa.Array) -> pa.Array:
    """The values at an index. Those of any length that it repeats are not copied: a request may hold long ones."""
    lengthy = pa.types.is_nested(column.type) or pa.types.is_string(column.type)
    if lengthy and len(column) < len(index):
        return pa.DictionaryArray.from_arrays(index, one_array(column))
    return one_array(column).take(index)


@dataclass(frozen=True)
class RequestEncoder:
    """An encoder of request rows: features with `serve = "fixed"` take their constant, whatever the rows hold."""

    encoder: Encoder
    constants: Mapping[str, pa.Scalar]

    @classmethod
    def of(cls, encoder: Encoder) -> "RequestEncoder":
        schema = encoder.schema
        columns, features, constants = dict(schema.columns), dict(schema.features), {}
        for name, item in schema.features.items():
            if isinstance(item, OneColumn) and item.serve == "fixed":
                # A column of its own: another feature may read the same raw column from the request.
                column = f"{_FIXED}{name}"
                columns[column] = schema.columns[item.column]
                features[name] = item.model_copy(update={"column": column})
                constants[column] = pa.scalar(item.value, ARROW_TYPES[columns[column]])
        fixed = schema.model_copy(update={"columns": columns, "features": features})
        return cls(replace(encoder, schema=fixed), constants)

    def encode(self, raw: pa.Table, *, rows: int, side: BlockSide | None = None) -> pa.Table:
        """Encoded inputs of raw request rows, of both sides or of one. Raises DataError."""
        columns = dict(zip(raw.column_names, raw.columns, strict=True))
        columns |= {name: pa.repeat(value, rows) for name, value in self.constants.items()}
        return self.encoder.encode_inputs(pa.table(columns), side=side)
