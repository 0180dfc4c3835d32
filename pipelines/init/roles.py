"""Which columns are keys: user, item, time, impression, sample weight, and a split that the data brings along."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.init import names
from pipelines.init.columns import Column
from recsys.errors import ConfigError, nearest

_SPLIT_VALUES: Mapping[str, frozenset[str]] = {
    "train": frozenset({"train", "training", "tr", "learn"}),
    "validation": frozenset({"val", "valid", "validation", "dev", "eval"}),
    "test": frozenset({"test", "testing", "te", "holdout"}),
}
_UNIQUE_SHARE = 0.98
_FEWEST_KEYS = 20


@dataclass(frozen=True)
class Roles:
    """Columns by role; None where there is none. `split_values` are the values of `split` for each split."""

    user: Column | None = None
    item: Column | None = None
    time: Column | None = None
    impression: Column | None = None
    weight: Column | None = None
    split: Column | None = None
    split_values: Mapping[str, tuple[str, ...]] | None = None

    @property
    def named(self) -> dict[str, Column]:
        """The columns that have a role, by role."""
        found = {
            "user": self.user,
            "item": self.item,
            "time": self.time,
            "impression": self.impression,
            "sample_weight": self.weight,
        }
        return {role: column for role, column in found.items() if column is not None}


def find_roles(
    columns: Sequence[Column],
    *,
    user: str | None,
    item: str | None,
    time: str | None,
    has_names: bool,
) -> Roles:
    """The roles of columns. Names that are given decide; otherwise names and values do. Raises ConfigError."""
    ids = [column for column in columns if column.is_id and column.side is None]
    chosen_user = (
        _given(user, ids, columns, "user")
        if user
        else _first(ids, names.is_user, least=_FEWEST_KEYS)
    )
    chosen_item = (
        _given(item, ids, columns, "item")
        if item
        else _first(ids, names.is_item, least=_FEWEST_KEYS)
    )
    if not has_names:
        chosen_user, chosen_item = _by_repetition(ids, chosen_user, chosen_item)
    if chosen_item is not None and chosen_item == chosen_user:
        chosen_item = None
    times = [column for column in columns if column.dtype == "timestamp" and column.side is None]
    chosen_time = _given(time, times, columns, "time") if time else _best_time(times)
    split, values = _split(columns)
    return Roles(
        chosen_user,
        chosen_item,
        chosen_time,
        _impression([column for column in ids if column not in (chosen_user, chosen_item)]),
        _first(
            [column for column in columns if column.is_number and _is_weight(column)],
            names.is_weight,
            least=2,
        ),
        split,
        values,
    )


def _given(name: str, fitting: Sequence[Column], columns: Sequence[Column], role: str) -> Column:
    found = next((column for column in fitting if name in (column.name, column.file_name)), None)
    if found is not None:
        return found
    known = [column.file_name for column in columns]
    if name in known:
        wanted = (
            "times (or whole numbers whose size says seconds or milliseconds)"
            if role == "time"
            else "text or whole numbers"
        )
        given = next(column for column in columns if column.file_name == name)
        # Text that was meant as times shows here in which forms it stands.
        some = given.by_frequency[:3] if given.dtype == "string" else []
        such = f" ({', '.join(repr(value[:40]) for value in some)})" if some else ""
        raise ConfigError(
            f"--{role} {name}: the column holds {given.dtype or 'no values'}{such}, and {role} needs {wanted}"
        )
    raise ConfigError(
        f"--{role} {name}: no such column{nearest(name, known)}; the columns: {', '.join(known[:20])}"
    )


def _first(columns: Sequence[Column], fits: Callable[[str], bool], *, least: int) -> Column | None:
    """The first column of at least so many values whose name fits."""
    fitting = [column for column in columns if fits(column.file_name) and column.distinct >= least]
    # `user_id` before `user_rank`, and what repeats before what does not.
    return min(fitting, key=lambda column: not names.is_id(column.file_name), default=None)


def _by_repetition(
    ids: Sequence[Column], user: Column | None, item: Column | None
) -> tuple[Column | None, Column | None]:
    """Without names, the usual order: the first two columns of many values that come up again are user and item."""
    many = [column for column in ids if column.distinct >= 100 and column.repetition >= 2]
    if user is None and item is None and len(many) >= 2 and ids[:2] == many[:2]:
        return many[0], many[1]
    return user, item


def _best_time(times: Sequence[Column]) -> Column | None:
    """Of several times the one with fewest nulls, then the one known by name, then the finest."""
    usable = [column for column in times if column.distinct > 1]
    return min(
        usable,
        key=lambda column: (
            round(column.null_share, 2),
            not names.is_time(column.file_name),
            -column.distinct,
        ),
        default=None,
    )


def _impression(ids: Sequence[Column]) -> Column | None:
    fitting = [
        column
        for column in ids
        if names.is_impression(column.file_name)
        and column.null_share == 0
        and column.distinct == len(column.values)
    ]
    return fitting[0] if fitting else None


def _is_weight(column: Column) -> bool:
    if column.null_share or column.distinct < 2:
        return False
    numbers = column.numbers()
    return bool(np.min(numbers) >= 0)


def _split(columns: Sequence[Column]) -> tuple[Column | None, Mapping[str, tuple[str, ...]] | None]:
    """A column that says for each row whether it is for training, validation or test."""
    for column in columns:
        if not names.is_split(column.file_name) or column.dtype != "string" or column.distinct > 6:
            continue
        found = {
            split: tuple(
                value for value in sorted(column.by_frequency) if value.strip().lower() in known
            )
            for split, known in _SPLIT_VALUES.items()
        }
        if found["train"] and found["test"]:
            return column, {split: values for split, values in found.items() if values}
    return None, None


def is_unique(column: Column) -> bool:
    """Whether (nearly) every row, of a side table if it comes from one, has a value of its own."""
    if column.own_repetition is not None:
        return column.own_repetition < 1 / _UNIQUE_SHARE and column.distinct >= 50
    filled = len(column.values) - column.values.null_count
    return bool(filled >= 50 and column.distinct >= _UNIQUE_SHARE * filled)
