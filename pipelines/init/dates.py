"""How times are written as text or numbers: ISO 8601, a format of strptime, or a unit since 1970."""

import itertools
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.times import TimeForm, parse_times

# 1990 to 2040, in seconds; as dates 19900101 to 20401231.
_EARLIEST, _LATEST = 631_152_000, 2_208_988_800
_EARLIEST_DATE, _LATEST_DATE = 19_900_101, 20_401_231
_UNITS = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000}
_LOOKS_LIKE_A_DATE = (
    r"^([A-Za-z]{3},? )?"
    r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}[-/ ][A-Za-z]{3,9}[-/ ,]+\d{2,4}|[A-Za-z]{3,9} \d{1,2},? )"
)
_DATES = (
    *(
        date.replace("/", separator)
        for separator in "/.-"
        for date in ("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d")
    ),
    *(date.replace("/", separator) for separator in "/.-" for date in ("%d/%m/%y", "%m/%d/%y")),
    *("%d-%b-%Y", "%d %b %Y", "%d %B %Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y"),
)
_TIMES = (
    *("", " %H:%M:%S", " %H:%M", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p"),
    *(", %H:%M:%S", ", %H:%M", "T%H:%M:%S", "T%H:%M"),
)
_WHOLE_FORMS = (
    "%a %b %d %H:%M:%S %z %Y",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
    "%d/%b/%Y:%H:%M:%S %z",
)
_TRIED_TEXTS = 50


def form_of_text(distinct: pa.Array) -> TimeForm | None:
    """The strptime format that all texts are written in, None if there is none.

    Where both the day and the month could stand first, the order of the texts in the file decides, for times
    mostly rise; then how close they lie to each other.
    """
    if not pc.all(pc.match_substring_regex(distinct, _LOOKS_LIKE_A_DATE)).as_py():
        return None
    few = distinct[:_TRIED_TEXTS]
    forms = [form for form in _forms() if _reads(few, form) and _reads(distinct, form)]
    return max(forms, key=lambda form: _plausibility(distinct, form), default=None)


def form_of_numbers(numbers: pa.Array) -> TimeForm | None:
    """The unit in which all numbers fall between 1990 and 2040, or `%Y%m%d` for numbers such as 20261003; else None."""
    bounds = pc.min_max(numbers)
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low is None:
        return None
    for unit, factor in _UNITS.items():
        if _EARLIEST * factor <= low and high <= _LATEST * factor:
            return unit
    if low >= _EARLIEST_DATE and high <= _LATEST_DATE and pa.types.is_integer(numbers.type):
        text = pc.drop_null(numbers.unique()).cast(pa.string())
        return "%Y%m%d" if _reads(text, "%Y%m%d") else None
    return None


def _forms() -> Iterator[str]:
    yield from (date + time for date, time in itertools.product(_DATES, _TIMES))
    yield from _WHOLE_FORMS


def _reads(text: pa.Array, form: str) -> bool:
    try:
        parse_times(text, form)
    except pa.ArrowInvalid:
        return False
    return True


def _plausibility(distinct: pa.Array, form: str) -> tuple[float, int]:
    """Share of texts, in the order of the file, whose time is not before the one above; then how close they lie."""
    moments = parse_times(distinct, form).cast(pa.int64())
    bounds = pc.min_max(moments)
    rising = pc.greater_equal(moments[1:], moments[:-1]).true_count
    return round(rising / len(moments), 2), bounds["min"].as_py() - bounds["max"].as_py()
