"""What the data is: raw columns, keys, tables, features, sequences and tasks, as `schema.toml` states them.

Everything else is derived from here: the Arrow schemas of raw and encoded rows, the order of sparse slots and dense
values, the wire types of the server and the input widths of a model. `recsys.layout` holds those derivations.

Row 0 of every table means "missing", row 1 "unknown".
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from recsys.config import Config, read_toml
from recsys.errors import nearest
from recsys.publish import canonical_json

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
ARROW_TYPES: dict[str, pa.DataType] = _SCALARS | {
    f"list<{name}>": pa.list_(_SCALARS[name]) for name in _LISTED
}

_INTEGERS = ("bool", "int8", "int16", "int32", "int64")
_NUMBERS = (*_INTEGERS, "float32", "float64")
_IDS = (*_INTEGERS, "string")
_ID_LISTS = ("list<int64>", "list<string>")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

Side = Literal["user", "context", "candidate"]
IdKind = Literal["vocabulary", "hash"]


class Table(Config):
    """An embedding table: `rows` includes the two reserved rows, `dim` is the embedding width K.

    `ids` says how a raw value becomes a row: a fitted `vocabulary` (values seen at least `min_count` times; the rest
    are unknown) or a seeded `hash`. Without it, tables of up to 200 000 rows take the vocabulary.
    """

    rows: int = Field(ge=3, le=2**40)
    dim: int = Field(default=16, ge=1, le=4096)
    ids: IdKind | None = None
    min_count: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

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


class _Feature(Config):
    """What every feature may say. A `fixed` feature is trained as given and is the constant `value` in the server."""

    column: str = ""
    side: Side = "candidate"
    serve: Literal["request", "fixed"] = "request"
    value: bool | int | float | str | None = None

    @model_validator(mode="after")
    def _fixed_has_value(self) -> Self:
        if (self.serve == "fixed") != (self.value is not None):
            raise ValueError(
                'serve = "fixed" and value = ... belong together; give both or neither'
            )
        return self


class CategoricalFeature(_Feature):
    """One id a row, looked up in a table."""

    kind: Literal["categorical"]
    table: str


class MultiValuedFeature(_Feature):
    """A bag of ids a row, pooled. Null and the empty list are both the empty bag, whose vector is zero."""

    kind: Literal["multi_valued"]
    table: str
    pooling: Literal["mean", "sum"] = "mean"


class NumericFeature(_Feature):
    """One dense number: signed log1p if asked, z-score over the training rows, clipped. Null becomes the mean, 0."""

    kind: Literal["numeric"]
    transform: Literal["none", "log1p"] = "none"
    normalize: Literal["zscore", "none"] = "zscore"
    clip: float | None = Field(default=5.0, gt=0)


class BucketFeature(_Feature):
    """A number cut at the training rows' quantiles, looked up in a table of the feature's own name."""

    kind: Literal["bucket"]
    buckets: int = Field(default=32, ge=2, le=65_536)
    dim: int = Field(default=8, ge=1, le=4096)


Feature = Annotated[
    CategoricalFeature | MultiValuedFeature | NumericFeature | BucketFeature,
    Field(discriminator="kind"),
]


class IdToken(Config):
    """One id per event of a sequence, looked up in a table."""

    table: str
    column: str = ""


class TimeGapToken(Config):
    """Time from each event to the impression in `buckets` powers of two of seconds; computed, never stored."""

    kind: Literal["time_gap"]
    buckets: int = Field(default=16, ge=2, le=64)
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
    """What is predicted. `given` makes it conditional on a parent task (a funnel step: p = p(parent) * p(this | parent)).

    A null label, or a `mask` column that is false, leaves the row out of the task's loss and metrics.
    """

    label: str
    kind: Literal["binary", "regression"] = "binary"
    given: str | None = None
    mask: str | None = None


class Schema(Config):
    """The whole of `schema.toml`. Digests and Arrow schemas are derived; nothing else describes the data."""

    columns: dict[str, str]
    keys: Keys = Keys()
    tables: dict[str, Table] = {}
    features: dict[str, Feature]
    sequences: dict[str, Sequence] = {}
    tasks: dict[str, Task]

    @field_validator("columns")
    @classmethod
    def _known_dtypes(cls, columns: dict[str, str]) -> dict[str, str]:
        for name, dtype in columns.items():
            if dtype not in ARROW_TYPES:
                raise ValueError(
                    f"column {name!r} has unknown dtype {dtype!r}{nearest(dtype, ARROW_TYPES)}; "
                    f"known: {', '.join(ARROW_TYPES)}"
                )
        return columns

    @field_validator("features")
    @classmethod
    def _name_feature_columns(cls, features: dict[str, Any]) -> dict[str, Any]:
        return {
            name: item.model_copy(update={"column": item.column or name})
            for name, item in features.items()
        }

    @field_validator("sequences")
    @classmethod
    def _name_token_columns(
        cls, sequences: dict[str, Sequence], _: ValidationInfo
    ) -> dict[str, Sequence]:
        return {
            name: sequence.model_copy(
                update={
                    "tokens": {
                        token: spec.model_copy(update={"column": spec.column or f"{name}_{token}"})
                        for token, spec in sequence.tokens.items()
                    }
                }
            )
            for name, sequence in sequences.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = next(iter(_problems(self)), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    @cached_property
    def all_tables(self) -> dict[str, Table]:
        """Declared tables, then those that bucket features and time gaps bring along."""
        implicit = {
            name: Table(rows=item.buckets + RESERVED_ROWS, dim=item.dim)
            for name, item in self.features.items()
            if isinstance(item, BucketFeature)
        }
        for sequence_name, sequence in self.sequences.items():
            for token, spec in sequence.tokens.items():
                if isinstance(spec, TimeGapToken):
                    implicit[f"{sequence_name}.{token}"] = Table(
                        rows=spec.buckets + RESERVED_ROWS, dim=spec.dim
                    )
        return dict(self.tables) | implicit

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 over everything that changes encoded rows: dtypes, kinds, transforms, table rows and seeds, labels.

        Widths, sides, targets, pooling and the funnel are left out: tuning them must not invalidate data.
        """
        tree = self.model_dump(mode="json")
        for table in tree["tables"].values():
            del table["dim"]
        for feature in tree["features"].values():
            for key in ("side", "serve", "value", "dim", "pooling"):
                feature.pop(key, None)
        for sequence in tree["sequences"].values():
            del sequence["target"]
            for token in sequence["tokens"].values():
                token.pop("dim", None)
        for task in tree["tasks"].values():
            del task["given"]
        return hashlib.sha256(canonical_json(tree)).hexdigest()

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 over the whole schema, order included: what a checkpoint or bundle was made for."""
        # Order is kept (no sorted keys): it decides the layout of a model's inputs.
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def raw_arrow(self, *, labels: bool) -> pa.Schema:
        """Arrow schema of raw rows: all declared columns, or, without labels, just those that a request carries."""
        names: Iterable[str] = self.columns if labels else self.request_columns
        return pa.schema([pa.field(name, ARROW_TYPES[self.columns[name]]) for name in names])

    @cached_property
    def request_columns(self) -> tuple[str, ...]:
        """Raw columns that a served row needs: those of features that are not fixed, of tokens, and the time for gaps."""
        names = [item.column for item in self.features.values() if item.serve == "request"]
        gaps = False
        for sequence in self.sequences.values():
            names += [spec.column for spec in sequence.tokens.values()]
            gaps = gaps or any(isinstance(spec, TimeGapToken) for spec in sequence.tokens.values())
        if gaps and self.keys.time is not None:
            names.append(self.keys.time)
        return tuple(dict.fromkeys(names))

    def to_json(self) -> str:
        """The schema as JSON in declaration order; `parse_schema` reads it back to an equal schema."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))


