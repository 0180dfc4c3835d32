"""What a schema may not say: references to what is not declared, types that do not fit, labels among the inputs.

Each rule yields a sentence that names the key, what was found and, for an unknown name, the nearest known one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from recsys.errors import nearest
from recsys.feature_rules import (
    ID_LISTS,
    IDS,
    INTEGERS,
    NUMBERS,
    column_problem,
    family,
    feature_problems,
    unknown_table,
)
from recsys.features import (
    BagFeature,
    CategoricalFeature,
    Feature,
    IdFeature,
    MultiValuedFeature,
)
from recsys.schema_sections import (
    ARROW_TYPES,
    UNBOUNDED,
    IdToken,
    Keys,
    Sequence,
    Table,
    Task,
    TimeGapToken,
)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


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


def _key_problems(schema: Sections) -> Iterator[str]:
    keys = schema.keys
    for name, dtypes in {
        "user": IDS,
        "item": IDS,
        "impression": IDS,
        "time": ("timestamp",),
    }.items():
        column = getattr(keys, name)
        if column is not None:
            yield from column_problem(schema.columns, column, f"keys.{name}", dtypes)
    if keys.sample_weight is not None:
        yield from column_problem(schema.columns, keys.sample_weight, "keys.sample_weight", NUMBERS)
    for column in keys.keep:
        yield from column_problem(schema.columns, column, "keys.keep", tuple(ARROW_TYPES))


def _feature_problems(schema: Sections) -> Iterator[str]:
    if not schema.features and not schema.sequences:
        yield "features: none declared; a model needs at least one input"
    labels = {task.label: name for name, task in schema.tasks.items()}
    for name, item in schema.features.items():
        for column in item.columns:
            if column in labels:
                yield (
                    f"features.{name} reads column {column!r}, the label of task {labels[column]!r}; remove the leak"
                )
        yield from feature_problems(name, item, schema.columns, schema.tables)


def _sequence_problems(schema: Sections) -> Iterator[str]:
    for name, sequence in schema.sequences.items():
        where = f"sequences.{name}"
        if not sequence.tokens:
            yield f"{where} has no tokens; add one such as item = {{ table = ... }}"
        for token, spec in sequence.tokens.items():
            if isinstance(spec, TimeGapToken):
                yield from column_problem(
                    schema.columns, spec.column, f"{where}.{token}", ("list<timestamp>",)
                )
                if schema.keys.time is None:
                    yield f"{where}.{token} is a time gap, so [keys] must name the impression's time column"
                continue
            yield from column_problem(schema.columns, spec.column, f"{where}.{token}", ID_LISTS)
            if spec.table not in schema.tables:
                yield unknown_table(schema.tables, spec.table, f"{where}.{token}")
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
    for table, reader, found in table_readers(schema):
        first_family, first_reader = families.setdefault(table, (found, reader))
        if found != first_family:
            yield (
                f"tables.{table} is read by {first_reader} ({first_family}) and {reader} ({found}); "
                "give each type a table of its own or declare the same dtype"
            )
    for name in schema.tables:
        if name not in families:
            yield f"tables.{name} is read by no feature and no sequence; remove it"
    for name, item in schema.tables.items():
        if item.eviction is not None and item.id_kind not in UNBOUNDED:
            yield (
                f"tables.{name}.eviction: its ids are a {item.id_kind}, of which none is ever evicted; "
                'say ids = "unbounded", or take eviction out'
            )
        if item.id_kind == "zch" and "min_count" in item.model_fields_set:
            yield (
                f'tables.{name}.min_count: with ids = "zch" TorchRec gives a row to every id that it meets; '
                'take min_count out, or say ids = "unbounded", which counts'
            )


def table_readers(schema: Sections) -> Iterator[tuple[str, str, str]]:
    """Table, what reads it, and the family of its ids: strings, integers, or hashes that a feature makes."""
    for name, item in schema.features.items():
        if isinstance(item, CategoricalFeature | MultiValuedFeature):
            dtype = schema.columns.get(item.column, "")
            yield item.table, f"column {item.column!r}", family(dtype)
        elif isinstance(item, IdFeature | BagFeature):
            yield item.table, f"feature {name!r}", "hashed"
    for sequence in schema.sequences.values():
        for spec in sequence.tokens.values():
            if isinstance(spec, IdToken):
                dtype = schema.columns.get(spec.column, "")
                yield spec.table, f"column {spec.column!r}", family(dtype)


def _task_problems(schema: Sections) -> Iterator[str]:
    if not schema.tasks:
        yield "tasks: none declared; say what to predict, such as click = { label = 'clicked' }"
    for name, task in schema.tasks.items():
        where = f"tasks.{name}"
        yield from column_problem(schema.columns, task.label, where, NUMBERS)
        if task.mask is not None:
            yield from column_problem(schema.columns, task.mask, f"{where}.mask", INTEGERS)
        if task.given is None:
            continue
        parent = schema.tasks.get(task.given)
        if parent is None:
            hint = nearest(task.given, schema.tasks) or "; declare it"
            yield f"{where}.given names task {task.given!r}, which is not declared{hint}"
        elif "regression" in (task.kind, parent.kind):
            yield f"{where}.given: both tasks of a funnel step must be binary, found a regression; take given out"
        elif name in _ancestors(schema, name):
            yield f"{where}.given: the funnel runs in a circle; take one given out"


def _ancestors(schema: Sections, name: str) -> set[str]:
    found: set[str] = set()
    task = schema.tasks.get(name)
    while task is not None and task.given is not None and task.given not in found:
        found.add(task.given)
        task = schema.tasks.get(task.given)
    return found
