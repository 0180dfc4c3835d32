"""What a row may know of the other rows, as `pipeline.toml` states it: histories, counters and attributed labels.

All three look at events, which are rows of the sources themselves, in the order of time. A history and a counter see
what lies strictly before the row, so that nothing a server could not know gets in; a label sees what comes after it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipelines.rules import Rule
from pipelines.timeline import is_id
from recsys.config import Config
from recsys.errors import nearest
from recsys.schema import ARROW_TYPES, Schema

_YEARS_SECONDS = 100 * 366 * 86_400


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, Mapping | str) else value


Rules = Annotated[tuple[Rule, ...], BeforeValidator(_several)]
Names = Annotated[tuple[str, ...], BeforeValidator(_several)]


class History(Config):
    """The last `max_length` earlier events of a row's user. `tokens`: list column of the schema <- column of events."""

    user: str | None = None
    time: str | None = None
    where: Rules = ()
    max_length: int = Field(default=50, ge=1, le=10_000)
    tokens: dict[str, str] = Field(min_length=1)


class Counter(Config):
    """How many earlier events have the row's values of `by` (default: its user); `window_seconds` limits how early."""

    by: Names = ()
    where: Rules = ()
    window_seconds: int | None = Field(default=None, ge=1, le=_YEARS_SECONDS)


class Attribution(Config):
    """A label: whether an `event` with the `same` values happens at the row's time or up to `within_seconds` later."""

    event: Rules = Field(min_length=1)
    same: Names = Field(min_length=1)
    within_seconds: int = Field(ge=1, le=_YEARS_SECONDS)

    @property
    def made_of(self) -> tuple[str, ...]:
        """The columns that decide the answer."""
        return tuple(rule.column for rule in self.event)


def _kind(label: Any) -> str:
    fields = (
        label if isinstance(label, Mapping) else vars(label) if isinstance(label, Config) else {}
    )
    return "Attribution" if fields.keys() & Attribution.model_fields.keys() else "Rule"


EventSection = History | Counter | Attribution
Label = Annotated[
    Annotated[Rule, Tag("Rule")] | Annotated[Attribution, Tag("Attribution")], Discriminator(_kind)
]


@dataclass(frozen=True)
class Events:
    """Which rows are events, whose they are, when they happened, and what they carry (`tokens`: made <- column)."""

    where: tuple[Rule, ...]
    by: tuple[str, ...]
    time: str
    tokens: tuple[tuple[str, str], ...] = ()


def events_of(section: EventSection, schema: Schema) -> Events:
    """The events that a section looks at; it must be one without `problems`."""
    user, time = schema.keys.user or "", schema.keys.time or ""
    match section:
        case History():
            by, tokens = (section.user or user,), tuple(section.tokens.items())
            return Events(section.where, by, section.time or time, tokens)
        case Counter():
            return Events(section.where, section.by or (user,), time)
        case Attribution():
            return Events(section.event, section.same, time)


def problems(path: str, section: EventSection, schema: Schema) -> Iterator[str]:
    """What is wrong with a section, as far as the schema tells: a sentence each."""
    match section:
        case History():
            yield from _key_problems(path, "user", (section.user,), schema)
            yield from _token_problems(path, section, schema)
        case Counter():
            yield from _key_problems(path, "by", section.by or (None,), schema)
            yield from _counter_problems(path, schema)
        case Attribution():
            yield from _key_problems(path, "same", section.same, schema)
    time = (section.time if isinstance(section, History) else None) or schema.keys.time
    if time is None:
        hint = "name the column" if isinstance(section, History) else "name the column there"
        yield f"{path}: time is missing, and the schema has no keys.time; {hint}"
    elif schema.columns.get(time) != "timestamp":
        yield f"{path}: time column {time!r} must be declared as a timestamp in the schema"


def _key_problems(
    path: str, setting: str, names: tuple[str | None, ...], schema: Schema
) -> Iterator[str]:
    for name in names:
        if name is None and schema.keys.user is None:
            yield f"{path}: {setting} is missing, and the schema has no keys.user; name the column"
        dtype = schema.columns.get(name or schema.keys.user or "")
        if dtype is not None and not is_id(ARROW_TYPES[dtype]):
            yield (
                f"{path}: column {name or schema.keys.user!r} is {dtype}, and rows are told apart by text, integers, "
                "booleans or timestamps; name another, or declare it as one of these"
            )


def _counter_problems(path: str, schema: Schema) -> Iterator[str]:
    name = path.partition(".")[2]
    dtype = schema.columns.get(name)
    if dtype != "int64":
        found = "it is not declared" if dtype is None else f"found {dtype}"
        hint = nearest(name, schema.columns) if dtype is None else ""
        yield (
            f"{path}: a counter makes the column of its name, which the schema must declare as int64; "
            f'{found}{hint}; write {name} = "int64" under [columns]'
        )


def _token_problems(path: str, history: History, schema: Schema) -> Iterator[str]:
    columns = schema.columns
    for made, event in history.tokens.items():
        dtype = columns.get(made)
        if dtype is None or not dtype.startswith("list"):
            yield (
                f"{path}.tokens: {made!r} must be a list column of the schema, which "
                + (
                    f"has it as {dtype}"
                    if dtype
                    else f"does not declare it{nearest(made, columns)}"
                )
            )
        elif event not in columns:
            yield f"{path}.tokens: event column {event!r} is no column of the schema{nearest(event, columns)}"
        elif not _holds(dtype, columns[event]):
            yield f"{path}.tokens: {made!r} is {dtype}, event column {event!r} is {columns[event]}; make them agree"


def _holds(listed: str, scalar: str) -> bool:
    value_type, found = ARROW_TYPES[listed].value_type, ARROW_TYPES[scalar]
    if pa.types.is_integer(value_type):
        return bool(pa.types.is_integer(found) or pa.types.is_boolean(found))
    return bool(found == value_type)
