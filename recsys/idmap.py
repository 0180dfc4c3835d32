"""The id map of an unbounded table: which row of the table belongs to the 64-bit hash of an id.

Encoded rows hold hashes (uint64, 0 for a missing id); `table_rows` turns them into rows of tables, in the feed as in
the server, before anything else sees them. Which ids have a row is decided by `recsys.admission`, day by day, or by
TorchRec, step by step (`recsys.models.embeddings.managed_collision`): then a training step does what the feed does not.

```
id_maps/<table>.arrow    Arrow IPC, one row an id, by ascending hash
  hash   uint64          of the id
  row    int64           of the table: 2 and above; 1, the unknown row, for an id that is counted but has none yet
  count  int64           how often it was seen
  seen   int64           the last update that saw it, counted from 1
```

TorchRec keeps one of the two numbers, the other one is 0.

Axes: **N** ids, **E** entries of a map.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import ArtifactError
from recsys.layout import slots
from recsys.raw import one_array
from recsys.schema import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, Schema

FORMAT_VERSION = 1
ID_MAPS = "id_maps"
_COLUMNS = pa.schema(
    [("hash", pa.uint64()), ("row", pa.int64()), ("count", pa.int64()), ("seen", pa.int64())]
)

# Of evenly spread hashes one prefix has one on average; 32 would be a wonder.
_MOST_OF_A_PREFIX = 32

HashArray = NDArray[np.uint64]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class IdMap:
    """Ids of an unbounded table by ascending hash, after `updates` updates of which the last took in `last_day`."""

    hash_E: HashArray
    row_E: Int64Array
    count_E: Int64Array
    seen_E: Int64Array
    updates: int = 0
    last_day: str = ""

    @classmethod
    def empty(cls) -> "IdMap":
        """The map that knows no id."""
        nothing = np.empty(0, np.int64)
        return cls(np.empty(0, np.uint64), nothing, nothing, nothing)

    def rows(self, hash_N: HashArray) -> Int64Array:
        """The table's row of each hash: row 0 for a missing id, row 1 for one that has none."""
        known = self.admitted
        absent_N = np.where(hash_N == 0, MISSING_ROW, UNKNOWN_ROW)
        if not len(known):
            return absent_N
        place_N = np.minimum(known.places(hash_N), len(known) - 1)
        return np.where(known.hash_E[place_N] == hash_N, known.row_E[place_N], absent_N)

    @cached_property
    def admitted(self) -> "IdMap":
        """The map of those ids that have a row: all that a server needs."""
        has_row_E = self.row_E >= RESERVED_ROWS
        if has_row_E.all():
            return self
        return IdMap(
            self.hash_E[has_row_E],
            self.row_E[has_row_E],
            self.count_E[has_row_E],
            self.seen_E[has_row_E],
            self.updates,
            self.last_day,
        )

    def places(self, hash_N: HashArray) -> Int64Array:
        """How many of the map's hashes are smaller than each of these: where it stands, if it is one of them.

        A bisection waits for memory about log2(E) times an id. Hashes are spread evenly, so their first bits say where
        one stands almost exactly, and the few entries from there on are compared one after the other.
        """
        shift, start_P = self._starts
        if start_P is None:
            return np.searchsorted(self.hash_E, hash_N)
        place_N: Int64Array = start_P[hash_N >> shift]
        going_on = np.flatnonzero(self._is_smaller(place_N, hash_N))
        while len(going_on):
            place_N[going_on] += 1
            further = self._is_smaller(place_N[going_on], hash_N[going_on])
            going_on = going_on[further]
        return place_N

    @cached_property
    def _starts(self) -> tuple[np.uint64, Int64Array | None]:
        """By how much hashes are shifted for their first bits, and for each of those the first entry that has them.

        None where more entries share them than chance would have.
        """
        bits = max(1, (len(self) - 1).bit_length())
        shift = np.uint64(64 - bits)
        start_P = np.searchsorted(self.hash_E, np.arange(2**bits, dtype=np.uint64) << shift)
        crowded = len(self) and np.diff(start_P, append=len(self)).max() > _MOST_OF_A_PREFIX
        return shift, None if crowded else start_P

    def _is_smaller(self, place_N: Int64Array, hash_N: HashArray) -> NDArray[np.bool_]:
        """Whether the entry at each place has a smaller hash; there is none behind the last."""
        inside_N = np.minimum(place_N, len(self) - 1)
        smaller_N: NDArray[np.bool_] = (self.hash_E[inside_N] < hash_N) & (place_N < len(self))
        return smaller_N

    def __len__(self) -> int:
        return len(self.hash_E)


