"""How each column enters the model: which kinds of features, of which tables, on which side; or why it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.labels import Label, is_constant_within, labels_of
from pipelines.init.leakage import leak
from pipelines.init.roles import Roles, is_unique
from pipelines.init.sequences import SequenceChoice, find_sequences, sequence_settings
from recsys.schema_sections import RESERVED_ROWS, VOCABULARY_UP_TO_ROWS

_IDS_ONLY_UP_TO = 20
_IDS_TOO_UP_TO = 2_000
_ROWS_A_VALUE = 20
_USER_ROWS = 10
_LONG_TEXT = 32
_LARGEST_TABLE = 5_000_000
_BUCKETS_FROM_ROWS = 20_000
_FEW_FLOATS = 32


@dataclass(frozen=True)
class TableChoice:
    rows: int
    dim: int
    note: str = ""


@dataclass
class Inputs:
    """Features by name, their tables, and the columns left out with the reason."""

    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    sequences: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, TableChoice] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)

    def add(self, name: str, column: Column, settings: Mapping[str, Any]) -> str:
        """Add a feature of a column under a name not yet taken; returns the name."""
        clean = names.clean(name, self.features)
        said = dict(settings) if clean == column.name else {**settings, "column": column.name}
        # `kind` first, as a reader expects it.
        self.features[clean] = {"kind": said.pop("kind"), **said}
        self.columns[column.name] = column
        return clean

    def table(self, name: str, column: Column, *, rows: int | None = None) -> str:
        clean = names.clean(name, self.tables)
        self.tables[clean] = _table(column, rows)
        return clean


def choose_inputs(
    columns: Sequence[Column],
    roles: Roles,
    labels: Sequence[Label],
    *,
    passed_over: Mapping[str, str],
) -> Inputs:
    """What the model reads of the columns that are neither keys nor labels."""
    inputs = Inputs(left_out={})
    if roles.user is not None:
        _user_id(inputs, roles.user)
    if roles.item is not None:
        _item_id(inputs, roles.item, roles)
    keys = {column.name for column in roles.named.values()}
    for sequence in find_sequences(columns, roles):
        _add_sequence(inputs, sequence, roles.item)
    label_columns = {label.column.name for label in labels}
    for column in columns:
        if column.name in keys | label_columns | inputs.columns.keys():
            continue
        reason = _reason_against(column, roles, labels, passed_over)
        if reason is None:
            _add_features(
                inputs, _Usable(column, _side(column, roles), _learnable_rows(column, roles))
            )
        else:
            inputs.left_out[column.name] = reason
    return inputs


def _user_id(inputs: Inputs, user: Column) -> None:
    rows_each = user.rows / max(user.estimated_distinct, 1)
    if rows_each < _USER_ROWS:
        inputs.left_out[user.name] = (
            f"the key of users, no feature: about {rows_each:.1f} rows a user are too few to learn each one by heart"
        )
        return
    table = inputs.table(user.name, user)
    inputs.add(user.name, user, {"kind": "categorical", "table": table, "side": "user"})


def _item_id(inputs: Inputs, item: Column, roles: Roles) -> None:
    table = inputs.table(item.name, item)
    inputs.add(item.name, item, {"kind": "categorical", "table": table})


def _add_sequence(inputs: Inputs, sequence: SequenceChoice, item: Column | None) -> None:
    feature = inputs.features.get(item.name) if item is not None else None
    tables: dict[str, str] = {}
    for token, column in sequence.columns.items():
        if feature is not None and token in sequence.item_tokens:
            tables[token] = str(feature["table"])
        elif column.dtype != "list<timestamp>":
            tables[token] = inputs.table(column.name, column)
        inputs.columns[column.name] = column
    target = item.name if feature is not None and item is not None else None
    inputs.sequences[sequence.name] = sequence_settings(sequence, tables, target)


def _reason_against(
    column: Column, roles: Roles, labels: Sequence[Label], passed_over: Mapping[str, str]
) -> str | None:
    """Why a column is no input; None when it is one."""
    if column.dtype is None:
        return column.note
    if column.name in passed_over:
        return passed_over[column.name] or "an outcome of the same row, not chosen as a label"
    if column is roles.split:
        return "says which split a row belongs to"
    if column.distinct == 0:
        return "holds nothing but nulls"
    if column.distinct == 1 and column.null_share == 0 and not column.is_list:
        return f"is always {column.by_frequency[0]}"
    found = leak(column, labels)
    if found is not None:
        return found
    if column.side is None and _is_outcome(column):
        return "looks like another outcome of the same row; --label adds it to the tasks"
    if column.dtype == "timestamp":
        return "a further time; date_part features can read it, as can [keys] time"
    if (
        roles.time is not None
        and column.side is None
        and names.is_time(column.file_name)
        and column.is_number
    ):
        return f"a part of {roles.time.name}, written another way"
    return _reason_of_text(column)


def _is_outcome(column: Column) -> bool:
    said = names.is_outcome(column.file_name) or names.is_rating(column.file_name)
    return (
        said
        and any(True for _ in labels_of(column))
        and names.words(column.file_name)[0] not in ("num", "avg", "past", "prev")
    )


def _reason_of_text(column: Column) -> str | None:
    if column.dtype == "string" and is_unique(column):
        long = pc.mean(pc.utf8_length(column.values)).as_py() or 0
        what = "free text" if long > _LONG_TEXT or _has_blanks(column) else "an id"
        return f"{what}, (nearly) another one in every row" + (
            '; kind = "text" reads it' if what == "free text" else ""
        )
    if (
        column.dtype == "string"
        and column.side is None
        and column.distinct > 1000
        and column.repetition < 5
    ):
        return f"about {column.repetition:.1f} rows a value are too few to learn each one by heart"
    if column.dtype == "string" and _is_prose(column):
        return 'free text; kind = "text" reads it'
    if (
        column.is_integer
        and is_unique(column)
        and (names.is_id(column.file_name) or _counts_rows(column))
    ):
        return "an id or number of the row: another one in (nearly) every row"
    if column.dtype in ("list<timestamp>",) or (column.dtype or "").startswith("map"):
        return f"{column.dtype} fits no feature by itself"
    return None


def _counts_rows(column: Column) -> bool:
    """Whether whole numbers rise by one from row to row."""
    steps = np.diff(column.numbers())
    return bool(len(steps) and np.mean(steps == 1) > 0.9)


def _has_blanks(column: Column) -> bool:
    sample = column.values.drop_null()[:1000]
    return len(sample) > 0 and pc.match_substring(sample, " ").true_count * 2 > len(sample)


def _is_prose(column: Column) -> bool:
    length = pc.mean(pc.utf8_length(column.values)).as_py() or 0
    return (
        length > _LONG_TEXT
        and _has_blanks(column)
        and column.repetition < 5
        and column.distinct > 1000
    )


def _side(column: Column, roles: Roles) -> dict[str, str]:
    """User for what a user always has; `candidate`, the default, stays unsaid."""
    if roles.user is None:
        return {}
    if not column.is_list and is_constant_within(column, roles.user):
        return {"side": "user"}
    return {}


@dataclass(frozen=True)
class _Usable:
    """A column that is an input. `rows` is how many rows may teach it: a user's property is learned a user."""

    column: Column
    side: Mapping[str, str]
    rows: float


