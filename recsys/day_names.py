"""Days and splits as configuration and command line name them: a range of days, one name, or several.

A range means the days in it that are published; a name means exactly that day or split.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from recsys.errors import ConfigError

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class DayRange:
    """UTC days, both ends included."""

    first: date
    last: date

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"

    @property
    def names(self) -> tuple[str, ...]:
        """Every day of the range, published or not."""
        count = (self.last - self.first).days + 1
        return tuple(str(self.first + timedelta(days=n)) for n in range(count))


def is_date(name: str) -> bool:
    """Whether a name is a date's. Other names are splits, which have no order."""
    return _DATE.fullmatch(name) is not None


def parse_day_names(value: Any) -> DayRange | tuple[str, ...]:
    """The days that a configuration value names; TOML dates are names too. Raises ValueError saying what to write."""
    if isinstance(value, DayRange):
        return value
    if isinstance(value, Mapping):
        return _range(value)
    if isinstance(value, str | date):
        value = (value,)
    if not isinstance(value, tuple | list) or not all(isinstance(x, str | date) for x in value):
        raise ValueError(
            'name days or splits, such as ["train"], or a range { from = "2026-10-01", to = "2026-10-31" }; '
            f"found {value!r}"
        )
    return _plain_names(tuple(map(str, value)))


def names_in(days: DayRange | Iterable[str]) -> tuple[str, ...]:
    """All names that days stand for, published or not."""
    return days.names if isinstance(days, DayRange) else tuple(days)


def day_names(text: str | Iterable[str]) -> DayRange | tuple[str, ...]:
    """Days from one name, several, or a range `2026-10-01:2026-10-03`. Raises ConfigError."""
    try:
        if isinstance(text, str) and ":" in text:
            first, _, last = text.partition(":")
            return _range({"from": first, "to": last})
        return parse_day_names(text if isinstance(text, str) else tuple(text))
    except ValueError as error:
        raise ConfigError(f"days: {error}") from error


def _tree(days: DayRange | tuple[str, ...]) -> Any:
    if isinstance(days, DayRange):
        return {"from": str(days.first), "to": str(days.last)}
    return list(days)


DayNames = Annotated[
    DayRange | tuple[str, ...], PlainValidator(parse_day_names), PlainSerializer(_tree)
]


def _range(value: Mapping[str, Any]) -> DayRange:
    if set(value) != {"from", "to"}:
        raise ValueError(
            f'needs from and to, such as {{ from = "2026-10-01", to = "2026-10-31" }}, found {sorted(value)}'
        )
    first, last = _date(value["from"]), _date(value["to"])
    if last < first:
        raise ValueError(f"runs from {first} to {last}, which is backwards; swap them")
    return DayRange(first, last)


def _date(value: Any) -> date:
    try:
        # A time is a date to Python too.
        return value if type(value) is date else date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{value!r} is no day; write it as "2026-10-01"') from error


def _plain_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("names no day; give at least one day or split")
    for name in names:
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(f"{name!r} is not the name of a day or split")
    if len(set(names)) != len(names):
        raise ValueError("names a day twice; name each once")
    return names
