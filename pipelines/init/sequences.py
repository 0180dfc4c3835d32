"""Lists that a row brings along of earlier events: aligned ones are the tokens of one sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.roles import Roles

_MOST_EVENTS = 50
_SHARED_VALUES = 0.3


@dataclass(frozen=True)
class SequenceChoice:
    """Aligned columns by token; `item_tokens` are those that hold ids of the item."""

    name: str
    columns: Mapping[str, Column]
    item_tokens: tuple[str, ...]
    max_length: int


def find_sequences(columns: Sequence[Column], roles: Roles) -> list[SequenceChoice]:
    """The sequences among the list columns whose names speak of the past."""
    groups: dict[bytes, list[Column]] = {}
    for column in columns:
        if _may_be_token(column, roles):
            lengths = pc.fill_null(pc.list_value_length(column.values), 0).to_numpy(
                zero_copy_only=False
            )
            groups.setdefault(lengths.tobytes(), []).append(column)
    return [
        _sequence(group, roles, number=number)
        for number, group in enumerate(groups.values(), start=1)
    ]


def _may_be_token(column: Column, roles: Roles) -> bool:
    if column.side is not None or not names.is_past(column.file_name):
        return False
    return column.dtype in ("list<int64>", "list<string>") or (
        column.dtype == "list<timestamp>" and roles.time is not None
    )


def _sequence(group: Sequence[Column], roles: Roles, *, number: int) -> SequenceChoice:
    lengths = pc.fill_null(pc.list_value_length(group[0].values), 0).to_numpy(zero_copy_only=False)
    longest = int(np.quantile(lengths, 0.95))
    tokens = {names.clean(column.name, ()): column for column in group}
    items = tuple(token for token, column in tokens.items() if _holds_items(column, roles.item))
    return SequenceChoice(
        "history" if number == 1 else f"history_{number}",
        tokens,
        items,
        min(max(longest, 1), _MOST_EVENTS),
    )


def _holds_items(column: Column, item: Column | None) -> bool:
    """Whether a list's members are (mostly) values of the item's column."""
    if (
        item is None
        or (column.dtype == "list<string>") != (item.dtype == "string")
        or not item.is_id
    ):
        return False
    members = pc.unique(column.values.flatten().drop_null())
    if not len(members) or column.dtype == "list<timestamp>":
        return False
    known = pc.is_in(members, value_set=pc.unique(item.values).cast(members.type))
    return bool(known.true_count >= _SHARED_VALUES * len(members))


def sequence_settings(
    choice: SequenceChoice, tables: Mapping[str, str], target: str | None
) -> dict[str, Any]:
    """What [sequences] says: `tables` are those of the id tokens, `target` the feature of the candidate item."""
    settings: dict[str, Any] = {}
    for token, column in choice.columns.items():
        told = {"table": tables[token]} if token in tables else {"kind": "time_gap"}
        settings[token] = (
            told if column.name == f"{choice.name}_{token}" else {**told, "column": column.name}
        )
    settings["max_length"] = choice.max_length
    if choice.item_tokens and target is not None:
        settings["target"] = {choice.item_tokens[0]: target}
    return settings