def _learnable_rows(column: Column, roles: Roles) -> float:
    keys = [key for key in (roles.user, roles.item) if key is not None and not column.is_list]
    distinct = [key.estimated_distinct for key in keys if is_constant_within(column, key)]
    return float(min([column.rows, *distinct]))


def _add_features(inputs: Inputs, usable: _Usable) -> None:
    column = usable.column
    if column.side is None and column.is_integer and names.is_position(column.file_name):
        # Logged, but decided only after ranking: the server scores everything as if it stood first.
        fixed = {"serve": "fixed", "value": column.bounds[0]}
        usable = replace(usable, side={**usable.side, **fixed})
    if column.is_list:
        _of_list(inputs, usable)
    elif column.dtype == "string" or column.dtype == "bool":
        inputs.add(column.name, column, _categorical(inputs, usable))
    elif column.is_integer:
        _of_integers(inputs, usable)
    else:
        _of_floats(inputs, usable)


def _categorical(inputs: Inputs, usable: _Usable) -> dict[str, Any]:
    table = inputs.table(usable.column.name, usable.column)
    return {"kind": "categorical", "table": table, **usable.side}


def _of_list(inputs: Inputs, usable: _Usable) -> None:
    column = usable.column
    if column.dtype == "list<float32>":
        lengths = pc.unique(pc.list_value_length(column.values).drop_null()).to_pylist()
        if len(lengths) != 1 or lengths[0] < 1:
            inputs.left_out[column.name] = (
                "lists of numbers of several lengths; a vector has one length"
            )
            return
        inputs.add(column.name, column, {"kind": "vector", "dim": lengths[0], **usable.side})
        return
    table = inputs.table(column.name, column)
    inputs.add(column.name, column, {"kind": "multi_valued", "table": table, **usable.side})


