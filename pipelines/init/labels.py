"""What may be predicted: binary columns, ratings, levels and kinds of events, and which of them are."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.roles import Roles
from recsys.errors import ConfigError, DataError, nearest

Ask = Callable[[str, Sequence[str]], int]

_TRUE = frozenset({"yes", "y", "true", "t", "1", "1.0"})
_FALSE = frozenset({"no", "n", "false", "f", "0", "0.0"})
_FEWEST_POSITIVES = 10
_NESTED_SHARE = 0.999
_MOST_LEVELS = 6
_MOST_KINDS = 12
_MOST_COUNTS = 20


@dataclass(frozen=True)
class Label:
    """A task: 0, 1 (a number for a regression) or NaN a sampled row.

    `rule` makes it of `column`; without one the column is the label.
    """

    task: str
    column: Column
    happened_B: NDArray[np.float64]
    rule: Mapping[str, Any] | None = None
    given: str | None = None
    kind: Literal["binary", "regression"] = "binary"

    @property
    def name(self) -> str:
        """The column that holds the label once the rules have been applied."""
        return self.column.name if self.rule is None else self.task

    @property
    def rate(self) -> float:
        return float(np.nanmean(self.happened_B))

    @property
    def positives(self) -> int:
        return int(np.nansum(self.happened_B))


@dataclass(frozen=True)
class Chosen:
    """The labels, most frequent first, and what was decided on the way to them."""

    labels: tuple[Label, ...]
    decisions: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def choose_labels(
    columns: Sequence[Column], roles: Roles, *, named: Sequence[str], ask: Ask | None
) -> Chosen:
    """The labels to predict: those named, else those whose names say so, else what is asked for or most likely.

    Raises ConfigError for a name that is no label, and DataError when nothing can be one.
    """
    if named:
        found = [label for name in named for label in _named(name, columns)]
        return Chosen(linked(found))
    free = [
        column for column in columns if column.side is None and column not in roles.named.values()
    ]
    candidates = [
        label for column in free if column is not roles.split for label in labels_of(column)
    ]
    likely = [label for label in candidates if _is_likely(label.column, roles)]
    derived = _derived(likely)
    likely = [label for label in likely if label.task not in derived]
    enough = [label for label in likely if _is_learnable(label)]
    rare = {
        label.column.name: "a label with too few of one kind to learn from"
        for label in likely
        if label not in enough
    }
    if enough:
        listed = ", ".join(label.task for label in enough)
        said = f"predicts {listed}, because of the names; --label NAME (may be repeated) predicts something else"
        return Chosen(linked(enough), (said,), {**rare, **derived})
    return _guessed([label for label in candidates if _is_learnable(label)], free, ask)


def labels_of(column: Column) -> Iterator[Label]:
    """The labels that a column can be; none when it is neither binary nor a few ordered or named values."""
    if column.distinct < 2 or column.is_list or column.dtype in (None, "timestamp"):
        return
    if names.is_event_type(column.file_name) and column.is_id and column.distinct <= _MOST_KINDS:
        yield from _of_events(column)
    elif column.is_number:
        yield from _of_numbers(column)
    elif column.distinct == 2:
        yield _of_two_texts(column)


def _named(name: str, columns: Sequence[Column]) -> list[Label]:
    column = next((item for item in columns if name in (item.name, item.file_name)), None)
    known = [item.file_name for item in columns]
    if column is None:
        raise ConfigError(
            f"--label {name}: no such column{nearest(name, known)}; the columns: {', '.join(known[:20])}"
        )
    found = list(labels_of(column))
    if not found and column.is_number and column.distinct > 2:
        return [Label(column.name, column, column.numbers(), kind="regression")]
    if not found and column.dtype == "string" and 2 < column.distinct <= _MOST_KINDS:
        found = list(_of_events(column))
    if not found:
        raise ConfigError(
            f"--label {name}: the column holds {_described(column)}; a label has two values, or is a number. "
            "Make one by a rule: see Rules in docs/pipeline.md"
        )
    return found


def _of_numbers(column: Column) -> Iterator[Label]:
    numbers_B = column.numbers()
    values = np.unique(numbers_B[~np.isnan(numbers_B)])
    if values.tolist() == [0.0, 1.0]:
        yield Label(column.name, column, numbers_B)
    elif len(values) == 2:
        yield _by_rule(
            column,
            f"{column.name}_is_{values[1]:g}",
            {"equals": _plain(values[1], column)},
            numbers_B == values[1],
        )
    elif names.is_rating(column.file_name):
        yield _rating(column, numbers_B, values)
    elif len(values) <= _MOST_LEVELS and values.tolist() == list(range(len(values))):
        for level in values[1:]:
            yield _by_rule(
                column,
                f"{column.name}_at_least_{level:g}",
                {"at_least": _plain(level, column)},
                numbers_B >= level,
            )
    elif values[0] == 0 and len(values) <= _MOST_COUNTS and names.is_outcome(column.file_name):
        rule = {"above": _plain(0.0, column)}
        yield _by_rule(column, f"any_{column.name}", rule, numbers_B > 0)


def _rating(column: Column, numbers_B: NDArray[np.float64], values: NDArray[np.float64]) -> Label:
    """At least four fifths of the best: 4 of 5 stars, 8 of 10."""
    top = values[-1]
    threshold = float(min(value for value in values if value >= 0.8 * top))
    return _by_rule(
        column,
        f"{column.name}_at_least_{threshold:g}".replace(".", "_"),
        {"at_least": _plain(threshold, column)},
        numbers_B >= threshold,
    )


def _of_two_texts(column: Column) -> Label:
    common, rare = column.by_frequency
    said = {value: value.strip().lower() for value in (common, rare)}
    positive = next((value for value, text in said.items() if text in _TRUE), rare)
    is_flag = set(said.values()) & _TRUE and set(said.values()) & _FALSE
    task = (
        f"is_{column.name}"
        if is_flag and not column.name.startswith("is_")
        else f"{column.name}_is_{_slug(positive)}"
    )
    codes = np.array([value == positive for value in column.values.to_pylist()])
    return _by_rule(column, task, {"equals": positive}, codes)


def _of_events(column: Column) -> Iterator[Label]:
    """Every kind of event but the most frequent one, which is what the others follow from."""
    values = np.array(column.values.to_pylist(), dtype=object)
    for value in column.by_frequency[1:]:
        task = _slug(value) if isinstance(value, str) else f"{column.name}_{value}"
        yield _by_rule(column, task, {"equals": value}, values == value)


def _by_rule(column: Column, task: str, rule: Mapping[str, Any], happened_B: NDArray[Any]) -> Label:
    answer_B = happened_B.astype(np.float64)
    answer_B[~column.values.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    return Label(names.clean(task, ()), column, answer_B, {"column": column.name, **rule})


def _plain(number: float, column: Column) -> int | float:
    return int(number) if column.is_integer else float(number)


def _slug(value: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(value).lower()).strip("_") or "that"


def _is_likely(column: Column, roles: Roles) -> bool:
    """Whether a column's name says that it is an outcome; what a user or an item always has is none."""
    said = (
        names.is_outcome(column.file_name)
        or names.is_rating(column.file_name)
        or names.is_event_type(column.file_name)
    )
    if said and not names.is_flag(column.file_name):
        return names.words(column.file_name)[0] not in (
            "num",
            "count",
            "avg",
            "total",
            "past",
            "prev",
            "hist",
        )
    if not (said or names.is_flag(column.file_name)):
        return False
    return not any(
        key is not None and is_constant_within(column, key) for key in (roles.user, roles.item)
    )


