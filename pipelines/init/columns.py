"""The columns of the given files as the schema would hold them, with what the sampled rows say about each."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.convert import convert, plain
from pipelines.init import names
from pipelines.init.dates import form_of_numbers
from pipelines.init.sample import Sample
from pipelines.init.text import Typed, typed
from pipelines.times import TimeForm
from recsys.errors import DataError
from recsys.raw import one_array
from recsys.schema import ARROW_TYPES

_SMALL_INTEGER = 2**30
_EXACT_FLOAT32 = 2**24


@dataclass(frozen=True)
class Column:
    """A column of the sample. `name` is the one used everywhere, `file_name` the file's own.

    `values` are the sampled rows in `dtype`; without a dtype the schema cannot hold them, and `note` says why. `rows`
    is how many there are in all, of which the sample holds some. `side` numbers the side table it comes from, and
    `own_repetition` is rows a value in that table.
    """

    name: str
    file_name: str
    dtype: str | None
    values: pa.Array
    rows: int
    nulls: tuple[str, ...] = ()
    unit: TimeForm | None = None
    separator: str | None = None
    note: str = ""
    side: int | None = None
    own_repetition: float | None = None

    @property
    def is_number(self) -> bool:
        return self.dtype is not None and self.dtype.startswith(("int", "float", "bool"))

    @property
    def is_integer(self) -> bool:
        return self.dtype is not None and self.dtype.startswith(("int", "bool"))

    @property
    def is_list(self) -> bool:
        return self.dtype is not None and self.dtype.startswith("list")

    @property
    def is_id(self) -> bool:
        """Whether values may be ids of a table: whole numbers or text."""
        return self.is_integer or self.dtype == "string"

    @cached_property
    def _counts(self) -> pa.StructArray:
        values = self.values.flatten() if self.is_list else self.values
        return pc.value_counts(values.drop_null())

    @cached_property
    def distinct(self) -> int:
        """Different values in the sample (of a list: different members)."""
        return len(self._counts)

    @cached_property
    def estimated_distinct(self) -> int:
        """Different values in all rows: those seen once grow by the root of the sampled share.

        The guaranteed-error estimator of Charikar et al., PODS 2000.
        """
        once = int(pc.sum(pc.equal(self._counts.field(1), 1)).as_py() or 0)
        growth = (self.rows / max(len(self.values), 1)) ** 0.5
        estimate: float = self.distinct - once + max(growth, 1.0) * once
        return round(estimate)

    @property
    def is_whole(self) -> bool:
        return bool(len(self.values) >= self.rows)

    @cached_property
    def null_share(self) -> float:
        return float(self.values.null_count / max(len(self.values), 1))

    @cached_property
    def repetition(self) -> float:
        """Rows a value, on average."""
        return float((len(self.values) - self.values.null_count) / max(self.distinct, 1))

    @cached_property
    def by_frequency(self) -> list[Any]:
        """The values, most frequent first; ties in the order of the values' text."""
        found = zip(
            self._counts.field(0).to_pylist(), self._counts.field(1).to_pylist(), strict=True
        )
        return [value for value, _ in sorted(found, key=lambda pair: (-pair[1], str(pair[0])))]

    @cached_property
    def bounds(self) -> tuple[Any, Any]:
        found = pc.min_max(self.values)
        return found["min"].as_py(), found["max"].as_py()

    def numbers(self) -> NDArray[np.float64]:
        """Values as float64 with NaN for null; only for numbers and times."""
        values = self.values.cast(pa.int64()) if self.dtype == "timestamp" else self.values
        found: NDArray[np.float64] = pc.cast(values, pa.float64(), safe=False).to_numpy(
            zero_copy_only=False
        )
        return found

    def codes(self) -> NDArray[np.int64]:
        """Values as numbers of distinct values, -1 for null."""
        codes: NDArray[np.int64] = (
            self.values.dictionary_encode()
            .indices.fill_null(-1)
            .cast(pa.int64())
            .to_numpy(zero_copy_only=False)
        )
        return codes


