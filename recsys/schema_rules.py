"""What a schema may not say: references to what is not declared, types that do not fit, labels among the inputs.

Each rule yields a sentence that names the key, what was found and, for an unknown name, the nearest known one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import pyarrow as pa

from recsys.errors import nearest
from recsys.schema_sections import (
    ARROW_TYPES,
    BucketFeature,
    CategoricalFeature,
    Feature,
    IdToken,
    Keys,
    MultiValuedFeature,
    Sequence,
    Table,
    Task,
    TimeGapToken,
)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_INTEGERS = ("bool", "int8", "int16", "int32", "int64")
_NUMBERS = (*_INTEGERS, "float32", "float64")
_IDS = (*_INTEGERS, "string")
_ID_LISTS = ("list<int64>", "list<string>")


class Sections(Protocol):
    """The sections of a schema, by name."""

    @property
    def columns(self) -> Mapping[str, str]: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def tables(self) -> Mapping[str, Table]: ...
    @property
    def features(self) -> Mapping[str, Feature]: ...
    @property
    def sequences(self) -> Mapping[str, Sequence]: ...
    @property
    def tasks(self) -> Mapping[str, Task]: ...


def problems(schema: Sections) -> Iterator[str]:
    """One sentence for each thing that is wrong, in the order in which they are looked for."""
    yield from _name_problems(schema)
    yield from _key_problems(schema)
    yield from _feature_problems(schema)
    yield from _sequence_problems(schema)
    yield from _table_problems(schema)
    yield from _task_problems(schema)


def _name_problems(schema: Sections) -> Iterator[str]:
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
    schema: Sections, column: str, where: str, dtypes: tuple[str, ...]
) -> Iterator[str]:
    found = schema.columns.get(column)
    if found is None:
        yield f"{where} names column {column!r}, which [columns] does not declare{nearest(column, schema.columns)}"
    elif found not in dtypes:
        yield f"{where} needs column {column!r} to be one of {', '.join(dtypes)}, found {found}"


def _key_problems(schema: Sections) -> Iterator[str]:
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


def _feature_problems(schema: Sections) -> Iterator[str]:
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
            yield _unknown_table(schema, item.table, where)
        if isinstance(item, BucketFeature) and name in schema.tables:
            yield f"{where}: a bucket feature brings its own table, and [tables] declares {name!r} too; rename one"
        if item.value is not None:
            yield from _value_problem(schema, item.column, item.value, where)


def _unknown_table(schema: Sections, table: str, where: str) -> str:
    return f"{where} names table {table!r}, which [tables] does not declare{nearest(table, schema.tables)}"


def _value_problem(
    schema: Sections, column: str, value: bool | int | float | str, where: str
) -> Iterator[str]:
    try:
        pa.scalar(value, ARROW_TYPES[schema.columns[column]])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        yield f"{where}: value {value!r} does not fit column {column!r} of type {schema.columns[column]}"


def _sequence_problems(schema: Sections) -> Iterator[str]:
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
                yield _unknown_table(schema, spec.table, f"{where}.{token}")
        for token, feature in sequence.target.items():
            yield from _target_problem(schema, sequence, token, feature, f"{where}.target.{token}")


def _target_problem(
    schema: Sections, sequence: Sequence, token: str, feature: str, where: str
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


def _table_problems(schema: Sections) -> Iterator[str]:
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


def _table_columns(schema: Sections) -> Iterator[tuple[str, str]]:
    for item in schema.features.values():
        if isinstance(item, CategoricalFeature | MultiValuedFeature):
            yield item.table, item.column
    for sequence in schema.sequences.values():
        for spec in sequence.tokens.values():
            if isinstance(spec, IdToken):
                yield spec.table, spec.column


def _task_problems(schema: Sections) -> Iterator[str]:
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


def _ancestors(schema: Sections, name: str) -> set[str]:
    found: set[str] = set()
    task = schema.tasks.get(name)
    while task is not None and task.given is not None and task.given not in found:
        found.add(task.given)
        task = schema.tasks.get(task.given)
    return found
