"""Checked access to raw rows and their columns."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.errors import DataError, nearest
from recsys.schema import ARROW_TYPES, Schema

# Beside the schema's columns, whose names hold no colon, in published raw days: what identifies a row everywhere.
RAW_ROW_KEY = "row:key"
RAW_DAY_KIND = "raw day"


def read_rows(rows: Path) -> pa.Table:
    """The table of a Parquet file. Raises DataError when it is missing or cannot be read."""
    if rows.is_dir():
        raise DataError(f"{rows}: is a folder; name one Parquet file of raw rows")
    try:
        return pq.read_table(rows)
    except FileNotFoundError as error:
        raise DataError(f"{rows}: no such file; check the path") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{rows}: not a readable Parquet file; give raw rows as recsys rows writes them"
        ) from error


def column_of(raw: pa.Table, name: str, schema: Schema, where: str) -> pa.Array:
    """A raw column as one array of its declared type. Raises DataError when it is absent or of another type."""
    index = raw.schema.get_field_index(name)
    if index < 0:
        hint = nearest(name, raw.column_names)
        raise DataError(
            f"{where} needs column {name!r}, which the rows do not have{hint}; they have {_listed(raw)}"
        )
    column = raw.column(index)
    array = one_array(column)
    expected = ARROW_TYPES[schema.columns[name]]
    if array.type == expected:
        return array
    if _same_but_large(array.type, expected):
        return array.cast(expected)
    raise DataError(
        f"{where}: column {name!r} is {array.type}, the schema says {schema.columns[name]}; cast it or change [columns]"
    )


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one contiguous array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def number_of(values_B: pa.Array, column: str, where: str) -> NDArray[np.float64]:
    """A numeric column as float64 with NaN for null. Raises DataError on a NaN or infinity that is not null."""
    number_B: NDArray[np.float64] = pc.cast(values_B, pa.float64(), safe=False).to_numpy(
        zero_copy_only=False
    )
    if pa.types.is_floating(values_B.type):
        wrong = np.flatnonzero(
            ~np.isfinite(number_B) & values_B.is_valid().to_numpy(zero_copy_only=False)
        )
        if len(wrong):
            raise DataError(
                f"{where}, column {column!r}: {number_B[wrong[0]]} is not a finite number "
                f"({len(wrong)} such {'row' if len(wrong) == 1 else 'rows'} here); write null for a missing value",
                row=int(wrong[0]),
            )
    return number_B


def float32_of(number_B: NDArray[np.float64], where: str) -> NDArray[np.float32]:
    """The nearest float32 of each number. Raises DataError for one that would become infinite."""
    wrong = np.flatnonzero(np.abs(number_B) > np.finfo(np.float32).max)
    if len(wrong):
        raise DataError(
            f"{where}: {number_B[wrong[0]]:g} is beyond what a float32 holds; scale or filter it",
            row=int(wrong[0]),
        )
    return number_B.astype(np.float32)


def require_present(values_B: pa.Array, problem: str) -> None:
    """Raise DataError with this problem at the first null."""
    if values_B.null_count:
        raise DataError(
            problem, row=int(np.argmax(values_B.is_null().to_numpy(zero_copy_only=False)))
        )


def flat_list(values_B: pa.ListArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Offsets [B + 1], from 0, and the flat values of a list column; a null list is empty."""
    if values_B.null_count:
        # A null list may still own hidden values: rebuilding drops them.
        values_B = pc.if_else(values_B.is_valid(), values_B, pa.scalar([], values_B.type))
    offsets: NDArray[np.int64] = values_B.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], values_B.values.slice(offsets[0], offsets[-1] - offsets[0])


def newest(
    offsets: NDArray[np.int64], values_N: pa.Array, max_length: int
) -> tuple[NDArray[np.int64], pa.Array]:
    """The last `max_length` values of each list, as offsets and flat values."""
    lengths_B = np.diff(offsets)
    if len(lengths_B) == 0 or lengths_B.max() <= max_length:
        return offsets, values_N
    kept_B = np.minimum(lengths_B, max_length)
    kept_offsets = np.concatenate([[0], np.cumsum(kept_B)])
    index_N = np.arange(kept_offsets[-1]) + np.repeat(
        offsets[1:] - kept_B - kept_offsets[:-1], kept_B
    )
    return kept_offsets, values_N.take(pa.array(index_N))


def _same_but_large(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a type is the expected one but for 64-bit offsets or the name of a list's child."""
    if pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return bool(pa.types.is_string(expected))
    if pa.types.is_list(expected) and (pa.types.is_list(found) or pa.types.is_large_list(found)):
        value_type, wanted = found.value_type, expected.value_type
        return bool(value_type == wanted) or _same_but_large(value_type, wanted)
    if pa.types.is_map(expected) and pa.types.is_map(found):
        same = bool(found.item_type == expected.item_type)
        return same and _same_but_large(found.key_type, expected.key_type)
    return False


def _listed(raw: pa.Table) -> str:
    names = raw.column_names
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
