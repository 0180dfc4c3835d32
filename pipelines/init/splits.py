"""Which rows train, which choose the checkpoint, and which judge the model."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.roles import Roles

_FEWEST_DAYS, _MOST_DAYS = 4, 60
_HELD_OUT_SHARE = 0.1
_FEWEST_TIMES = 20
_NULL_TIMES = 0.05
_DAY_MICROSECONDS = 86_400 * 1_000_000
_PARTS = {"train": 0.8, "validation": 0.1, "test": 0.1}
NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitChoice:
    """`settings` is the [split] section. `days` (train, validation, test) only for a split by UTC days.

    `of_file` is the split of each given file, for a split by file. `needs_time` drops rows without a time.
    """

    settings: Mapping[str, Any]
    why: str
    days: tuple[tuple[str, str], ...] = ()
    of_file: Mapping[Path, Any] = field(default_factory=dict)
    needs_time: bool = False
    filters: tuple[Mapping[str, Any], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that a build publishes; empty for a split by days."""
        rules = self.settings.get("rules", self.settings.get("parts"))
        return () if self.days else tuple(rules or NAMES)


def choose_split(
    roles: Roles, files: Sequence[Path], *, user_is_input: bool, known_B: NDArray[np.bool_]
) -> SplitChoice:
    """The split that the files or a column bring along; else by time; else by hash. `known_B`: rows with a label."""
    given = _by_file(files)
    if given:
        return given
    if roles.split is not None and roles.split_values is not None:
        return _by_column(roles.split, roles.split_values)
    if roles.time is not None and roles.time.null_share <= _NULL_TIMES:
        found = _by_time(roles.time, known_B)
        if found is not None:
            return found
    if roles.user is not None and not user_is_input and roles.user.repetition >= 2:
        return SplitChoice(
            {"by": "hash", "column": roles.user.name, "seed": 0, "parts": _PARTS},
            "all rows of a user go together, so the report is about users that the model has never seen",
        )
    return SplitChoice(
        {"by": "hash", "seed": 0, "parts": _PARTS},
        "each row is drawn by itself, always the same way",
    )


def _by_file(files: Sequence[Path]) -> SplitChoice | None:
    """Files whose names say train and test."""
    named: dict[Path, str] = {}
    for path in files:
        said = set(names.words(path.name))
        if said & {"test", "testing", "holdout"}:
            named[path] = "test"
        elif said & {"val", "valid", "validation", "dev"}:
            named[path] = "validation"
        else:
            named[path] = "train"
    kinds = set(named.values())
    if "train" not in kinds or "test" not in kinds:
        return None
    if "validation" in kinds:
        return SplitChoice({"by": "file"}, "as the files' names say", of_file=named)
    halves = {"validation": 0.5, "test": 0.5}
    of_file = {path: halves if split == "test" else split for path, split in named.items()}
    return SplitChoice(
        {"by": "file", "seed": 0},
        "as the files' names say; half of the test rows choose the checkpoint",
        of_file=of_file,
    )


def _by_column(column: Column, values: Mapping[str, tuple[str, ...]]) -> SplitChoice:
    said = {split: _one_of(column.name, known) for split, known in values.items()}
    why = f"as the column {column.name} says"
    others = sorted(
        set(column.by_frequency) - {value for known in values.values() for value in known}
    )
    filters: list[dict[str, Any]] = []
    if others or column.values.null_count:
        filters.append(
            _one_of(column.name, tuple(value for known in values.values() for value in known))
        )
    if "validation" not in said:
        why += "; it knows no validation rows, so the test rows choose the checkpoint too"
    rules = {name: said[name] for name in NAMES if name in said}
    return SplitChoice({"by": "rules", "rules": rules}, why, filters=tuple(filters))


def _one_of(column: str, values: tuple[str, ...]) -> dict[str, Any]:
    return (
        {"column": column, "equals": values[0]}
        if len(values) == 1
        else {"column": column, "in": list(values)}
    )


def _by_time(time: Column, known_B: NDArray[np.bool_]) -> SplitChoice | None:
    """By days where there are some; by two moments where days are few or many; None where time hardly passes."""
    numbers_B = time.numbers()[known_B]
    times_B = np.sort(numbers_B[~np.isnan(numbers_B)]).astype(np.int64)
    days = _by_days(times_B)
    if days is not None:
        return days
    if len(np.unique(times_B)) < _FEWEST_TIMES:
        return None
    first, second = (
        _moment(times_B, share) for share in (1 - 2 * _HELD_OUT_SHARE, 1 - _HELD_OUT_SHARE)
    )
    if not times_B[0] < _microseconds(first) < _microseconds(second) <= times_B[-1]:
        return None
    rules = {
        "train": {"column": time.name, "below": first},
        "validation": {"column": time.name, "below": second},
        "test": {"column": time.name, "not_null": True},
    }
    return SplitChoice(
        {"by": "rules", "rules": rules},
        "the first 80 % of the time-ordered rows train, the next 10 % choose the checkpoint, the last 10 % judge it",
        needs_time=True,
    )


def _by_days(times_B: NDArray[np.int64]) -> SplitChoice | None:
    """Whole UTC days, where there are some tens of them at most and none without rows."""
    days_D, counts_D = np.unique(times_B // _DAY_MICROSECONDS, return_counts=True)
    if not _FEWEST_DAYS <= len(days_D) <= _MOST_DAYS or days_D[-1] - days_D[0] + 1 != len(days_D):
        return None
    shares_D = np.cumsum(counts_D[::-1])[::-1] / len(times_B)
    test = int(np.flatnonzero(shares_D >= _HELD_OUT_SHARE / 2).max())
    validation = int(
        np.flatnonzero(shares_D - shares_D[test] >= _HELD_OUT_SHARE / 2).max(initial=-1)
    )
    if validation < 1 or shares_D[validation] > 0.5:
        return None
    spans = ((0, validation - 1), (validation, test - 1), (test, len(days_D) - 1))
    named = tuple((_day(days_D[first]), _day(days_D[last])) for first, last in spans)
    return SplitChoice(
        {"by": "time"},
        "every UTC day is published by itself; the last days judge the model, those before them choose the checkpoint",
        days=named,
        needs_time=True,
    )


def _moment(times_B: NDArray[np.int64], share: float) -> datetime.datetime:
    found = int(times_B[int(share * len(times_B))])
    # Whole seconds read better, and rows of one second stay together.
    return datetime.datetime.fromtimestamp(found // 1_000_000, tz=datetime.UTC)


def _microseconds(moment: datetime.datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def _day(number: int) -> str:
    return str(np.datetime64(int(number), "D"))