def load_schema(path: Path) -> Schema:
    """The schema that a `schema.toml` states. Raises ConfigError naming file, key, what was found and what to do."""
    return Schema.parse(read_toml(path), where=str(path))


def parse_schema(text: str, *, where: str) -> Schema:
    """The schema of a JSON text written by `Schema.to_json`."""
    return Schema.parse(json.loads(text), where=where)


def _problems(schema: Schema) -> Iterator[str]:
    yield from _name_problems(schema)
    yield from _key_problems(schema)
    yield from _feature_problems(schema)
    yield from _sequence_problems(schema)
    yield from _table_problems(schema)
    yield from _task_problems(schema)


def _name_problems(schema: Schema) -> Iterator[str]:
    sections: dict[str, Iterable[str]] = {
        "tables": schema.tables,
        "features": schema.features,
        "sequences": schema.sequences,
        "tasks": schema.tasks,
    }
    sections |= {
        f"sequences.{name}": sequence.tokens for name, sequence in schema.sequences.items()
    }
    for section, items in sections.items():
        for name in items:
            if not _NAME.fullmatch(name):
                yield f"{section}: name {name!r} must be a letter followed by letters, digits, '_' or '-' (64 at most)"
    for name in schema.sequences:
        if name in schema.features:
            yield f"sequences.{name}: a feature has this name too; rename one"


def _column_problem(
    schema: Schema, column: str, where: str, dtypes: tuple[str, ...]
) -> Iterator[str]:
    found = schema.columns.get(column)
    if found is None:
        yield f"{where} names column {column!r}, which [columns] does not declare{nearest(column, schema.columns)}"
    elif found not in dtypes:
        yield f"{where} needs column {column!r} to be one of {', '.join(dtypes)}, found {found}"


def _key_problems(schema: Schema) -> Iterator[str]:
    keys = schema.keys
    for name, dtypes in {
        "user": _IDS,
        "item": _IDS,
        "impression": _IDS,
        "time": ("timestamp",),
    }.items():
        column = getattr(keys, name)
        if column is not None:
            yield from _column_problem(schema, column, f"keys.{name}", dtypes)
    if keys.sample_weight is not None:
        yield from _column_problem(schema, keys.sample_weight, "keys.sample_weight", _NUMBERS)
    for column in keys.keep:
        yield from _column_problem(schema, column, "keys.keep", tuple(ARROW_TYPES))


