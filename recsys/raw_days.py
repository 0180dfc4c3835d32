"""Published days of raw rows, typed, joined and labelled, whose rows are encoded as they are read."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.days import RowGroup, read_rows
from recsys.encode import Encoder
from recsys.errors import DataError
from recsys.publish import Published
from recsys.raw import RAW_DAY_KIND, RAW_ROW_KEY, one_array
from recsys.schema import Schema


@dataclass(frozen=True)
class Raw:
    """Days of raw rows, as `recsys build --raw` publishes them, and the encoder for them."""

    encoder: Encoder
    kind: str = RAW_DAY_KIND

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @property
    def columns(self) -> pa.Schema:
        return self.schema.raw_arrow(labels=True).append(pa.field(RAW_ROW_KEY, pa.int64()))

    def check(self, day: Published) -> None:
        """Nothing: raw rows fit every schema that declares their columns so, which files are held against."""

    def read(self, groups: tuple[RowGroup, ...], columns: list[str]) -> pa.Table:
        """The named encoded columns of row groups. Raises DataError naming the file, the row group and the row."""
        tables = [self._encoded(group).select(columns) for group in groups]
        return pa.concat_tables(tables).combine_chunks()

    def _encoded(self, group: RowGroup) -> pa.Table:
        raw = read_rows((group,), self.columns.names)
        row_key_B: NDArray[np.int64] = one_array(raw.column(RAW_ROW_KEY)).to_numpy()
        try:
            return self.encoder.encode(raw.drop_columns(RAW_ROW_KEY), row_key=row_key_B)
        except DataError as error:
            raise DataError(f"{group.file}, row group {group.index}: {error}") from error
