"""Rows as a request carries them: which raw columns, in which section, and how they are encoded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from recsys.encode import Encoder
from recsys.layout import BlockSide
from recsys.schema import ARROW_TYPES, OneColumn, Schema

_FIXED = "fixed:"


@dataclass(frozen=True)
class RequestColumns:
    """The raw columns that a request carries, by the section it carries them in. Fixed features are in none."""

    user: tuple[str, ...]
    context: tuple[str, ...]
    candidate: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema) -> "RequestColumns":
        by_side: dict[str, dict[str, None]] = {"user": {}, "context": {}, "candidate": {}}
        for item in schema.features.values():
            if item.serve == "request":
                by_side[item.side] |= dict.fromkeys(item.columns)
        for sequence in schema.sequences.values():
            by_side["user"] |= dict.fromkeys(spec.column for spec in sequence.tokens.values())
        time = schema.keys.time
        if time in schema.request_columns:
            assert time is not None
            by_side["context"][time] = None
        context = tuple(name for name in by_side["context"] if name not in by_side["user"])
        return cls(tuple(by_side["user"]), context, tuple(by_side["candidate"]))


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
