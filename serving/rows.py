"""Tables of raw rows in, tables of scores out: what `recsys score` reads and writes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import DataError, nearest


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
