"""Everything that was decided about some files, before it is written as TOML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.counters import CounterChoice, add_counters
from pipelines.init.event_log import EventLog, attributed, event_log
from pipelines.init.features import Inputs, choose_inputs
from pipelines.init.labels import Ask, Chosen, Label, choose_labels, linked
from pipelines.init.leakage import leak
from pipelines.init.roles import Roles, find_roles
from pipelines.init.splits import SplitChoice, choose_split
from pipelines.init.tables import Tables
from pipelines.init.training import TrainingChoice, choose_training
from recsys.errors import DataError

_FEWEST_ROWS = 100
_HISTORY_ROWS_A_USER = 3
_USUAL_RATE = 0.95
_DAY_MICROSECONDS = 86_400 * 1_000_000


@dataclass(frozen=True)
class HistoryChoice:
    """The user's earlier items of rows for which `where` is true: a sequence whose columns the pipeline makes."""

    name: str
    what: str
    where: Mapping[str, Any]
    item: Column
    item_feature: str
    item_table: str
    max_length: int

    @property
    def item_column(self) -> str:
        return f"{self.name}_item"

    @property
    def time_column(self) -> str:
        return f"{self.name}_age"

    @property
    def item_dtype(self) -> str:
        return "list<string>" if self.item.dtype == "string" else "list<int64>"


@dataclass(frozen=True)
class Decided:
    """What the three files will say. `reasons` are the decisions that a user may want otherwise, one line each."""

    tables: Tables
    roles: Roles
    labels: tuple[Label, ...]
    inputs: Inputs
    history: HistoryChoice | None
    counters: tuple[CounterChoice, ...]
    split: SplitChoice
    training: TrainingChoice
    time_parts: Mapping[str, str]
    filters: tuple[tuple[Mapping[str, object], str], ...]
    reasons: tuple[str, ...]

    @property
    def rows(self) -> int:
        return self.tables.rows.rows


def decide(
    tables: Tables,
    *,
    labels: Sequence[str],
    user: str | None,
    item: str | None,
    time: str | None,
    ask: Ask | None,
) -> Decided:
    """The decisions about some tables. Raises ConfigError and DataError where none can be made."""
    rows = tables.rows.rows
    if rows < _FEWEST_ROWS:
        raise DataError(
            f"{tables.rows.files[0].path}: {rows} rows are too few to train a model and to judge it; "
            f"give at least {_FEWEST_ROWS}, better thousands"
        )
    columns = tables.columns
    has_names = tables.rows.files[0].has_names
    roles = find_roles(columns, user=user, item=item, time=time, has_names=has_names)
    chosen = choose_labels(columns, roles, named=labels, ask=ask)
    roles, dropped = _without_leaks(roles, chosen.labels)
    chosen, log = _attributed(chosen, roles)
    inputs = choose_inputs(columns, roles, chosen.labels, passed_over=chosen.left_out)
    split = choose_split(
        roles,
        [found.path for found in tables.rows.files],
        user_is_input=roles.user is not None and roles.user.name in inputs.columns,
        known_B=np.logical_or.reduce([~np.isnan(label.happened_B) for label in chosen.labels]),
    )
    outcome = _outcome(chosen.labels)
    history = _history(roles, outcome, inputs, log)
    counters: tuple[CounterChoice, ...] = ()
    if outcome is not None:
        every = None if log is None else log.rule
        counters = add_counters(
            inputs, roles, what=outcome.what, where=outcome.where, every=every, rate=outcome.rate
        )
    time_parts = {
        names.clean(f"time_{part}", {*inputs.features, *inputs.tables}): part
        for part in _time_parts(roles.time)
    }
    if not inputs.features and history is None and not time_parts:
        raise DataError(
            f"{tables.rows.files[0].path}: no column is left as an input; "
            f"{_first_reasons(inputs)}; give a file with more columns, or name other roles with --user, --item, --label"
        )
    return Decided(
        tables,
        roles,
        chosen.labels,
        inputs,
        history,
        counters,
        split,
        choose_training(round(0.8 * rows), tasks=len(chosen.labels), knows_rates=bool(counters)),
        time_parts,
        tuple(_filters(roles, chosen, split, log)),
        (*_key_reasons(roles, tables.columns), *dropped, *chosen.decisions),
    )


def _attributed(chosen: Chosen, roles: Roles) -> tuple[Chosen, EventLog | None]:
    """Where labels are kinds of events of a log: what follows an impression, as labels of the impression."""
    kind = chosen.labels[0].column
    if not names.is_event_type(kind.file_name) or any(
        label.column is not kind for label in chosen.labels
    ):
        return chosen, None
    log = event_log(kind, roles)
    if log is None:
        return chosen, None
    said = (
        f"each row of {kind.name} {log.impression!r} is an impression; the other kinds become its labels when they "
        f"follow within {_duration(log.window_seconds)} (within_seconds in pipeline.toml)"
    )
    labels = linked(attributed(chosen.labels, log, roles))
    return replace(chosen, labels=labels, decisions=(*chosen.decisions, said)), log


