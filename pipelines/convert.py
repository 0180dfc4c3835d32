"""Columns of files to the dtypes of the schema, without guessing and without losing anything.

Text from a CSV file is parsed. A typed column (Parquet) must already be of the right family: text does not become a
number there, a number does not become text. Within a family every value has to fit.
"""

import re
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.schema import ARROW_TYPES, TIMESTAMP

Unit = Literal["seconds", "milliseconds", "microseconds"]

_MICROSECONDS: dict[Unit, int] = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
_ZONE = r"(Z|[+-]\d\d:?\d\d)$"
_DATE_ONLY = r"^\d{4}-\d\d-\d\d$"


def convert(values: pa.Array, dtype: str, *, unit: Unit | None = None) -> pa.Array:
    """Typed values as a schema dtype. `unit` says what integers mean where a timestamp is wanted.

    Raises DataError when the whole column is of another family, and pa.ArrowInvalid when a value does not fit.
    """
    target = ARROW_TYPES[dtype]
    values = plain(values)
    if pa.types.is_null(values.type) or values.type == target:
        return values.cast(target)
    if not pa.types.is_list(target):
        return _scalars(values, target, unit)
    if not _is_list(values.type):
        raise _other_family(values.type, dtype)
    # Rebuilt from its flat values, so that each value obeys the rules of its own family.
    values = values.cast(pa.list_(values.type.value_type))
    flat = _scalars(plain(values.flatten()), target.value_type, unit)
    lengths = values.value_lengths().fill_null(0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    mask = values.is_null() if values.null_count else None
    return pa.ListArray.from_arrays(offsets, flat, mask=mask)


def parse(
    text: pa.Array, dtype: str, *, unit: Unit | None = None, separator: str | None = None
) -> pa.Array:
    """Text of a CSV file as a schema dtype; lists are split at `separator`, an empty text is an empty list.

    Raises DataError when the column cannot be parsed at all, and pa.ArrowInvalid when one of its values cannot.
    """
    target = ARROW_TYPES[dtype]
    if pa.types.is_list(target):
        if separator is None:
            raise DataError(
                f"is text in a CSV file, the schema says {dtype}; say csv.list_separator"
            )
        listed = pc.split_pattern(text, separator)
        empty = pa.scalar([], listed.type)
        listed = pc.if_else(pc.equal(text, ""), empty, listed)
        flat = _parsed(listed.flatten(), target.value_type, unit)
        lengths = listed.value_lengths().fill_null(0)
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
        return pa.ListArray.from_arrays(
            offsets, flat, mask=text.is_null() if text.null_count else None
        )
    return _parsed(text, target, unit)


def first_failure(length: int, fails: Callable[[int], bool]) -> int:
    """The first of `length` values that makes a check fail. `fails(n)` tells whether the first n values fail it."""
    passing, failing = 0, length
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if fails(middle):
            failing = middle
        else:
            passing = middle
    return failing - 1


def _parsed(text: pa.Array, target: pa.DataType, unit: Unit | None) -> pa.Array:
    if not pa.types.is_timestamp(target):
        return text.cast(target)
    if unit is not None:
        return _scalars(text.cast(pa.int64()), target, unit)
    return _parse_times(text)


def _parse_times(text: pa.Array) -> pa.Array:
    """ISO 8601 times as UTC; a text without a zone is UTC already."""
    text = pc.replace_substring_regex(text, r" ?(UTC|GMT)$", "Z")
    text = pc.if_else(
        pc.match_substring_regex(text, _DATE_ONLY),
        pc.binary_join_element_wise(text, "00:00", " "),
        text,
    )
    zoned = pc.if_else(
        pc.match_substring_regex(text, _ZONE), text, pc.binary_join_element_wise(text, "Z", "")
    )
    return zoned.cast(TIMESTAMP)


def _scalars(values: pa.Array, target: pa.DataType, unit: Unit | None) -> pa.Array:
    found, types = values.type, pa.types
    if types.is_null(found) or found == target:
        return values.cast(target)
    if types.is_timestamp(target):
        return _times(values, unit)
    text = types.is_string(found)
    if text != types.is_string(target) or not (text or _is_number(found)):
        raise _other_family(found, str(target))
    if types.is_boolean(target):
        _require_zero_or_one(values)
    # Rounding to the nearest float is what a float means; every other loss is refused.
    rounding = types.is_floating(target)
    return values.cast(target, safe=not rounding)


def _times(values: pa.Array, unit: Unit | None) -> pa.Array:
    found, types = values.type, pa.types
    if types.is_timestamp(found):
        # Nanoseconds are cut to microseconds.
        return values.cast(pa.timestamp("us", tz=found.tz), safe=False).cast(TIMESTAMP)
    if types.is_date(found):
        return values.cast(TIMESTAMP)
    if types.is_string(found):
        return _parse_times(values)
    if types.is_integer(found):
        if unit is None:
            raise DataError(
                "holds integers, the schema says timestamp; say their unit under [timestamps], such as "
                '"seconds" or "milliseconds"'
            )
        return pc.multiply_checked(values.cast(pa.int64()), _MICROSECONDS[unit]).cast(TIMESTAMP)
    raise _other_family(found, "timestamp")


def _require_zero_or_one(values: pa.Array) -> None:
    if pa.types.is_boolean(values.type):
        return
    wrong = values.filter(pc.and_(pc.not_equal(values, 0), pc.not_equal(values, 1)))
    if len(wrong):
        raise pa.ArrowInvalid(f"{wrong[0]} is neither 0 nor 1")


def plain(values: pa.Array) -> pa.Array:
    """The same values without what only a file cares about: dictionaries, large and view strings, decimals."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    if pa.types.is_decimal(values.type):
        return values.cast(pa.float64())
    return values


def _is_number(found: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_boolean(found)
    )


def _is_list(found: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(found)
        or pa.types.is_large_list(found)
        or pa.types.is_fixed_size_list(found)
    )


def _other_family(found: pa.DataType, dtype: str) -> DataError:
    name = re.sub(r"^timestamp.*", "timestamp", dtype)
    return DataError(
        f"is {found} in the file, the schema says {name}; change the file or [columns]"
    )
