"""Tables of raw rows in, tables of scores or requests out: what `recsys score` reads, writes and sends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import DataError, nearest
from recsys.raw import number_of, one_array
from recsys.request_rows import RequestColumns


def select(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns of a table, each once. Raises DataError naming the first that the rows lack."""
    for name in columns:
        if name not in rows.column_names:
            hint = nearest(name, rows.column_names)
            raise DataError(
                f"the rows have no column {name!r}{hint}, which the model reads; add it"
            )
    return rows.select(list(columns))


def score_table(
    rows: pa.Table, chunks: Sequence[Mapping[str, NDArray[np.float64]]], keys: Sequence[str]
) -> pa.Table:
    """The rows' key columns, where they have them, beside the score columns of consecutive chunks; NaN becomes null."""
    columns = {name: rows.column(name) for name in keys if name in rows.column_names}
    for name in chunks[0]:
        values = np.concatenate([chunk[name] for chunk in chunks])
        columns[name] = pa.array(values, from_pandas=True)
    return pa.table(columns)


def request_tree(rows: pa.Table, columns: RequestColumns) -> dict[str, Any]:
    """The request that carries rows of one user: what it holds once is the first row's. Raises DataError."""
    first = rows.slice(0, 1)
    return request_of(
        user=next(iter(json_rows(first, columns.user)), {}),
        context=next(iter(json_rows(first, columns.context)), {}),
        candidates=json_rows(rows, columns.candidate),
    )


def request_of(
    *, user: Mapping[str, Any], context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The request of columns as `json_rows` gives them."""
    names = candidates[0] if candidates else ()
    return {
        "user": {"features": user},
        "context": {"features": context},
        "candidates": {
            # A model without candidate columns learns their number from the ids.
            "ids": list(range(len(candidates))),
            "features": {name: [item[name] for item in candidates] for name in names},
        },
    }


def json_rows(rows: pa.Table, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of each row as JSON carries them, maps as objects.

    Raises DataError for a column that is not there, and for a NaN or infinity: JSON has none, and null means something
    else.
    """
    selected = select(rows, columns)
    if not columns:
        return [{} for _ in range(rows.num_rows)]
    maps: list[str] = []
    for name in columns:
        column = one_array(selected.column(name))
        if pa.types.is_floating(column.type):
            number_of(column, name, "rows")
        if pa.types.is_map(column.type):
            maps.append(name)
    found: list[dict[str, Any]] = selected.to_pylist()
    for row, values in enumerate(found):
        for name in maps:
            values[name] = _object(values[name], name, row)
    return found


def _object(pairs: list[tuple[Any, Any]] | None, name: str, row: int) -> dict[str, Any] | None:
    """A map with its keys as text; of a key that comes twice the last value, as the encoder has it."""
    if pairs is None:
        return None
    for key, value in pairs:
        if value is not None and not np.isfinite(value):
            raise DataError(
                f"rows, column {name!r}: {value} at key {key!r} is not a finite number; write null for a missing value",
                row=row,
            )
    return {str(key): value for key, value in pairs}