def _duration(seconds: int) -> str:
    return f"{seconds // 3600} hours" if seconds % 3600 == 0 else f"{seconds // 60} minutes"


def _without_leaks(roles: Roles, labels: Sequence[Label]) -> tuple[Roles, list[str]]:
    """Roles without a time that tells the label, and why: histories and splits by such a time would tell it too."""
    time = roles.time
    reason = leak(time, labels) if time is not None and time.null_share > 0 else None
    if time is None or reason is None:
        return roles, []
    return replace(roles, time=None), [f"time: {time.name} is not used, because {reason}"]


def _first_reasons(inputs: Inputs) -> str:
    return (
        "; ".join(f"{name}: {reason}" for name, reason in list(inputs.left_out.items())[:3])
        or "there are too few"
    )


def _key_reasons(roles: Roles, columns: Sequence[Column]) -> list[str]:
    said: list[str] = []
    for role in ("user", "item", "time"):
        column = getattr(roles, role)
        found = column.name if column else f"none found{_unread_time(columns, role)}"
        said.append(f"{role}: {found}; --{role} COLUMN says otherwise")
    return said


def _unread_time(columns: Sequence[Column], role: str) -> str:
    """A column that its name calls a time, and that is text of no one form: worth a word where no time is found."""
    unread = next(
        (
            column
            for column in columns
            if role == "time" and column.dtype == "string" and names.is_time(column.file_name)
        ),
        None,
    )
    if unread is None:
        return ""
    some = ", ".join(repr(value[:40]) for value in unread.by_frequency[:3])
    return f" ({unread.file_name} is text in no one form of a time, such as {some})"


@dataclass(frozen=True)
class _Outcome:
    """What histories and counters are about: its name, the rule of the rows where it happened, and how often."""

    what: str
    where: Mapping[str, Any]
    rate: float


def _outcome(labels: Sequence[Label]) -> _Outcome | None:
    """The most frequent label that is not almost always true; a rule that a row's own time can tell."""
    usual = [label for label in labels if label.kind == "binary" and label.rate <= _USUAL_RATE]
    if not usual:
        return None
    label = max(usual, key=lambda one: one.positives)
    if label.rule is not None and "event" in label.rule:
        return _Outcome(label.task, label.rule["event"], label.rate)
    # A label made by a rule, or declared as a bool, is true; a declared number is 1.
    is_bool = label.rule is not None or label.column.dtype == "bool"
    where = {"column": label.name, "equals": True if is_bool else 1}
    return _Outcome(label.task, where, label.rate)


def _history(
    roles: Roles, outcome: _Outcome | None, inputs: Inputs, log: EventLog | None
) -> HistoryChoice | None:
    user, item, time = roles.user, roles.item, roles.time
    if user is None or item is None or time is None or item.name not in inputs.features:
        return None
    if outcome is None or user.rows / max(user.estimated_distinct, 1) < _HISTORY_ROWS_A_USER:
        return None
    # In a log of events the impressions say more than the few events that followed.
    what, where = (str(log.impression), log.rule) if log else (outcome.what, outcome.where)
    feature = inputs.features[item.name]
    name = names.clean(f"past_{what}"[:48], {*inputs.features, *inputs.columns, *inputs.sequences})
    return HistoryChoice(name, what, where, item, item.name, str(feature["table"]), 20)


def _time_parts(time: Column | None) -> list[str]:
    """Parts of the date that the data can teach: it has to come round at least a few times."""
    if time is None:
        return []
    times = time.numbers()
    times = times[~np.isnan(times)]
    days = (times.max() - times.min()) / _DAY_MICROSECONDS
    within_days = bool((times % _DAY_MICROSECONDS != 0).any())
    parts = ["hour"] if days >= 3 and within_days else []
    return [*parts, "weekday"] if days >= 14 else parts


def _filters(
    roles: Roles, chosen: Chosen, split: SplitChoice, log: EventLog | None
) -> list[tuple[Mapping[str, object], str]]:
    found: list[tuple[Mapping[str, object], str]] = [
        (rule, "rows of other splits are left out") for rule in split.filters
    ]
    if log is not None:
        found.append(
            (log.rule, "the rows to learn from; the other events are what becomes of them")
        )
        known = {"column": log.time.name, "below": log.last_known}
        why = "later rows are left out: the log ends before all that followed them could be seen; move this as it grows"
        return [*found, (known, why)]
    time = roles.time
    # The sample may miss the few nulls there are, and one would stop the build.
    if split.needs_time and time is not None and (time.null_share > 0 or not time.is_whole):
        rule = {"column": time.name, "not_null": True}
        found.append((rule, "a row without a time belongs to no split"))
    unknown = [np.isnan(label.happened_B) for label in chosen.labels]
    nowhere = np.logical_and.reduce(unknown)
    for label, unknown_B in zip(chosen.labels, unknown, strict=True):
        if nowhere.any() and (unknown_B == nowhere).all():
            rule = {"column": label.column.name, "not_null": True}
            found.append((rule, f"{nowhere.mean():.0%} of the rows have no label"))
            break
    return found
