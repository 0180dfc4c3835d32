"""Tables of raw rows in, tables of scores out: what `recsys score` reads and writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.errors import DataError, nearest
from recsys.schema import Schema


def select(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns of a table, each once. Raises DataError naming the first that the rows lack."""
    for name in columns:
        if name not in rows.column_names:
            hint = nearest(name, rows.column_names)
            raise DataError(
                f"the rows have no column {name!r}{hint}, which the model reads; add it"
            )
    return rows.select(list(columns))


def score_table(rows: pa.Table, chunks: Sequence[Mapping[str, Any]], schema: Schema) -> pa.Table:
    """The rows' kept key columns beside the score columns of consecutive chunks; NaN becomes null."""
    columns = {name: rows.column(name) for name in schema.keys.kept if name in rows.column_names}
    for name in chunks[0]:
        values = np.concatenate([np.asarray(chunk[name], dtype=np.float64) for chunk in chunks])
        columns[name] = pa.array(values, from_pandas=True)
    return pa.table(columns)
