"""Batches of files with the dtypes of the schema; a value that does not fit is named with its file and row."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa

from pipelines.convert import convert, first_failure, parse, plain
from pipelines.files import RawBatch, Slice, read
from pipelines.times import TimeForm, advice
from recsys.errors import DataError
from recsys.raw import one_array
from recsys.schema import ARROW_TYPES, Schema


def read_typed(
    piece: Slice, columns: Sequence[str], *, schema: Schema, timestamps: Mapping[str, TimeForm]
) -> Iterator[RawBatch]:
    """Batches of a slice whose declared columns have the schema's dtypes; others keep the file's family of types.

    Raises DataError naming file, row (counted from 1), column, value and what to do.
    """
    declared = {
        name: ARROW_TYPES[schema.columns[name]] for name in columns if name in schema.columns
    }
    for batch in read(piece, columns, declared=declared):
        arrays = [_typed(batch, name, schema, timestamps.get(name)) for name in columns]
        yield RawBatch(batch.file, batch.first_row, pa.table(arrays, names=list(columns)))


def _typed(batch: RawBatch, name: str, schema: Schema, unit: TimeForm | None) -> pa.Array:
    values = one_array(batch.table.column(name))
    dtype = schema.columns.get(name)
    if dtype is None:
        return plain(values)
    csv = batch.file.csv
    if csv is None and name in batch.stated:
        change = partial(parse, dtype=dtype, unit=unit)
    elif csv is None:
        change = partial(convert, dtype=dtype, unit=unit)
    else:
        change = partial(
            parse,
            dtype=dtype,
            unit=unit,
            separator=csv.list_separator,
            map_separator=csv.map_separator,
        )

    def fails(length: int) -> bool:
        try:
            change(values.slice(0, length))
        except pa.ArrowInvalid:
            return True
        return False

    try:
        return change(values)
    except DataError as error:
        raise DataError(f"{batch.file.path}: column {name!r} {error}") from error
    except pa.ArrowInvalid as error:
        row = first_failure(len(values), fails)
        where = f"{batch.file.path}, row {batch.first_row + row + 1}, column {name!r}"
        value = _value(values, row)
        raise DataError(
            f"{where}: found {_shown(value)}, {_advice(batch, name, dtype, value, unit, row=row)}"
        ) from error


def _advice(
    batch: RawBatch, name: str, dtype: str, value: object, unit: TimeForm | None, *, row: int
) -> str:
    if dtype == "timestamp" and isinstance(value, str | int | float):
        is_first = batch.first_row == 0 and not batch.table.column(name)[:row].drop_null()
        return advice(value, unit, column=name, is_first=is_first)
    hint = "name it in csv.nulls, " if batch.file.csv else ""
    return f"which is no {dtype}; correct the file, {hint}or change [columns]"


def _value(values: pa.Array, row: int) -> object:
    """A value as Python has it; a time beyond the years that Python knows as NumPy does."""
    try:
        return values[row].as_py()
    except (ValueError, OverflowError):
        return values.slice(row, 1).to_numpy(zero_copy_only=False)[0]


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
