"""Columns of files to the dtypes of the schema, without guessing and without losing anything.

Text from a CSV file is parsed. A typed column (Parquet, JSON lines) must already be of the right family: text does not
become a number there, a number does not become text. Within a family every value has to fit.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.maps import convert_map, parse_map
from pipelines.scalars import other_family, plain, scalars
from pipelines.times import TimeForm, Unit, parse_times
from recsys.errors import DataError
from recsys.schema import ARROW_TYPES

__all__ = ["Unit", "convert", "first_failure", "parse", "plain"]


def convert(values: pa.Array, dtype: str, *, unit: TimeForm | None = None) -> pa.Array:
    """Typed values as a schema dtype. `unit` (or format) says what times mean that are not written as such.

    Raises DataError when the whole column is of another family, and pa.ArrowInvalid when a value does not fit.
    """
    target = ARROW_TYPES[dtype]
    values = plain(values)
    if pa.types.is_null(values.type) or (values.type == target and "timestamp" not in dtype):
        return values.cast(target)
    if pa.types.is_map(target):
        return convert_map(values, target)
    if not pa.types.is_list(target):
        return scalars(values, target, unit)
    if not _is_list(values.type):
        raise other_family(values.type, dtype)
    # Rebuilt from its flat values, so that each value obeys the rules of its own family.
    values = values.cast(pa.list_(values.type.value_type))
    flat = scalars(plain(values.flatten()), target.value_type, unit)
    lengths = values.value_lengths().fill_null(0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    mask = values.is_null() if values.null_count else None
    return pa.ListArray.from_arrays(offsets, flat, mask=mask)


def parse(
    text: pa.Array,
    dtype: str,
    *,
    unit: TimeForm | None = None,
    separator: str | None = None,
    map_separator: str = ":",
) -> pa.Array:
    """Text of a CSV file as a schema dtype; lists and maps are split at `separator`, an empty text is an empty one.

    Raises DataError when the column cannot be parsed at all, and pa.ArrowInvalid when one of its values cannot.
    """
    target = ARROW_TYPES[dtype]
    if not pa.types.is_list(target) and not pa.types.is_map(target):
        return _parsed(text, target, unit)
    if separator is None:
        raise DataError(f"is text in a CSV file, the schema says {dtype}; say csv.list_separator")
    if pa.types.is_map(target):
        return parse_map(text, target, separator=separator, map_separator=map_separator)
    listed = pc.split_pattern(text, separator)
    empty = pa.scalar([], listed.type)
    listed = pc.if_else(pc.equal(text, ""), empty, listed)
    flat = _parsed(listed.flatten(), target.value_type, unit)
    lengths = listed.value_lengths().fill_null(0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    return pa.ListArray.from_arrays(offsets, flat, mask=text.is_null() if text.null_count else None)


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


def _parsed(text: pa.Array, target: pa.DataType, unit: TimeForm | None) -> pa.Array:
    return parse_times(text, unit) if pa.types.is_timestamp(target) else text.cast(target)


def _is_list(found: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(found)
        or pa.types.is_large_list(found)
        or pa.types.is_fixed_size_list(found)
    )
