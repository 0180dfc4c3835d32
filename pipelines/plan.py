"""`pipeline.toml` as a checked plan: which columns come from where, before any row is read.

A row passes sources -> joins -> labels -> histories and counters -> filters -> split.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import model_validator

from pipelines.history import Attribution, Counter, Events, EventSection, History, Label, events_of
from pipelines.history import problems as event_problems
from pipelines.joins import Join
from pipelines.rules import Rule, check_rule
from pipelines.sources import Csv, Source
from pipelines.splits import HELD_OUT, Split, check_name, check_shares
from pipelines.times import TimeForm
from recsys.config import Config, read_toml
from recsys.day_names import DayNames, names_in
from recsys.errors import ConfigError, nearest
from recsys.publish import canonical_json
from recsys.schema import ARROW_TYPES, Schema, load_schema


class Pipeline(Config):
    """The whole of `pipeline.toml`."""

    schema_file: str
    fit_on: DayNames | None = None
    source: Source | None = None
    sources: tuple[Source, ...] = ()
    csv: Csv = Csv()
    timestamps: dict[str, TimeForm] = {}
    joins: tuple[Join, ...] = ()
    labels: dict[str, Label] = {}
    filters: tuple[Rule, ...] = ()
    histories: dict[str, History] = {}
    counters: dict[str, Counter] = {}
    split: Split

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
        """Columns that files have to provide, in a fixed order: those that nothing in the pipeline makes."""
        made = {*self.settings.labels, *self.made_by_events}
        wanted = [*self.schema.columns, *self._rule_columns()]
        for events in self.events.values():
            wanted += [*events.by, events.time, *(column for _, column in events.tokens)]
        wanted += [self.settings.split.column] if self.settings.split.column else []
        return tuple(dict.fromkeys(name for name in wanted if name not in made))

    @cached_property
    def rule_labels(self) -> dict[str, Rule]:
        """Labels that a row's own columns decide."""
        labels = self.settings.labels
        return {name: label for name, label in labels.items() if isinstance(label, Rule)}

    @cached_property
    def event_sections(self) -> dict[str, EventSection]:
        """All that rows learn of other rows, by the path of the section that says so, such as `counters.views`."""
        settings = self.settings
        sections: dict[str, EventSection] = {}
        sections |= {f"histories.{name}": history for name, history in settings.histories.items()}
        sections |= {f"counters.{name}": counter for name, counter in settings.counters.items()}
        for name, label in settings.labels.items():
            if isinstance(label, Attribution):
                sections[f"labels.{name}"] = label
        return sections

    @cached_property
    def events(self) -> dict[str, Events]:
        """The events that each of `event_sections` looks at."""
        sections = self.event_sections.items()
        return {path: events_of(section, self.schema) for path, section in sections}

    @cached_property
    def made_by_events(self) -> dict[str, str]:
        """Columns that rows get from other rows, and the path of the section that makes each; the first, if several."""
        made: dict[str, str] = {}
        for column, path in _made_by_events(self.event_sections):
            made.setdefault(column, path)
        return made

    def fits_on(self, name: str) -> bool:
        """Whether the rows of a day or split fit the encoder."""
        fit_on = self.settings.fit_on
        if fit_on is None:
            return name not in HELD_OUT
        return name in names_in(fit_on)

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 over the rules that make the columns of the tasks: rows labelled otherwise do not mix with these."""
        wanted = [
            column for task in self.schema.tasks.values() for column in (task.label, task.mask)
        ]
        rules: dict[str, Any] = {}
        while wanted:
            name = wanted.pop()
            label = self.settings.labels.get(name or "")
            if name is not None and label is not None and name not in rules:
                rules[name] = label.model_dump(mode="json")
                wanted += label.made_of
        return hashlib.sha256(canonical_json(rules)).hexdigest()

    @cached_property
    def rules_digest(self) -> str:
        """SHA-256 over what changes the content of rows, paths left out: reading, joins, labels, events, filters."""
        names = ("csv", "timestamps", "joins", "labels", "filters", "histories", "counters")
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
        for label in settings.labels.values():
            yield from label.made_of
        for rule in [*settings.filters, *settings.split.rules.values()]:
            yield rule.column
        for events in self.events.values():
            yield from (rule.column for rule in events.where)


def load_plan(path: Path) -> Plan:
    """The plan that a pipeline file states. Raises ConfigError naming the file, the key and what to do."""
    settings = Pipeline.parse(read_toml(path), where=str(path))
    schema_file = path.parent / settings.schema_file
    if not schema_file.exists():
        raise ConfigError(f"{schema_file}: no such file; {path} names it as schema_file")
    plan = Plan(path, settings, load_schema(schema_file))
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
        if dtype != "bool" and not _is_number(dtype):
            yield f"labels.{name}: the schema declares it as {dtype}; a label is a bool or a number"
    for number, join in enumerate(settings.joins):
        if join.count is not None and not _is_number(columns.get(join.count, "int64")):
            found = columns[join.count]
            yield f"joins[{number}].count: the schema declares {join.count!r} as {found}; a count is a number"
    for path, section in plan.event_sections.items():
        yield from event_problems(path, section, plan.schema)
    yield from _order_problems(plan)


def _is_number(dtype: str) -> bool:
    found = ARROW_TYPES[dtype]
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _order_problems(plan: Plan) -> Iterator[str]:
    """A label may use what stands before it; what rows get from other rows is made once, of what they bring along."""
    made = plan.made_by_events
    for column, path in _made_by_events(plan.event_sections):
        other = f"labels.{column}" if column in plan.rule_labels else made[column]
        if other != path:
            yield f"{path} makes column {column!r}, as {other} does; give each its own"
    later = dict.fromkeys(plan.rule_labels)
    for name, rule in plan.rule_labels.items():
        if rule.column in later:
            yield f"labels.{name} is made of label {rule.column!r}, which stands at or below it; move that one up"
        del later[name]
    for where, column in _uses(plan):
        if column in made:
            yield (
                f"{where} names column {column!r}, which {made[column]} makes of other rows; "
                "name a column that the rows bring along"
            )


def _made_by_events(sections: Mapping[str, EventSection]) -> Iterator[tuple[str, str]]:
    for path, section in sections.items():
        names = section.tokens if isinstance(section, History) else (path.partition(".")[2],)
        yield from ((name, path) for name in names)


def _uses(plan: Plan) -> Iterator[tuple[str, str]]:
    """The columns that must be there before rows know of each other, and where they are named."""
    for name, rule in plan.rule_labels.items():
        yield f"labels.{name}", rule.column
    for path, events in plan.events.items():
        yield from ((path, rule.column) for rule in events.where)
        yield from ((path, column) for column in (*events.by, events.time))
        yield from ((f"{path}.tokens", column) for _, column in events.tokens)
    for number, rule in enumerate(plan.settings.filters):
        # A filter on an attributed label is one: it leaves out rows whose label nobody knows yet.
        if rule.column not in plan.settings.labels:
            yield f"filters[{number}]", rule.column


def _check_rules(plan: Plan) -> None:
    """Hold rules against the types that are known already; those of undeclared columns are met when rows are read."""
    settings = plan.settings
    types: Mapping[str, pa.DataType] = {name: pa.bool_() for name in settings.labels} | {
        name: ARROW_TYPES[dtype] for name, dtype in plan.schema.columns.items()
    }
    located = [(f"labels.{name}", rule) for name, rule in plan.rule_labels.items()]
    located += [(f"filters[{number}]", rule) for number, rule in enumerate(settings.filters)]
    located += [(f"split.rules.{name}", rule) for name, rule in settings.split.rules.items()]
    for number, join in enumerate(settings.joins):
        located += [(f"joins[{number}].where", rule) for rule in join.where]
    for path, events in plan.events.items():
        located += [(path, rule) for rule in events.where]
    for where, rule in located:
        if rule.column in types:
            check_rule(rule, types[rule.column], f"{plan.path}: {where}")
