"""The order of everything numeric that a schema implies: sparse slots, dense values, encoded columns; and their names.

Collation, models, bundles and the encoder read their column order from here and nowhere else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import pyarrow as pa

from recsys.schema import (
    ARROW_TYPES,
    BagFeature,
    IdFeature,
    IdToken,
    MultiValuedFeature,
    NumberFeature,
    OwnTableFeature,
    Schema,
    Side,
    VectorFeature,
)

BlockSide = Literal["user", "candidate"]

# Layouts are asked for several times a batch and a request.
_SCHEMAS = 64


@dataclass(frozen=True)
class Slot:
    """One stream of ids: a `single` id a row, a pooled `bag`, or the `token`s of a sequence.

    A `weighted` bag has an encoded column of weights beside that of its ids.
    """

    name: str
    table: str
    side: BlockSide
    kind: Literal["single", "bag", "token"]
    dim: int
    pooling: Literal["mean", "sum"] = "sum"
    sequence: str | None = None
    max_length: int = 1
    weighted: bool = False


@dataclass(frozen=True)
class Dense:
    """Dense numbers of a row: one, or the `width` of a vector."""

    name: str
    side: BlockSide
    width: int = 1

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.float32() if self.width == 1 else pa.list_(pa.float32(), self.width)


@lru_cache(maxsize=_SCHEMAS)
def slots(schema: Schema, side: BlockSide | None = None) -> tuple[Slot, ...]:
    """Sparse slots in order: features as declared, then the tokens of each sequence; of one side if named."""
    found = [*_feature_slots(schema), *_token_slots(schema)]
    return tuple(slot for slot in found if side in (None, slot.side))


@lru_cache(maxsize=_SCHEMAS)
def dense(schema: Schema, side: BlockSide | None = None) -> tuple[Dense, ...]:
    """Dense values in the order of declaration; of one side if named."""
    found = [
        Dense(name, _block_side(item.side), item.dim if isinstance(item, VectorFeature) else 1)
        for name, item in schema.features.items()
        if isinstance(item, NumberFeature | VectorFeature)
    ]
    return tuple(item for item in found if side in (None, item.side))


def _encoded_fields(
    schema: Schema, *, labels: bool, side: BlockSide | None = None
) -> list[pa.Field]:
    """Fields of encoded rows, in order. With labels: labels, observed, weight, group, row key and kept columns too."""
    fields = []
    for slot in slots(schema, side):
        # A hash is no row yet, and no reader can take it for one.
        row = pa.uint64() if slot.table in schema.unbounded else pa.int64()
        ids = row if slot.kind == "single" else pa.list_(row)
        fields.append(pa.field(slot.name, ids))
        if slot.weighted:
            fields.append(pa.field(weights_column(slot.name), pa.list_(pa.float32())))
    fields += [pa.field(dense_column(item.name), item.arrow_type) for item in dense(schema, side)]
    if not labels:
        return fields
    for task in schema.tasks:
        fields.append(pa.field(label_column(task), pa.float32()))
        fields.append(pa.field(observed_column(task), pa.bool_()))
    fields += [
        pa.field("weight", pa.float32()),
        pa.field("group", pa.int64()),
        pa.field("row_key", pa.int64()),
    ]
    fields += [
        pa.field(kept_column(name), ARROW_TYPES[schema.columns[name]]) for name in schema.keys.kept
    ]
    return fields


@lru_cache(maxsize=_SCHEMAS)
def encoded_arrow(
    schema: Schema, *, labels: bool = True, side: BlockSide | None = None
) -> pa.Schema:
    """Arrow schema of encoded rows, as `Encoder.encode` returns them and a published day holds them."""
    return pa.schema(_encoded_fields(schema, labels=labels, side=side))


def training_columns(schema: Schema) -> list[str]:
    """Names of encoded columns that a training batch is made of: all but the kept ones."""
    kept = {kept_column(name) for name in schema.keys.kept}
    return [name for name in encoded_arrow(schema).names if name not in kept]


def dense_column(name: str) -> str:
    return f"dense:{name}"


def weights_column(slot: str) -> str:
    return f"weights:{slot}"


def label_column(task: str) -> str:
    return f"label:{task}"


def observed_column(task: str) -> str:
    return f"observed:{task}"


def logit_column(task: str) -> str:
    return f"logit:{task}"


def kept_column(name: str) -> str:
    return f"keep:{name}"


@lru_cache(maxsize=_SCHEMAS)
def column_sides(schema: Schema) -> Mapping[str, Side]:
    """The side on which a request carries each of its raw columns, in the order of `Schema.request_columns`.

    A column is carried once: where it comes with the request, candidate-side features that read it too see it
    repeated for every candidate.
    """
    user: set[str] = set()
    context: set[str] = set()
    for sequence in schema.sequences.values():
        user |= {spec.column for spec in sequence.tokens.values()}
    for item in schema.features.values():
        if item.serve == "request":
            user.update(item.columns if item.side == "user" else item.user_columns)
            context.update(item.columns if item.side == "context" else ())
    if schema.keys.time is not None:
        user.discard(schema.keys.time)
        context.add(schema.keys.time)
    return MappingProxyType(
        {
            name: "user" if name in user else "context" if name in context else "candidate"
            for name in schema.request_columns
        }
    )


def entry_name(task: str, given: str | None = None) -> str:
    """Name of an entry of reports and answers: `purchase` over all impressions, `purchase|click` on clicked ones."""
    return task if given is None else f"{task}|{given}"


def entry_names(schema: Schema) -> tuple[str, ...]:
    """Every entry: tasks in the schema's order, each funnel step followed by its conditional."""
    names: list[str] = []
    for name, task in schema.tasks.items():
        names.append(name)
        if task.given is not None:
            names.append(entry_name(name, task.given))
    return tuple(names)


def _feature_slots(schema: Schema) -> Iterable[Slot]:
    tables = schema.all_tables
    for name, item in schema.features.items():
        side = _block_side(item.side)
        if isinstance(item, IdFeature):
            yield Slot(name, item.table, side, "single", tables[item.table].dim)
        elif isinstance(item, BagFeature):
            weighted = isinstance(item, MultiValuedFeature) and item.weights is not None
            dim = tables[item.table].dim
            yield Slot(name, item.table, side, "bag", dim, item.pooling, weighted=weighted)
        elif isinstance(item, OwnTableFeature):
            yield Slot(name, name, side, "single", item.dim)


def _token_slots(schema: Schema) -> Iterable[Slot]:
    for sequence_name, sequence in schema.sequences.items():
        for token, spec in sequence.tokens.items():
            name = f"{sequence_name}.{token}"
            table = spec.table if isinstance(spec, IdToken) else name
            yield Slot(
                name,
                table,
                "user",
                "token",
                schema.all_tables[table].dim,
                sequence=sequence_name,
                max_length=sequence.max_length,
            )


def _block_side(side: Side) -> BlockSide:
    """User and context features are per request, so both lie on the user axis U."""
    return "candidate" if side == "candidate" else "user"