def is_constant_within(column: Column, key: Column) -> bool:
    """Whether a column has (nearly) one value for each value of a key, where keys come up more than once."""
    keys, codes = key.codes(), column.codes()
    pairs = len(np.unique(keys * (codes.max(initial=0) + 2) + codes + 1))
    alone = len(np.unique(keys))
    return len(keys) >= 1.2 * alone and pairs <= 1.01 * alone


def _derived(labels: Sequence[Label]) -> dict[str, str]:
    """Rules that say what a flag of the file says already, such as a rating of 4 or more and `liked`."""
    flags = [label for label in labels if label.rule is None]
    ruled = [label for label in labels if label.rule is not None]
    return {label.task: "" for label in ruled if any(_same(label, flag) for flag in flags)}


def _same(one: Label, other: Label) -> bool:
    both = ~np.isnan(one.happened_B) & ~np.isnan(other.happened_B)
    return bool(
        both.any() and (one.happened_B[both] == other.happened_B[both]).mean() > _NESTED_SHARE
    )


def _is_learnable(label: Label) -> bool:
    if label.kind == "regression":
        return True
    known = int((~np.isnan(label.happened_B)).sum())
    return min(label.positives, known - label.positives) >= _FEWEST_POSITIVES


def _guessed(candidates: Sequence[Label], free: Sequence[Column], ask: Ask | None) -> Chosen:
    """The one possible label, or the answer to a question, or the last column, where tables usually keep it."""
    columns = list(dict.fromkeys(label.column.name for label in candidates))
    constant = [
        column.file_name
        for column in free
        if names.is_outcome(column.file_name) and column.distinct == 1
    ]
    if constant and ask is None:
        raise DataError(
            f"{', '.join(constant[:5])}: the same value in all rows looked at, so there is nothing to learn; give rows "
            "of both kinds, or name another label with --label"
        )
    if not columns:
        raise DataError(
            "no column looks like something to predict: none has two values or a few levels that occur often enough"
            f"{_closest(free)}; name one with --label, a number for a regression"
        )
    if len(columns) == 1 and _is_zero_or_one(_column(columns[0], free)):
        answer, said = columns[0], f"predicts {columns[0]}, the only column that can be a label"
    elif ask is not None:
        shown = [f"{name}: {_described(_column(name, free))}" for name in columns]
        answer = columns[ask("Which column says what happened, and is to be predicted?", shown)]
        said = f"predicts {answer}, as answered"
    elif free and free[-1].name in columns:
        answer = free[-1].name
        said = (
            f"predicts {answer}, the last column, because no name says which one is the label; "
            f"others that can be: {', '.join(name for name in columns if name != answer)[:200]} (--label NAME)"
        )
    else:
        raise DataError(
            f"no name says what is to be predicted; it can be {', '.join(columns[:12])}; name one with --label"
        )
    return Chosen(linked([label for label in candidates if label.column.name == answer]), (said,))


