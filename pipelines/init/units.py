"""Whether whole numbers are times, and in which unit, by their size: seconds, milliseconds, microseconds since 1970."""

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.convert import Unit

# 1990 to 2040, in seconds.
_EARLIEST, _LATEST = 631_152_000, 2_208_988_800
_UNITS: dict[Unit, int] = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000}


def unit_of(numbers: pa.Array, *, is_time: bool) -> Unit | None:
    """The unit in which all numbers fall between 1990 and 2040, None if there is none, or no name says time."""
    bounds = pc.min_max(numbers)
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low is None:
        return None
    for unit, factor in _UNITS.items():
        if _EARLIEST * factor <= low and high <= _LATEST * factor and is_time:
            return unit
    return None
