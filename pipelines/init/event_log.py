"""A log of events of several kinds: the most frequent kind is the impression, the others are what became of it."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.init.columns import Column
from pipelines.init.labels import Label
from pipelines.init.roles import Roles

_SECOND = 1_000_000
_DAY_SECONDS = 86_400
_LONG_LOG_DAYS = 10


@dataclass(frozen=True)
class EventLog:
    """The column that names a row's kind, the kind that is the impression, and how long outcomes are awaited."""

    kind: Column
    time: Column
    impression: Any
    window_seconds: int

    @property
    def rule(self) -> dict[str, Any]:
        """What is true of the impressions."""
        return {"column": self.kind.name, "equals": self.impression}

    @property
    def last_known(self) -> datetime.datetime:
        """The time after which the log ends before the window does."""
        last: datetime.datetime = self.time.bounds[1]
        return (last - datetime.timedelta(seconds=self.window_seconds)).replace(
            microsecond=0, tzinfo=datetime.UTC
        )


def event_log(kind: Column, roles: Roles) -> EventLog | None:
    """The log, where users, items and times tell which event follows which; else None."""
    if roles.user is None or roles.item is None or roles.time is None:
        return None
    times_B = roles.time.numbers()
    span_seconds = int((np.nanmax(times_B) - np.nanmin(times_B)) / _SECOND)
    window = (
        _DAY_SECONDS
        if span_seconds >= _LONG_LOG_DAYS * _DAY_SECONDS
        else span_seconds // 10 // 60 * 60
    )
    return EventLog(kind, roles.time, kind.by_frequency[0], window) if window else None


def attributed(labels: Sequence[Label], log: EventLog, roles: Roles) -> list[Label]:
    """Labels of the impressions: does such an event of the same user and item happen within the window?"""
    return [_attributed(label, log, roles) for label in labels]


def _attributed(label: Label, log: EventLog, roles: Roles) -> Label:
    user, item, time = roles.user, roles.item, roles.time
    assert label.rule is not None
    assert user is not None
    assert item is not None
    assert time is not None
    rule: Mapping[str, Any] = {
        "event": dict(label.rule),
        "same": [user.name, item.name],
        "within_seconds": log.window_seconds,
    }
    pairs_B = np.unique(np.stack([user.codes(), item.codes()]), axis=1, return_inverse=True)[
        1
    ].ravel()
    return replace(label, rule=rule, happened_B=_follows(label, log, pairs_B, time.numbers()))


def _follows(
    label: Label, log: EventLog, pairs_B: NDArray[np.int64], times_B: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each impression whether an event of its pair comes within the window; NaN for other rows and near the end."""
    event_B = label.happened_B == 1
    order_E = np.lexsort((times_B[event_B], pairs_B[event_B]))
    pairs_E, times_E = pairs_B[event_B][order_E], times_B[event_B][order_E]
    window = log.window_seconds * _SECOND
    # The number of events of earlier pairs, and of this pair up to a time, by one search over both.
    ranks_T = np.unique(times_B[~np.isnan(times_B)])
    scale = len(ranks_T) + 2
    key_E = pairs_E * scale + np.searchsorted(ranks_T, times_E)
    first_B = pairs_B * scale + np.searchsorted(ranks_T, times_B, side="left")
    last_B = pairs_B * scale + np.searchsorted(ranks_T, times_B + window, side="right")
    happened_B = np.searchsorted(key_E, last_B, side="left") > np.searchsorted(
        key_E, first_B, side="left"
    )
    values = np.array(log.kind.values.to_pylist(), dtype=object)
    # Positives beyond that time are known, but without the negatives beside them.
    mature_B = times_B < log.last_known.timestamp() * _SECOND
    return np.where((values == log.impression) & mature_B, happened_B.astype(np.float64), np.nan)
