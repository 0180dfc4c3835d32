"""The sections of `schema.toml`, one frozen class each. `recsys.schema.Schema` puts them together."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from recsys.config import Config
from recsys.errors import nearest

MISSING_ROW = 0
UNKNOWN_ROW = 1
RESERVED_ROWS = 2
VOCABULARY_UP_TO_ROWS = 200_000

TIMESTAMP = pa.timestamp("us", tz="UTC")
_SCALARS: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": TIMESTAMP,
}
_LISTED = ("int64", "float32", "string", "timestamp")
_MAP_KEYS = ("string", "int64")
ARROW_TYPES: dict[str, pa.DataType] = (
    _SCALARS
    | {f"list<{name}>": pa.list_(_SCALARS[name]) for name in _LISTED}
    | {f"map<{name},float32>": pa.map_(_SCALARS[name], pa.float32()) for name in _MAP_KEYS}
)


def dtype_name(found: pa.DataType) -> str:
    """What `[columns]` calls a type of Arrow's."""
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return f"list<{dtype_name(found.value_type)}>"
    return next((name for name, known in ARROW_TYPES.items() if known == found), str(found))


# What other systems call them, where the nearest name would mislead.
OTHER_NAMES = {
    "int": "int64",
    "integer": "int64",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "str": "string",
    "text": "string",
    "object": "string",
    "boolean": "bool",
    "date": "timestamp",
    "datetime": "timestamp",
}


Side = Literal["user", "context", "candidate"]
IdKind = Literal["vocabulary", "hash", "unbounded", "zch"]
# The kinds whose days hold hashes, which an id map turns into rows.
UNBOUNDED: tuple[IdKind, ...] = ("unbounded", "zch")
Eviction = Literal["lru", "lfu"]
# What TorchRec calls its own maps of ids, of which "zch" is one that trains everywhere.
_MANAGED_COLLISION = ("mpzch", "managed_collision")


class Table(Config):
    """An embedding table: `rows` includes the two reserved rows, `dim` is the embedding width K.

    `ids` says how a raw value becomes a row: a fitted `vocabulary` (values seen at least `min_count` times; the rest
    are unknown), a seeded `hash`, or `unbounded`: by an id map that training keeps, where values seen at least
    `min_count` times take rows and, once all are taken, `eviction` says whose row a new one gets (`recsys.admission`).
    With `zch` TorchRec keeps that map, and changes it after every step (`recsys.models.embeddings.managed_collision`).
    Without it, tables of up to 200 000 rows take the vocabulary.
    """

    rows: int = Field(ge=3, le=2**40)
    dim: int = Field(default=16, ge=1, le=4096)
    ids: IdKind | None = None
    min_count: int = Field(default=2, ge=1)
    # Left out where it is not stated: digests of older schemas stay what they were.
    eviction: Eviction | None = Field(default=None, exclude_if=lambda value: value is None)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("ids", mode="before")
    @classmethod
    def _only_sorted_managed_collision(cls, ids: Any) -> Any:
        if ids in _MANAGED_COLLISION:
            raise ValueError(
                f"{ids!r} may be TorchRec's multi-probe map, which fbgemm only reads on CPUs; say 'zch', its sorted "
                "map, or 'unbounded': both train alike on every device"
            )
        return ids

    @model_serializer(mode="wrap")
    def _as_stated(self, tree_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = tree_of(self)
        if self.ids == "zch":
            # Which may not be stated there, so what is read back must not state it.
            tree.pop("min_count", None)
        return tree

    @property
    def id_kind(self) -> IdKind:
        return self.ids or ("vocabulary" if self.rows <= VOCABULARY_UP_TO_ROWS else "hash")


class Keys(Config):
    """Columns that identify a row. All optional; `keep` columns travel unencoded into the predictions."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    impression: str | None = None
    sample_weight: str | None = None
    keep: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns that travel unencoded, without repetition: the keys, then `keep`."""
        named = (self.user, self.item, self.time, self.impression, *self.keep)
        return tuple(dict.fromkeys(name for name in named if name is not None))


class IdToken(Config):
    """One id per event of a sequence, looked up in a table."""

    table: str
    column: str = ""


class TimeGapToken(Config):
    """Time from each event to the impression in `buckets` powers of two of seconds; computed, never stored.

    24 buckets tell times apart up to 97 days; whatever is older shares the last one.
    """

    kind: Literal["time_gap"]
    buckets: int = Field(default=24, ge=2, le=64)
    dim: int = Field(default=8, ge=1, le=4096)
    column: str = ""


def _token_tag(spec: Any) -> str:
    kind = spec.get("kind", "id") if isinstance(spec, Mapping) else getattr(spec, "kind", "id")
    return str(kind)


Token = Annotated[
    Annotated[IdToken, Tag("id")] | Annotated[TimeGapToken, Tag("time_gap")],
    Discriminator(_token_tag),
]


class Sequence(Config):
    """Aligned lists, oldest event first; the newest `max_length` events are kept.

    `target` maps a token to the candidate's categorical feature of the same table, so that a model may compare them.
    """

    inlined: ClassVar[str | None] = "tokens"
    tokens: dict[str, Token]
    max_length: int = Field(default=50, ge=1, le=10_000)
    target: dict[str, str] = {}

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens_are_sections(cls, tokens: Any) -> Any:
        for name, spec in tokens.items():
            if not isinstance(spec, Mapping | Config):
                hint = (
                    nearest(name, ("max_length", "target"))
                    or "; known settings: max_length, target"
                )
                raise ValueError(
                    f"{name!r} is neither a setting{hint} nor a token such as {{ table = ... }}"
                )
        return tokens

    @model_validator(mode="before")
    @classmethod
    def _gather_tokens(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or "tokens" in tree:
            return tree
        settings = {key: tree[key] for key in ("max_length", "target") if key in tree}
        return settings | {
            "tokens": {key: item for key, item in tree.items() if key not in settings}
        }


class Task(Config):
    """What is predicted. `given` names the parent of a funnel step: p(this) = p(parent) * p(this | parent).

    A null label, or a `mask` column that is false, leaves the row out of the task's loss and metrics.
    """

    label: str
    kind: Literal["binary", "regression"] = "binary"
    given: str | None = None
    mask: str | None = None
