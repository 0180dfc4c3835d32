"""Times of files as UTC timestamps: ISO 8601 text, text of a stated format, or numbers of a stated unit.

A form is what `[timestamps]` says of a column: a unit, or a format as `datetime.strptime` knows it. Text without a zone
is UTC. Nothing is rounded but nanoseconds and fractions of them.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator

from recsys.errors import DataError, nearest
from recsys.schema import TIMESTAMP

Unit = Literal["seconds", "milliseconds", "microseconds"]

_MICROSECONDS: dict[str, int] = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_ZONE = r"(Z|[+-]\d\d:?\d\d)$"
# Digits beyond microseconds, as pandas writes them.
_NANOSECONDS = r"(:\d\d\.\d{6})\d{1,3}"
_DATE_ONLY = r"^\d{4}-\d\d-\d\d$"
# Formats that Arrow reads as strptime does, once the result is written back and compared.
_FAST_FORMAT = re.compile(r"(%[YmdHMS]|[^%])+")
_ANY_TIME = datetime(2026, 10, 1, 13, 5, 7, 250_000, tzinfo=UTC)


def _checked_form(form: str) -> str:
    if form in _MICROSECONDS:
        return form
    if "%" not in form:
        raise ValueError(
            f"{form!r} is neither a unit ({', '.join(get_args(Unit))}) nor a format such as "
            f'"%d/%m/%Y %H:%M"{nearest(form, _MICROSECONDS)}'
        )
    try:
        found = datetime.strptime(_ANY_TIME.strftime(form), form)
    except (ValueError, re.error) as error:
        raise ValueError(f"{form!r} is no format that strptime reads ({error})") from error
    if found.date() != _ANY_TIME.date():
        raise ValueError(f"{form!r} does not name year, month and day; a time needs all three")
    return form


TimeForm = Annotated[str, AfterValidator(_checked_form)]


def times(values: pa.Array, form: TimeForm | None) -> pa.Array | None:
    """Typed values as timestamps, None when their type can never be one.

    Raises DataError for numbers without a form, and pa.ArrowInvalid where a value is no time.
    """
    found, types = values.type, pa.types
    if types.is_timestamp(found) or types.is_date(found):
        if not types.is_date(found) and found.unit == "ns":
            # Nanoseconds are cut to microseconds.
            values = values.cast(pa.timestamp("us", tz=found.tz), safe=False)
        return _within_calendar(values.cast(TIMESTAMP))
    if types.is_string(found):
        return parse_times(values, form)
    if not types.is_integer(found) and not types.is_floating(found):
        return None
    if form is None:
        raise DataError(
            "holds numbers, the schema says timestamp; say their unit under [timestamps], such as "
            '"seconds" or "milliseconds"'
        )
    if form in _MICROSECONDS:
        return _since_1970(values, _MICROSECONDS[form])
    return parse_times(values.cast(pa.int64()).cast(pa.string()), form)


def parse_times(text: pa.Array, form: TimeForm | None) -> pa.Array:
    """Text as timestamps. Raises pa.ArrowInvalid where a value is no time of this form."""
    if form is None:
        return _parse_iso(text)
    if form in _MICROSECONDS:
        return _since_1970(_numbers(text), _MICROSECONDS[form])
    return _parse_format(text, form)


def advice(value: object, form: TimeForm | None, *, column: str, is_first: bool) -> str:
    """What to do about a value that is no time of its form. `is_first`: no row before it was one."""
    number = re.fullmatch(r"-?\d+(\.\d+)?", str(value))
    if form in _MICROSECONDS:
        if number:
            return f"which as {form} lies beyond the year 9999; correct timestamps.{column}"
        return f"which is no number of {form}; correct the file, or timestamps.{column}"
    if form is not None:
        return (
            f'which does not read as "{form}"; write all times of the column in that format, '
            f"or correct timestamps.{column}"
        )
    if number and is_first:
        return f'which is no ISO 8601 time; say its unit: {column} = "{_likely_unit(str(value))}" under [timestamps]'
    if is_first:
        return (
            "which is no ISO 8601 time; say how the column's times are written under [timestamps], such as "
            f'{column} = "%d/%m/%Y %H:%M"'
        )
    return (
        "which is no ISO 8601 time, as those before it are; write all times of a column in one format, "
        "or correct the row"
    )


def _likely_unit(number: str) -> Unit:
    digits = len(number.lstrip("-").partition(".")[0])
    return "seconds" if digits <= 11 else "milliseconds" if digits <= 14 else "microseconds"


def _parse_iso(text: pa.Array) -> pa.Array:
    text = pc.replace_substring_regex(text, r" ?(UTC|GMT)$", "Z")
    text = pc.replace_substring_regex(text, _NANOSECONDS, r"\1")
    text = pc.if_else(
        pc.match_substring_regex(text, _DATE_ONLY),
        pc.binary_join_element_wise(text, "00:00", " "),
        text,
    )
    zoned = pc.if_else(
        pc.match_substring_regex(text, _ZONE), text, pc.binary_join_element_wise(text, "Z", "")
    )
    return zoned.cast(TIMESTAMP)


def _parse_format(text: pa.Array, form: str) -> pa.Array:
    if _FAST_FORMAT.fullmatch(form):
        found = pc.strptime(text, format=form, unit="s", error_is_null=True)
        # Arrow takes the 31st of February for the 3rd of March, and skips what follows the format.
        if pc.all(pc.equal(pc.strftime(found, format=form), text), min_count=0).as_py() and (
            found.null_count == text.null_count
        ):
            return found.cast(pa.timestamp("us")).cast(TIMESTAMP)
    distinct = pc.dictionary_encode(text)
    made = [_microseconds(value, form) for value in distinct.dictionary.to_pylist()]
    return pa.array(made, pa.int64()).cast(TIMESTAMP).take(distinct.indices)


def _microseconds(text: str, form: str) -> int:
    try:
        moment = datetime.strptime(text, form)
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from error
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (zoned - _EPOCH) // timedelta(microseconds=1)


def _numbers(text: pa.Array) -> pa.Array:
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text.cast(pa.float64())


def _since_1970(values: pa.Array, factor: int) -> pa.Array:
    if pa.types.is_floating(values.type):
        moments = pc.round(pc.multiply(values.cast(pa.float64()), float(factor))).cast(pa.int64())
    else:
        moments = pc.multiply_checked(values.cast(pa.int64()), factor)
    return _within_calendar(moments.cast(TIMESTAMP))


def _within_calendar(moments: pa.Array) -> pa.Array:
    """The same timestamps. Raises pa.ArrowInvalid where one lies beyond the years 1 to 9999."""
    bounds = pc.min_max(moments.cast(pa.int64()))
    if len(moments) > moments.null_count and not (
        bounds["min"].as_py() >= _FIRST and bounds["max"].as_py() <= _LAST
    ):
        raise pa.ArrowInvalid("beyond the years 1 to 9999")
    return moments
