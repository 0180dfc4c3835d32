"""Text of CSV files as typed values: whole numbers, numbers, times, lists, or text after all.

A dtype is proposed only if every value in the sample can be converted to it as the pipeline will convert it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.convert import parse
from pipelines.init.dates import form_of_numbers, form_of_text
from pipelines.times import TimeForm
from recsys.errors import DataError

# Read as "nothing here" wherever they stand.
_SURE_NULLS = ("", "NULL", "null", "\\N", "None", "NaN", "nan", "<NA>")
# Read so only where the rest of the column is numbers or times: "?" and "NA" may be categories.
_POSSIBLE_NULLS = ("NA", "N/A", "n/a", "na", "?", "-", "--", ".", "none", "unknown", "missing")
_WHOLE = r"^-?(0|[1-9]\d{0,18})$"
_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LEADING_ZERO = r"^0\d+$"
_ISO = r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?( ?(Z|UTC|GMT|[+-]\d\d:?\d\d))?$"
_SEPARATORS = ("|", ";", ",")
_MOSTLY = 0.95


@dataclass(frozen=True)
class Typed:
    """Values as a dtype of the schema. `unit` belongs under [timestamps]; `note` says what was odd."""

    values: pa.Array
    dtype: str
    nulls: tuple[str, ...] = ()
    unit: TimeForm | None = None
    separator: str | None = None
    note: str = ""


def typed(text: pa.Array, *, is_time: bool) -> Typed:
    """The narrowest sensible reading of a column of text. `is_time`: its name says that it holds times."""
    distinct = pc.drop_null(text.unique())
    sure = _present(distinct, _SURE_NULLS)
    filled = _without(distinct, sure)
    values = _nulled(text, sure)
    if len(filled) == 0:
        return Typed(values, "string", sure)
    if _share(filled, _LEADING_ZERO) > 0 and _share(filled, r"^\d+$") >= _MOSTLY:
        return Typed(values, "string", sure, note="text, because leading zeros would be lost")
    possible = _present(filled, _POSSIBLE_NULLS)
    solid = _without(filled, possible)
    found = _solid(_nulled(values, possible), solid, is_time=is_time) if len(solid) else None
    if found is not None:
        nulls = (*sure, *possible)
        return Typed(found.values, found.dtype, nulls, found.unit, note=found.note)
    separator = _separator(values, filled)
    if separator is not None:
        return Typed(
            parse(values, "list<string>", separator=separator),
            "list<string>",
            sure,
            separator=separator,
        )
    return Typed(values, "string", sure, note=_mixture(solid if len(solid) else filled))


def _solid(values: pa.Array, solid: pa.Array, *, is_time: bool) -> Typed | None:
    """Numbers and times; None for text."""
    if _all(solid, _WHOLE):
        try:
            numbers = parse(values, "int64")
        except pa.ArrowInvalid:
            return Typed(values, "string", note="text, because the numbers exceed 64 bits")
        unit = form_of_numbers(numbers) if is_time else None
        if unit is not None:
            return Typed(parse(values, "timestamp", unit=unit), "timestamp", unit=unit)
        return Typed(numbers, "int64")
    if _all(solid, _NUMBER):
        numbers = parse(values, "float64")
        unit = form_of_numbers(numbers) if is_time else None
        if unit is not None:
            return Typed(parse(values, "timestamp", unit=unit), "timestamp", unit=unit)
        return Typed(numbers, "float64")
    if _all(solid, r"^(true|false|True|False|TRUE|FALSE)$"):
        return Typed(parse(values, "bool"), "bool")
    if _all(solid, _ISO):
        try:
            return Typed(parse(values, "timestamp"), "timestamp")
        except (pa.ArrowInvalid, DataError):
            return None
    unit = form_of_text(solid)
    if unit is not None:
        return Typed(parse(values, "timestamp", unit=unit), "timestamp", unit=unit)
    return None


def _separator(values: pa.Array, filled: pa.Array) -> str | None:
    """The separator of a column whose texts are made of few parts, such as `Action|Comedy`."""
    for separator in _SEPARATORS:
        holding = pc.match_substring(filled, separator)
        if holding.true_count * 4 < len(filled):
            continue
        parts = pc.split_pattern(filled, separator).flatten()
        # Sentences hold commas too: parts of a list are short and come up again and again.
        longest = pc.quantile(pc.utf8_length(parts), 0.95)[0].as_py()
        if (
            longest <= 32
            and len(parts.unique()) * 3 <= len(parts)
            and not _all(filled, r"^-?\d+,\d+$")
        ):
            return separator
    return None


def _mixture(filled: pa.Array) -> str:
    numbers = _share(filled, _NUMBER)
    if not 0.5 <= numbers < 1:
        return ""
    other = filled.filter(pc.invert(pc.match_substring_regex(filled, _NUMBER)))[0].as_py()
    return f"mostly numbers, but also text such as {other[:30]!r}"


def _share(distinct: pa.Array, pattern: str) -> float:
    return float(pc.match_substring_regex(distinct, pattern).true_count / max(len(distinct), 1))


def _all(distinct: pa.Array, pattern: str) -> bool:
    return bool(pc.match_substring_regex(distinct, pattern).true_count == len(distinct))


def _present(distinct: pa.Array, tokens: Sequence[str]) -> tuple[str, ...]:
    found = set(distinct.filter(pc.is_in(distinct, value_set=pa.array(tokens))).to_pylist())
    return tuple(token for token in tokens if token in found)


def _without(distinct: pa.Array, tokens: Sequence[str]) -> pa.Array:
    return distinct.filter(pc.invert(pc.is_in(distinct, value_set=pa.array(tokens, pa.string()))))


def _nulled(text: pa.Array, tokens: Sequence[str]) -> pa.Array:
    if not tokens:
        return text
    null = pc.is_in(text, value_set=pa.array(tokens, pa.string()))
    return pc.if_else(null, pa.scalar(None, pa.string()), text)
