"""Fitted values of a table and their rows."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.hashing import hash_ids
from recsys.publish import canonical_json
from recsys.schema import RESERVED_ROWS, UNKNOWN_ROW


@dataclass(frozen=True)
class Vocabulary:
    """Fitted values of a table; the value at index i has row i + 2. Looked up by binary search over sorted keys."""

    values: pa.Array

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.values.to_pylist())).hexdigest()

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(_search_keys(self.values), kind="stable")

    @cached_property
    def _sorted_keys(self) -> NDArray[Any]:
        return _search_keys(self.values)[self._order]

    def rows(self, values_N: pa.Array) -> NDArray[np.int64]:
        """Table rows of values without nulls; a value that was not fitted gets the unknown row."""
        if len(self.values) == 0 or len(values_N) == 0:
            return np.full(len(values_N), UNKNOWN_ROW, np.int64)
        if pa.types.is_string(values_N.type):
            # Distinct strings only: a column repeats few of them.
            encoded = pc.dictionary_encode(values_N)
            rows_N: NDArray[np.int64] = self._search(encoded.dictionary)[
                encoded.indices.to_numpy(zero_copy_only=False)
            ]
            return rows_N
        return self._search(values_N)

    def _search(self, values_N: pa.Array) -> NDArray[np.int64]:
        keys_N = _search_keys(values_N)
        found_N = np.minimum(np.searchsorted(self._sorted_keys, keys_N), len(self._order) - 1)
        index_N = self._order[found_N]
        known_N = self._sorted_keys[found_N] == keys_N
        if pa.types.is_string(values_N.type):
            # Equal hashes are not yet equal strings.
            known_N &= pc.equal(self.values.take(pa.array(index_N)), values_N).to_numpy(
                zero_copy_only=False
            )
        return np.where(known_N, index_N + RESERVED_ROWS, UNKNOWN_ROW)


def read_vocabulary(file: Path) -> Vocabulary:
    """The vocabulary that a file written by `write_vocabulary` holds."""
    with pa.memory_map(str(file)) as source:
        return Vocabulary(pa.ipc.open_file(source).read_all().column("value").combine_chunks())


def write_vocabulary(file: Path, vocabulary: Vocabulary) -> None:
    """An Arrow IPC file with one column, `value`, in row order."""
    table = pa.table({"value": vocabulary.values})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _search_keys(values_N: pa.Array) -> NDArray[Any]:
    if pa.types.is_string(values_N.type):
        return hash_ids(values_N)
    keys_N: NDArray[np.int64] = values_N.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return keys_N