def columns_of(sample: Sample, *, times: Collection[str] = ()) -> list[Column]:
    """The columns of a sample, typed, with clean names; `times` are columns known to hold times."""
    found: list[Column] = []
    given = set(sample.table.column_names)
    for file_name in sample.table.column_names:
        others = {column.name for column in found}
        clean = names.clean(file_name, others)
        if clean != file_name:
            clean = names.clean(file_name, others | given)
        values = plain(one_array(sample.table.column(file_name)))
        is_time = file_name in times or names.is_time(file_name)
        item = (
            _typed_text(values, file_name, is_time=is_time)
            if sample.files[0].format == "csv"
            else _typed_values(values, is_time=is_time)
        )
        found.append(_column(item, clean, file_name, sample.rows))
    return found


def _typed_text(values: pa.Array, name: str, *, is_time: bool) -> Typed:
    item = typed(values, is_time=is_time)
    if item.dtype in ("int64", "float64"):
        named = names.is_user(name) or names.is_item(name) or names.is_id(name)
        return (
            item
            if named and item.dtype == "int64"
            else replace(item, **_narrowed(item.values, item.dtype))
        )
    return item


def _typed_values(values: pa.Array, *, is_time: bool) -> Typed | str:
    """Values of a typed file; a text that says why the schema cannot hold them."""
    types, found = pa.types, values.type
    if types.is_null(found):
        return Typed(values.cast(pa.string()), "string")
    if types.is_integer(found):
        unit = form_of_numbers(values) if is_time else None
        if unit is not None:
            return Typed(convert(values, "timestamp", unit=unit), "timestamp", unit=unit)
    dtype = _dtype_of(found)
    if dtype is None:
        return f"{found} has no counterpart in the schema"
    if dtype == "string":
        item = typed(values, is_time=is_time)
        if item.dtype == "timestamp" and not item.nulls:
            return item
    try:
        return Typed(convert(values, dtype), dtype)
    except (pa.ArrowInvalid, DataError) as error:
        return f"{found} cannot be converted to {dtype} ({error})"


def _dtype_of(found: pa.DataType) -> str | None:
    types = pa.types
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        inner = _dtype_of(found.value_type)
        if inner in ("int8", "int16", "int32", "bool"):
            inner = "int64"
        listed = f"list<{'float32' if inner == 'float64' else inner}>"
        return listed if listed in ARROW_TYPES else None
    if types.is_date(found) or types.is_timestamp(found):
        return "timestamp"
    if types.is_unsigned_integer(found):
        return {8: "int16", 16: "int32"}.get(found.bit_width, "int64")
    if types.is_float16(found):
        return "float32"
    return next((name for name, known in ARROW_TYPES.items() if known == found), None)


def _narrowed(values: pa.Array, dtype: str) -> dict[str, Any]:
    """A smaller dtype with room beyond the sample: int32 for counts, float32 where it is as exact as was written."""
    bounds = pc.min_max(values)
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if dtype == "int64":
        if low in (0, 1) and high <= 1:
            return {"values": values.cast(pa.int8()), "dtype": "int8"}
        small = max(abs(low), abs(high)) < _SMALL_INTEGER
        return {"values": values.cast(pa.int32()), "dtype": "int32"} if small else {}
    if max(abs(low), abs(high)) < _EXACT_FLOAT32:
        return {"values": values.cast(pa.float32()), "dtype": "float32"}
    return {}


def _column(item: Typed | str, name: str, file_name: str, rows: int) -> Column:
    if isinstance(item, str):
        return Column(name, file_name, None, pa.nulls(0), rows, note=item)
    return Column(
        name,
        file_name,
        item.dtype,
        item.values,
        rows,
        item.nulls,
        item.unit,
        item.separator,
        item.note,
    )
