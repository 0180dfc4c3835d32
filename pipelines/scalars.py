"""Plain columns of files to the scalar types of the schema: within a family, and without losing anything."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.times import TimeForm, times
from recsys.errors import DataError
from recsys.schema import dtype_name


def scalars(values: pa.Array, target: pa.DataType, form: TimeForm | None = None) -> pa.Array:
    """Typed values as a scalar type.

    Raises DataError for another family, and pa.ArrowInvalid where a value does not fit.
    """
    found, types = values.type, pa.types
    if types.is_null(found) or (found == target and not types.is_timestamp(target)):
        return values.cast(target)
    if types.is_timestamp(target):
        made = times(values, form)
        if made is None:
            raise other_family(found, "timestamp")
        return made
    text = types.is_string(found)
    if text != types.is_string(target) or not (text or _is_number(found)):
        raise other_family(found, dtype_name(target))
    if types.is_boolean(target):
        _require_zero_or_one(values)
    # Rounding to the nearest float is what a float means; every other loss is refused.
    rounding = types.is_floating(target)
    return values.cast(target, safe=not rounding)


def plain(values: pa.Array) -> pa.Array:
    """The same values without what only a file cares about: dictionaries, large and view strings, decimals."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    if pa.types.is_decimal(values.type):
        return values.cast(pa.float64())
    return values


def other_family(found: pa.DataType, dtype: str) -> DataError:
    """The error for a column whose type can never become what the schema says."""
    name = re.sub(r"^timestamp.*", "timestamp", dtype)
    return DataError(
        f"is {dtype_name(found)} in the file, the schema says {name}; change the file or [columns]"
    )


def _require_zero_or_one(values: pa.Array) -> None:
    if pa.types.is_boolean(values.type):
        return
    wrong = values.filter(pc.and_(pc.not_equal(values, 0), pc.not_equal(values, 1)))
    if len(wrong):
        raise pa.ArrowInvalid(f"{wrong[0]} is neither 0 nor 1")


def _is_number(found: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_boolean(found)
    )
