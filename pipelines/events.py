"""The columns that rows get from other rows: all events gathered in one pass, then looked up batch by batch."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.history import Attribution, Counter, Events, EventSection, History
from pipelines.plan import Plan
from pipelines.rules import evaluate
from pipelines.timeline import EventLog, Moments, Timeline, is_id, moments
from recsys.errors import ConfigError
from recsys.raw import one_array
from recsys.schema import ARROW_TYPES, dtype_name

logger = logging.getLogger(__name__)

_SECOND = 1_000_000


@dataclass(frozen=True)
class EventIndex:
    """All events of a plan's files. `last_time` is the latest time of any row, in microseconds; None without one."""

    plan: Plan
    timelines: Mapping[Events, Timeline]
    last_time: int | None

    def add_columns(self, table: pa.Table) -> pa.Table:
        """The rows with their histories, counters and attributed labels."""
        batch = _Batch(self.plan, table)
        for path, section in self.plan.event_sections.items():
            rows, timeline = batch.moments(path), self.timelines[self.plan.events[path]]
            for name, values in self._columns(path, section, timeline, rows).items():
                table = table.append_column(name, values)
        return table

    def _columns(
        self, path: str, section: EventSection, timeline: Timeline, rows: Moments
    ) -> dict[str, pa.Array]:
        _, _, name = path.partition(".")
        match section:
            case History():
                return timeline.lists(timeline.before(rows).last(section.max_length))
            case Counter():
                return {name: _counts(section, timeline, rows)}
            case Attribution():
                dtype = ARROW_TYPES[self.plan.schema.columns.get(name, "bool")]
                return {name: self._happened(section, timeline, rows).cast(dtype)}

    def _happened(self, label: Attribution, timeline: Timeline, rows: Moments) -> pa.Array:
        """True or false; null where the log ends before the label's window, or the row has no key or time.

        Null whatever came by then: were only the false ones null, most of what is left of the log's end would be true.
        """
        window = label.within_seconds * _SECOND
        last_time = np.iinfo(np.int64).min if self.last_time is None else self.last_time
        mature_B = rows.later(window) <= last_time
        happened_B = timeline.since(rows, window=window).counts() > 0
        return pa.array(happened_B, mask=~(rows.known_B & mature_B))


def gather(plan: Plan, tables: Iterable[pa.Table]) -> EventIndex:
    """The events among labelled rows, which may come in any order. Raises ConfigError for a key of no usable type."""
    # Sections with the same events share them; the first one gives its name to what goes wrong.
    first = {events: path for path, events in reversed(plan.events.items())}
    logs = {events: EventLog(tuple(made for made, _ in events.tokens)) for events in first}
    last_time: int | None = None
    for table in tables:
        last_time = _later(last_time, table, plan.schema.keys.time)
        for events, path in first.items():
            _add_events(logs[events], plan, path, table)
    for path, events in plan.events.items():
        logger.info("events.gathered section=%s events=%d", path, logs[events].events)
    types = {made: _value_type(plan, made) for events in logs for made, _ in events.tokens}
    timelines = {events: log.timeline(types) for events, log in logs.items()}
    return EventIndex(plan, timelines, last_time)


def _add_events(log: EventLog, plan: Plan, path: str, table: pa.Table) -> None:
    events = plan.events[path]
    for rule in events.where:
        values = one_array(table.column(rule.column))
        answer = evaluate(rule, values, where=f"{plan.path}: {path}")
        table = table.filter(answer.fill_null(False))
    tokens = {
        made: one_array(table.column(column)).cast(_value_type(plan, made))
        for made, column in events.tokens
    }
    log.add(_Batch(plan, table).moments(path), tokens)


@dataclass
class _Batch:
    """A batch of rows; the moments of each key and time are made once."""

    plan: Plan
    table: pa.Table
    made: dict[tuple[tuple[str, ...], str], Moments] = field(default_factory=dict)

    def moments(self, path: str) -> Moments:
        events = self.plan.events[path]
        if (events.by, events.time) not in self.made:
            keys = [self._key(path, name) for name in events.by]
            times = one_array(self.table.column(events.time))
            self.made[events.by, events.time] = moments(keys, times)
        return self.made[events.by, events.time]

    def _key(self, path: str, name: str) -> pa.Array:
        values = one_array(self.table.column(name))
        if pa.types.is_null(values.type):
            # A file without any value of an undeclared column says no type.
            return values.cast(pa.int64())
        if not is_id(values.type):
            raise ConfigError(
                f"{self.plan.path}: {path}: column {name!r} is {dtype_name(values.type)}, and events are found "
                "by text, integers, booleans or timestamps; declare it as one under [columns], or name another"
            )
        return values


def _value_type(plan: Plan, made: str) -> pa.DataType:
    return ARROW_TYPES[plan.schema.columns[made]].value_type


def _later(last_time: int | None, table: pa.Table, column: str | None) -> int | None:
    if column is None:
        return last_time
    latest = pc.max(table.column(column).cast(pa.int64())).as_py()
    return max((time for time in (last_time, latest) if time is not None), default=None)


def _counts(counter: Counter, timeline: Timeline, rows: Moments) -> pa.Array:
    """The number of earlier events; null for a row without a key or a time."""
    window = None if counter.window_seconds is None else counter.window_seconds * _SECOND
    return pa.array(timeline.before(rows, window=window).counts(), mask=~rows.known_B)