def _is_zero_or_one(column: Column) -> bool:
    """Whether a column says yes or no, or counts up from 0, and is no mere pair of names."""
    return (
        column.is_number
        or {str(value).strip().lower() for value in column.by_frequency} <= _TRUE | _FALSE
    )


def _closest(free: Sequence[Column]) -> str:
    few = sorted(
        (column for column in free if column.distinct >= 2 and not column.is_list),
        key=lambda column: column.distinct,
    )[:5]
    return (
        f" (closest: {'; '.join(f'{column.file_name}, {_described(column)}' for column in few)})"
        if few
        else ""
    )


def _column(name: str, columns: Sequence[Column]) -> Column:
    return next(column for column in columns if column.name == name)


def _described(column: Column) -> str:
    if column.dtype is None:
        return column.note
    if column.distinct <= 1:
        return "one value only" if column.distinct else "nothing"
    if column.distinct <= 6:
        return f"the values {', '.join(str(value) for value in column.by_frequency)}"
    return f"{column.distinct} different values of {column.dtype}"


def linked(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Labels, most frequent first; one whose positives are all positives of another is given the rarest such one."""
    ordered = sorted(labels, key=lambda label: (label.kind == "regression", -label.rate))
    found: list[Label] = []
    for label in ordered:
        parents = [other for other in found if _implies(label, other)]
        found.append(replace(label, given=parents[-1].task if parents else None))
    return tuple(_distinct_tasks(found))


def _implies(child: Label, parent: Label) -> bool:
    if "regression" in (child.kind, parent.kind):
        return False
    known = ~np.isnan(child.happened_B)
    if np.isnan(parent.happened_B[known]).any() or parent.rate > 0.97:
        return False
    happened = known & (child.happened_B == 1)
    return bool(
        happened.sum() >= _FEWEST_POSITIVES
        and parent.happened_B[happened].mean() >= _NESTED_SHARE
        and not _same(child, parent)
    )


def _distinct_tasks(labels: Sequence[Label]) -> Iterator[Label]:
    taken: set[str] = set()
    for label in labels:
        if label.task not in taken:
            taken.add(label.task)
            yield label
