"""`pipeline.toml` as a checked plan: which columns come from where, before any row is read.

A row passes sources -> joins -> labels -> histories -> filters -> split.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from pipelines.convert import Unit
from pipelines.history import History
from pipelines.joins import Join
from pipelines.rules import Rule, check_rule
from pipelines.sources import Csv, Source
from pipelines.splits import HELD_OUT, Split, check_name, check_shares
from recsys.config import Config, read_toml
from recsys.errors import ConfigError, nearest
from recsys.publish import canonical_json
from recsys.schema import ARROW_TYPES, Schema, load_schema


class Days(Config):
    """UTC days, both ends included."""

    from_: date = Field(alias="from")
    to: date

    @field_validator("from_", "to", mode="before")
    @classmethod
    def _is_day(cls, value: Any) -> Any:
        return date.fromisoformat(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _runs_forward(self) -> Self:
        if self.to < self.from_:
            raise ValueError(
                f"days run from {self.from_} to {self.to}, which is backwards; swap them"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            (self.from_ + timedelta(days=n)).isoformat()
            for n in range((self.to - self.from_).days + 1)
        )


class Pipeline(Config):
    """The whole of `pipeline.toml`."""

    schema_file: str
    fit_on: tuple[str, ...] | Days | None = None
    source: Source | None = None
    sources: tuple[Source, ...] = ()
    csv: Csv = Csv()
    timestamps: dict[str, Unit] = {}
    joins: tuple[Join, ...] = ()
    labels: dict[str, Rule] = {}
    filters: tuple[Rule, ...] = ()
    histories: dict[str, History] = {}
    split: Split

    @field_validator("fit_on", mode="before")
    @classmethod
    def _days_or_splits(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, Mapping):
            if set(value) != {"from", "to"}:
                raise ValueError('days are written { from = "2026-10-01", to = "2026-10-12" }')
            return Days(**value)
        if not isinstance(value, tuple | Days | None):
            raise ValueError(
                f'give split names such as ["train"], or days {{ from = ..., to = ... }}, found {value!r}'
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.source is None) == (not self.sources):
            raise ValueError("give one [source], or several [[sources]]")
        for number, source in enumerate(self.all_sources, start=1):
            if (source.split is not None) != (self.split.by == "file"):
                raise ValueError(
                    f'source {number}: split = ... is needed with [split] by = "file", and only then; '
                    f"found by = {self.split.by!r}"
                )
            if isinstance(source.split, str):
                check_name(source.split)
            elif source.split is not None:
                check_shares(source.split)
        if self.fit_on is None and self.split.by == "time":
            raise ValueError(
                'fit_on is missing; say the training days: fit_on = { from = "2026-10-01", to = "2026-10-12" }'
            )
        return self

    @property
    def all_sources(self) -> tuple[Source, ...]:
        return self.sources if self.source is None else (self.source,)


@dataclass(frozen=True)
class Plan:
    """A pipeline file held against its schema."""

    path: Path
    settings: Pipeline
    schema: Schema

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Columns that files have to provide, in a fixed order: those that are neither labels nor histories."""
        made = {*self.settings.labels, *self.history_columns}
        wanted = [*self.schema.columns, *self._rule_columns(), *self._history_inputs()]
        wanted += [self.settings.split.column] if self.settings.split.column else []
        return tuple(dict.fromkeys(name for name in wanted if name not in made))

    @property
    def history_columns(self) -> tuple[str, ...]:
        return tuple(
            name for history in self.settings.histories.values() for name in history.tokens
        )

    def user_of(self, history: History) -> str:
        name = history.user or self.schema.keys.user
        assert name is not None, "checked when the plan was made"
        return name

    def time_of(self, history: History) -> str:
        name = history.time or self.schema.keys.time
        assert name is not None, "checked when the plan was made"
        return name

    def fits_on(self, name: str) -> bool:
        """Whether the rows of a day or split fit the encoder."""
        fit_on = self.settings.fit_on
        if fit_on is None:
            return name not in HELD_OUT
        return name in (fit_on.names if isinstance(fit_on, Days) else fit_on)

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 over the rules that make the columns of the tasks: rows labelled otherwise do not mix with these."""
        named = {
            column for task in self.schema.tasks.values() for column in (task.label, task.mask)
        }
        rules = {
            name: rule.model_dump(mode="json")
            for name, rule in self.settings.labels.items()
            if name in named
        }
        return hashlib.sha256(canonical_json(rules)).hexdigest()

    @cached_property
    def rules_digest(self) -> str:
        """SHA-256 over what changes the content of rows, paths left out: reading, joins, labels, histories, filters."""
        names = ("csv", "timestamps", "joins", "labels", "filters", "histories")
        tree = self.settings.model_dump(mode="json", include=set(names))
        tree["sources"] = [
            source.model_dump(mode="json", include={"csv", "rename"})
            for source in self.settings.all_sources
        ]
        for join in tree["joins"]:
            del join["path"]
        return hashlib.sha256(canonical_json(tree)).hexdigest()

    def _rule_columns(self) -> Iterator[str]:
        settings = self.settings
        for rule in [*settings.labels.values(), *settings.filters, *settings.split.rules.values()]:
            yield rule.column
        for history in self.settings.histories.values():
            yield from (rule.column for rule in history.where)

    def _history_inputs(self) -> Iterator[str]:
        for history in self.settings.histories.values():
            yield from (self.user_of(history), self.time_of(history), *history.tokens.values())


def load_plan(path: Path) -> Plan:
    """The plan that a pipeline file states. Raises ConfigError naming the file, the key and what to do."""
    settings = Pipeline.parse(read_toml(path), where=str(path))
    plan = Plan(path, settings, load_schema(path.parent / settings.schema_file))
    for problem in _problems(plan):
        raise ConfigError(f"{path}: {problem}")
    _check_rules(plan)
    return plan


def _problems(plan: Plan) -> Iterator[str]:
    settings, columns = plan.settings, plan.schema.columns
    if settings.split.by == "time" and plan.schema.keys.time is None:
        yield 'split by = "time" needs keys.time in the schema; name the time column there, or split by hash or file'
    for name in settings.timestamps:
        if "timestamp" not in columns.get(name, ""):
            yield f"timestamps.{name}: the schema's [columns] declare no such timestamp{nearest(name, columns)}"
    for name in settings.labels:
        dtype = columns.get(name, "bool")
        if dtype in ("string", "timestamp") or dtype.startswith("list"):
            yield f"labels.{name}: the schema declares it as {dtype}; a label is a bool or a number"
    for number, join in enumerate(settings.joins):
        if join.count is not None and not _counts(columns.get(join.count, "int64")):
            found = columns[join.count]
            yield f"joins[{number}].count: the schema declares {join.count!r} as {found}; a count is a number"
    for name, history in settings.histories.items():
        yield from _history_problems(plan, f"histories.{name}", history)
    yield from _order_problems(settings, plan.history_columns)


def _history_problems(plan: Plan, where: str, history: History) -> Iterator[str]:
    columns, keys = plan.schema.columns, plan.schema.keys
    if history.user is None and keys.user is None:
        yield f"{where}: user is missing, and the schema has no keys.user; name the column"
    time = history.time or keys.time
    if time is None:
        yield f"{where}: time is missing, and the schema has no keys.time; name the column"
    elif columns.get(time) != "timestamp":
        yield f"{where}: time column {time!r} must be declared as a timestamp in the schema"
    for made, event in history.tokens.items():
        dtype = columns.get(made)
        if dtype is None or not dtype.startswith("list"):
            yield (
                f"{where}.tokens: {made!r} must be a list column of the schema{nearest(made, columns)}, "
                f"found {dtype or 'none'}"
            )
        elif event not in columns:
            yield f"{where}.tokens: event column {event!r} is no column of the schema{nearest(event, columns)}"
        elif not _holds(dtype, columns[event]):
            yield f"{where}.tokens: {made!r} is {dtype}, event column {event!r} is {columns[event]}; make them agree"


def _counts(dtype: str) -> bool:
    found = ARROW_TYPES[dtype]
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _holds(listed: str, scalar: str) -> bool:
    value_type, found = ARROW_TYPES[listed].value_type, ARROW_TYPES[scalar]
    if pa.types.is_integer(value_type):
        return bool(pa.types.is_integer(found) or pa.types.is_boolean(found))
    return bool(found == value_type)


def _order_problems(settings: Pipeline, history_columns: Iterable[str]) -> Iterator[str]:
    """A label may use what stands before it; a history is made once, of what rows bring along."""
    made = set(history_columns)
    if len(made) < len(tuple(history_columns)):
        yield "histories: two of them make the same column; give each its own"
    later = dict.fromkeys(settings.labels)
    for name, rule in settings.labels.items():
        if rule.column in later:
            yield f"labels.{name} is made of label {rule.column!r}, which stands at or below it; move that one up"
        del later[name]
    for where, column in _uses(settings):
        if column in made:
            yield f"{where} names column {column!r}, which a history makes; rules take columns of the rows themselves"


def _uses(settings: Pipeline) -> Iterator[tuple[str, str]]:
    for name, rule in settings.labels.items():
        yield f"labels.{name}", rule.column
    for name, history in settings.histories.items():
        yield from ((f"histories.{name}.where", rule.column) for rule in history.where)
        yield from ((f"histories.{name}.tokens", column) for column in history.tokens.values())


def _check_rules(plan: Plan) -> None:
    """Hold rules against the types that are known already; those of undeclared columns are met when rows are read."""
    settings = plan.settings
    types: Mapping[str, pa.DataType] = {name: pa.bool_() for name in settings.labels} | {
        name: ARROW_TYPES[dtype] for name, dtype in plan.schema.columns.items()
    }
    located = [(f"labels.{name}", rule) for name, rule in settings.labels.items()]
    located += [(f"filters[{number}]", rule) for number, rule in enumerate(settings.filters)]
    located += [(f"split.rules.{name}", rule) for name, rule in settings.split.rules.items()]
    for number, join in enumerate(settings.joins):
        located += [(f"joins[{number}].where", rule) for rule in join.where]
    for name, history in settings.histories.items():
        located += [(f"histories.{name}.where", rule) for rule in history.where]
    for where, rule in located:
        if rule.column in types:
            check_rule(rule, types[rule.column], f"{plan.path}: {where}")