def _of_integers(inputs: Inputs, usable: _Usable) -> None:
    column, name = usable.column, usable.column.file_name
    values = column.estimated_distinct
    if values <= _IDS_ONLY_UP_TO or names.is_id(name) or names.is_user(name) or names.is_item(name):
        inputs.add(column.name, column, _categorical(inputs, usable))
        return
    inputs.add(column.name, column, _numeric(usable))
    if values <= _IDS_TOO_UP_TO and usable.rows >= _ROWS_A_VALUE * values:
        inputs.add(f"{column.name}_value", column, _categorical(inputs, usable))
    elif usable.rows >= _BUCKETS_FROM_ROWS:
        inputs.add(
            f"{column.name}_bucket", column, {"kind": "bucket", "buckets": 32, **usable.side}
        )


def _of_floats(inputs: Inputs, usable: _Usable) -> None:
    column = usable.column
    if 2 < column.distinct <= _FEW_FLOATS and column.is_whole:
        values = np.unique(
            column.numbers()[column.values.is_valid().to_numpy(zero_copy_only=False)]
        )
        edges = [round(float(edge), 6) for edge in (values[1:] + values[:-1]) / 2]
        if len(set(edges)) == len(edges):
            inputs.add(column.name, column, {"kind": "bucket", "edges": edges, **usable.side})
            return
    inputs.add(column.name, column, _numeric(usable))
    if usable.rows >= _BUCKETS_FROM_ROWS and column.distinct > _FEW_FLOATS:
        inputs.add(
            f"{column.name}_bucket", column, {"kind": "bucket", "buckets": 32, **usable.side}
        )


def _numeric(usable: _Usable) -> dict[str, Any]:
    tail = {"transform": "log1p"} if _has_long_tail(usable.column) else {}
    return {"kind": "numeric", **tail, **usable.side}


def _has_long_tail(column: Column) -> bool:
    """Whether amounts differ by orders of magnitude: never negative, the largest far beyond the usual."""
    numbers = column.numbers()
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) == 0 or numbers.min() < 0:
        return False
    return bool(
        numbers.max() > 10 * max(float(np.quantile(numbers, 0.75)), 1.0)
        or numbers.max() > 20 * max(np.median(numbers), 1)
    )


def _table(column: Column, rows: int | None) -> TableChoice:
    """Rows for the values there are and some that will come; wider the more values there are to tell apart."""
    values = column.estimated_distinct
    wanted = rows or _rounded(values + max(values // 4, 8) + RESERVED_ROWS)
    dim = next((width for limit, width in ((20, 4), (1_000, 8)) if values <= limit), 16)
    said = f"{column.distinct} values" if column.is_whole else f"at least {column.distinct} values"
    if wanted > VOCABULARY_UP_TO_ROWS:
        return TableChoice(
            min(wanted * 2, _LARGEST_TABLE), dim, f"{said}; hashed, for a vocabulary would be long"
        )
    return TableChoice(wanted, dim, said)


def _rounded(number: int) -> int:
    """Up to two digits that say something: 9,374 becomes 9,400."""
    step: int = max(10 ** (len(str(number)) - 2), 2)
    return -(-number // step) * step
