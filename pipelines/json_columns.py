"""JSON values as Arrow columns, without guessing: a column holds values of one kind, and null.

Kinds are JSON's own. Numbers without a fraction are int64, others float64; a list is a list of one kind; an object is a
map whose values are numbers.
"""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal

import pyarrow as pa

from recsys.errors import DataError
from recsys.schema import dtype_name

Kind = Literal["boolean", "number", "string", "list", "object"]

_KINDS: dict[type, Kind] = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "list",
    dict: "object",
}
_SHOWN: dict[Kind, str] = {
    "boolean": "true or false",
    "number": "a number",
    "string": "text",
    "list": "a list",
    "object": "an object",
}


def json_array(values: Sequence[Any], declared: pa.DataType | None = None) -> pa.Array:
    """Values of one column as an array of the type that JSON gives them; `declared` says which kinds are wanted.

    Raises DataError with the row (counted within `values`) of the first value that is of another kind.
    """
    kind = _kind_of(values, declared)
    if kind is None:
        return pa.nulls(len(values))
    if kind == "list":
        return _lists(values, declared)
    if kind == "object":
        return _maps(values, declared)
    return _scalars(values, kind, declared)


def json_type(values: Sequence[Any], declared: pa.DataType | None = None) -> pa.DataType | None:
    """The type that values seen so far speak for, None when there are none; raises DataError when they do not agree."""
    if declared is not None and pa.types.is_floating(declared):
        # Later numbers may have a fraction.
        return None if _kind_of(values, declared) is None else pa.float64()
    found = json_array(values, declared).type
    unknown = pa.types.is_null(found) or (
        pa.types.is_list(found) and pa.types.is_null(found.value_type)
    )
    return None if unknown else found


def _kind_of(values: Iterable[Any], declared: pa.DataType | None) -> Kind | None:
    """The one kind of some values, None when all are null. Raises DataError at the first that has another."""
    kinds = {_KINDS[type(value)] for value in values if value is not None}
    wanted = _wanted(declared)
    if len(kinds) <= 1 and kinds <= wanted:
        return next(iter(kinds), None)
    first: Kind | None = None
    for row, value in enumerate(values):
        if value is None:
            continue
        kind = _KINDS[type(value)]
        if kind not in wanted:
            raise DataError(
                f"found {_shown(value)}, {_SHOWN[kind]}, where {_asked(declared)}", row=row
            )
        if first is not None and kind != first:
            raise DataError(
                f"found {_shown(value)}, {_SHOWN[kind]}, where earlier rows hold {_SHOWN[first]}; "
                "write the column in one way",
                row=row,
            )
        first = kind
    raise AssertionError("kinds differ, so one of the values was refused")


def _wanted(declared: pa.DataType | None) -> set[Kind]:
    types = pa.types
    if declared is None:
        return set(_SHOWN)
    if types.is_list(declared):
        return {"list"}
    if types.is_map(declared):
        return {"object"}
    if types.is_string(declared):
        return {"string"}
    return {"number", "string"} if types.is_timestamp(declared) else {"number", "boolean"}


def _asked(declared: pa.DataType | None) -> str:
    assert declared is not None, "without a declaration every kind is wanted"
    kind = next(kind for kind in _SHOWN if kind in _wanted(declared) - {"boolean"})
    advice = (
        'write it as text ("17") or declare it as a number'
        if kind == "string"
        else f"write {_SHOWN[kind]} or change [columns]"
    )
    return f"the schema says {dtype_name(declared)}; {advice}"


def _scalars(values: Sequence[Any], kind: Kind, declared: pa.DataType | None) -> pa.Array:
    if kind != "number":
        return pa.array(values, pa.string() if kind == "string" else pa.bool_())
    floating = declared is not None and pa.types.is_floating(declared)
    if not floating and _whole(values, declared):
        return _integers(values)
    for row, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise DataError(
                f"found {value}, beyond 64-bit floats; correct it, or write null", row=row
            )
    return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _whole(values: Iterable[Any], declared: pa.DataType | None) -> bool:
    """Whether numbers are read as integers. 2.0 is one where the schema asks for integers."""
    floats = [value for value in values if type(value) is float]
    asked = declared is not None and pa.types.is_integer(declared)
    return not floats or (asked and all(value.is_integer() for value in floats))


def _integers(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    except (OverflowError, pa.ArrowInvalid) as error:
        row = next(
            row
            for row, value in enumerate(values)
            if value is not None and not -(2**63) <= int(value) < 2**63
        )
        raise DataError(
            f"found {_shown(values[row])}, beyond 64-bit integers; write it as text and declare string",
            row=row,
        ) from error


def _lists(values: Sequence[Any], declared: pa.DataType | None) -> pa.Array:
    flat = [item for value in values if value for item in value]
    element = None if declared is None else declared.value_type
    items = _within_rows(flat, _rows(values), element)
    return pa.ListArray.from_arrays(_offsets(values), items, mask=_mask(values))


def _maps(values: Sequence[Any], declared: pa.DataType | None) -> pa.Array:
    if declared is None:
        _require_numbers(values)
    rows = _rows(values)
    keys: list[Any] = [key for value in values if value for key in value]
    key_type = pa.string() if declared is None else declared.key_type
    if pa.types.is_integer(key_type):
        # The keys of a JSON object are always text.
        keys = [_integer_key(key, row) for key, row in zip(keys, rows, strict=True)]
    flat = [item for value in values if value for item in value.values()]
    items = _within_rows(flat, rows, pa.float64()).cast(pa.float64())
    return pa.MapArray.from_arrays(
        _offsets(values), pa.array(keys, key_type), items, mask=_mask(values)
    )


def _rows(values: Sequence[Any]) -> list[int]:
    """The row of each item of lists or objects."""
    return [row for row, value in enumerate(values) for _ in value or ()]


def _offsets(values: Sequence[Any]) -> pa.Array:
    return pa.array([0, *accumulate(len(value or ()) for value in values)], pa.int32())


def _mask(values: Sequence[Any]) -> pa.Array:
    return pa.array([value is None for value in values], pa.bool_())


def _within_rows(items: Sequence[Any], rows: list[int], declared: pa.DataType | None) -> pa.Array:
    """The array of items that lists or objects hold; an error names the row that holds the item."""
    try:
        return json_array(items, declared)
    except DataError as error:
        raise DataError(error.problem, row=rows[error.row or 0]) from error


def _require_numbers(values: Sequence[Any]) -> None:
    for row, value in enumerate(values):
        for item in (value or {}).values():
            if item is not None and _KINDS[type(item)] != "number":
                raise DataError(
                    f"found {_shown(value)}, an object whose values are not numbers; "
                    "write its fields as columns of their own",
                    row=row,
                )


def _integer_key(key: str, row: int) -> int:
    try:
        return int(key)
    except ValueError as error:
        raise DataError(
            f"found the key {_shown(key)}, which is no integer; correct it, or declare map<string,float32>",
            row=row,
        ) from error


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