def empty_id_maps(schema: Schema) -> dict[str, IdMap]:
    """The id maps that a schema's training begins with: those of its unbounded tables, without an id."""
    return {name: IdMap.empty() for name in schema.unbounded}


def table_rows(encoded: pa.Table, schema: Schema, maps: Mapping[str, IdMap]) -> pa.Table:
    """Encoded rows, of all columns or of some, with rows of tables in place of hashes.

    Hashes of a table without a map stay, as the int64 of the same bits, for who maps them later.
    """
    for slot in slots(schema):
        if slot.table not in schema.unbounded or slot.name not in encoded.column_names:
            continue
        column = one_array(encoded.column(slot.name))
        place = encoded.column_names.index(slot.name)
        rows_of = maps[slot.table].rows if slot.table in maps else _same_bits
        found = _column_rows(column, rows_of)
        encoded = encoded.set_column(place, pa.field(slot.name, found.type), found)
    return encoded


def hashes_of(column: pa.ChunkedArray) -> HashArray:
    """All hashes that an encoded column of an unbounded table holds, of single ids or of lists."""
    array = one_array(column)
    flat: HashArray = (array.flatten() if pa.types.is_list(array.type) else array).to_numpy()
    return flat


def write_id_maps(directory: Path, maps: Mapping[str, IdMap]) -> None:
    """Write maps into a new directory; none without maps."""
    if not maps:
        return
    directory.mkdir()
    for name, item in maps.items():
        about = {"format_version": FORMAT_VERSION, "table": name}
        about |= {"updates": item.updates, "last_day": item.last_day}
        columns = (item.hash_E, item.row_E, item.count_E, item.seen_E)
        table = pa.table(
            [pa.array(column) for column in columns],
            schema=_COLUMNS.with_metadata({key: str(value) for key, value in about.items()}),
        )
        file = str(directory / f"{name}.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def read_id_maps(directory: Path, schema: Schema) -> dict[str, IdMap]:
    """The maps of a schema's unbounded tables, memory-mapped: pages are shared by every process.

    Raises ArtifactError for a map that is missing, damaged, or too large for its table.
    """
    return {
        name: _read(directory / f"{name}.arrow", name, schema.tables[name].rows)
        for name in schema.unbounded
    }


def _read(file: Path, name: str, rows: int) -> IdMap:
    try:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        about: dict[bytes, bytes] = table.schema.metadata or {}
        version, of_table = about[b"format_version"].decode(), about[b"table"].decode()
        updates, last_day = int(about[b"updates"]), about[b"last_day"].decode()
        columns = [one_array(table.column(key)).to_numpy() for key in _COLUMNS.names]
        found = IdMap(columns[0], columns[1], columns[2], columns[3], updates, last_day)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{file}: not a readable id map ({error}); use another checkpoint, or export again"
        ) from error
    if (version, of_table) != (str(FORMAT_VERSION), name):
        raise ArtifactError(
            f"{file}: an id map of format {version} for table {of_table!r}, this release reads format "
            f"{FORMAT_VERSION} and expects {name!r}; use another checkpoint, or export again"
        )
    _check(found, rows, file)
    return found


def _check(found: IdMap, rows: int, file: Path) -> None:
    """Raise ArtifactError unless hashes ascend and every row of the table is given once at most."""
    given = found.admitted.row_E
    ascend = bool((found.hash_E[1:] > found.hash_E[:-1]).all())
    inside = bool(((found.row_E >= UNKNOWN_ROW) & (found.row_E < rows)).all())
    if not (ascend and inside and len(np.unique(given)) == len(given)):
        raise ArtifactError(
            f"{file}: {len(given)} ids do not have a row each of the table's {rows}; use another checkpoint, or "
            "export again"
        )


def _same_bits(hash_N: HashArray) -> Int64Array:
    return hash_N.view(np.int64)


def _column_rows(column: pa.Array, rows_of: Callable[[HashArray], Int64Array]) -> pa.Array:
    if not pa.types.is_list(column.type):
        return pa.array(rows_of(column.to_numpy()))
    # The values of a slice are those of the whole array; its offsets are its own.
    offsets = column.offsets.to_numpy()
    hash_N: Any = column.values.to_numpy()[offsets[0] : offsets[-1]]
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), pa.array(rows_of(hash_N)))