def _feature_problems(schema: Schema) -> Iterator[str]:
    if not schema.features and not schema.sequences:
        yield "features: none declared; a model needs at least one input"
    labels = {task.label: name for name, task in schema.tasks.items()}
    for name, item in schema.features.items():
        where = f"features.{name}"
        if item.column in labels:
            yield f"{where} reads column {item.column!r}, the label of task {labels[item.column]!r}; remove the leak"
        dtypes = {"categorical": _IDS, "multi_valued": _ID_LISTS}.get(item.kind, _NUMBERS)
        yield from _column_problem(schema, item.column, where, dtypes)
        if (
            isinstance(item, CategoricalFeature | MultiValuedFeature)
            and item.table not in schema.tables
        ):
            yield f"{where} names table {item.table!r}, which [tables] does not declare{nearest(item.table, schema.tables)}"
        if isinstance(item, BucketFeature) and name in schema.tables:
            yield f"{where}: a bucket feature brings its own table, and [tables] declares {name!r} too; rename one"
        if item.value is not None:
            yield from _value_problem(schema, item.column, item.value, where)


def _value_problem(
    schema: Schema, column: str, value: bool | int | float | str, where: str
) -> Iterator[str]:
    try:
        pa.scalar(value, ARROW_TYPES[schema.columns[column]])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        yield f"{where}: value {value!r} does not fit column {column!r} of type {schema.columns[column]}"


def _sequence_problems(schema: Schema) -> Iterator[str]:
    for name, sequence in schema.sequences.items():
        where = f"sequences.{name}"
        if not sequence.tokens:
            yield f"{where} has no tokens; add one such as item = {{ table = ... }}"
        for token, spec in sequence.tokens.items():
            if isinstance(spec, TimeGapToken):
                yield from _column_problem(
                    schema, spec.column, f"{where}.{token}", ("list<timestamp>",)
                )
                if schema.keys.time is None:
                    yield f"{where}.{token} is a time gap, so [keys] must name the impression's time column"
                continue
            yield from _column_problem(schema, spec.column, f"{where}.{token}", _ID_LISTS)
            if spec.table not in schema.tables:
                yield f"{where}.{token} names table {spec.table!r}, which [tables] does not declare{nearest(spec.table, schema.tables)}"
        for token, feature in sequence.target.items():
            yield from _target_problem(schema, sequence, token, feature, f"{where}.target.{token}")


def _target_problem(
    schema: Schema, sequence: Sequence, token: str, feature: str, where: str
) -> Iterator[str]:
    spec, item = sequence.tokens.get(token), schema.features.get(feature)
    if not isinstance(spec, IdToken):
        yield f"{where}: no id token of that name{nearest(token, sequence.tokens)}"
    elif (
        not isinstance(item, CategoricalFeature)
        or item.table != spec.table
        or item.side != "candidate"
    ):
        yield f"{where} needs a candidate-side categorical feature of table {spec.table!r}, found {feature!r}"


def _table_problems(schema: Schema) -> Iterator[str]:
    families: dict[str, tuple[str, str]] = {}
    for table, column in _table_columns(schema):
        family = "string" if "string" in schema.columns.get(column, "") else "integer"
        first_family, first_column = families.setdefault(table, (family, column))
        if family != first_family:
            yield (
                f"tables.{table} is read by column {first_column!r} ({first_family}) and column {column!r} ({family}); "
                "give each type a table of its own or declare the same dtype"
            )
    for name in schema.tables:
        if name not in families:
            yield f"tables.{name} is read by no feature and no sequence; remove it"


def _table_columns(schema: Schema) -> Iterator[tuple[str, str]]:
    for item in schema.features.values():
        if isinstance(item, CategoricalFeature | MultiValuedFeature):
            yield item.table, item.column
    for sequence in schema.sequences.values():
        for spec in sequence.tokens.values():
            if isinstance(spec, IdToken):
                yield spec.table, spec.column


def _task_problems(schema: Schema) -> Iterator[str]:
    if not schema.tasks:
        yield "tasks: none declared; say what to predict, such as click = { label = 'clicked' }"
    for name, task in schema.tasks.items():
        where = f"tasks.{name}"
        yield from _column_problem(schema, task.label, where, _NUMBERS)
        if task.mask is not None:
            yield from _column_problem(schema, task.mask, f"{where}.mask", _INTEGERS)
        if task.given is None:
            continue
        parent = schema.tasks.get(task.given)
        if parent is None:
            yield f"{where}.given names task {task.given!r}, which is not declared{nearest(task.given, schema.tasks)}"
        elif "regression" in (task.kind, parent.kind):
            yield f"{where}.given: both tasks of a funnel step must be binary"
        elif name in _ancestors(schema, name):
            yield f"{where}.given: the funnel runs in a circle"


def _ancestors(schema: Schema, name: str) -> set[str]:
    found: set[str] = set()
    task = schema.tasks.get(name)
    while task is not None and task.given is not None and task.given not in found:
        found.add(task.given)
        task = schema.tasks.get(task.given)
    return found
