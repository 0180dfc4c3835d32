"""Which row of a new table comes from which row of an old one.

Ids decide, not places: a fitted value keeps its vector wherever the new vocabulary puts it. Tables whose ids are
hashed keep their rows where both hash alike, and unbounded ones go by their id maps.

Axes: **R** rows of the new table, **O** rows of the old one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.encode import Encoder
from recsys.idmap import IdMap
from recsys.layout import slots
from recsys.schema import (
    RESERVED_ROWS,
    UNKNOWN_ROW,
    BucketFeature,
    CategoricalFeature,
    MultiValuedFeature,
    OwnTableFeature,
)
from recsys.schema_rules import table_readers
from recsys.vocabulary import Vocabulary

NONE = -1
# What a feature may say otherwise without making other ids.
_NOT_OF_IDS = ("side", "user_columns", "serve", "value", "pooling", "dim", "table", "weights")


@dataclass(frozen=True, eq=False)
class Origin:
    """The old row of each new row, NONE for a fresh one; `old_R` of None: each row comes from itself.

    `kept`, `new` and `evicted` count ids: those of both tables, of the new one alone, of the old one alone. They are
    None where nobody knows the ids, as of hashed ones.
    """

    old_R: NDArray[np.int64] | None
    kept: int | None = None
    new: int | None = None
    evicted: int | None = None

    def of(self, rows: slice) -> NDArray[np.int64]:
        """The old rows of a run of new ones."""
        if self.old_R is None:
            return np.arange(rows.start, rows.stop)
        return self.old_R[rows]


@dataclass(frozen=True)
class Fresh:
    """Why no row of a table has an origin."""

    reason: str


def row_origins(
    old: Encoder,
    new: Encoder,
    *,
    old_maps: Mapping[str, IdMap] = MappingProxyType({}),
    new_maps: Mapping[str, IdMap] = MappingProxyType({}),
) -> dict[str, Origin | Fresh]:
    """Where the rows of each table of the new encoder's schema come from. Unbounded tables need both id maps."""
    theirs = {slot.table for slot in slots(old.schema)}

    def origin(name: str) -> Origin | Fresh:
        found = row_origin(name, old, new)
        if isinstance(found, Fresh) or name not in new_maps:
            return found
        return by_maps(old_maps[name], new_maps[name], rows=new.schema.tables[name].rows)

    return {
        name: origin(name) if name in theirs else Fresh("a new table")
        for name in dict.fromkeys(slot.table for slot in slots(new.schema))
    }


def row_origin(table: str, old: Encoder, new: Encoder) -> Origin | Fresh:
    """Where the rows of a table that both schemas have come from; of an unbounded one, whether they may be kept."""
    was, now = old.schema.all_tables[table], new.schema.all_tables[table]
    if was.dim != now.dim:
        return Fresh(f"dim {now.dim}, was {was.dim}")
    before, after = _ids(table, old), _ids(table, new)
    if before != after:
        return Fresh(f"{after}, was {before}")
    if _made_otherwise(table, old, new):
        return Fresh("the feature that makes its ids is another")
    if table in new.vocabularies:
        old_values, new_values = (item.vocabularies[table].values for item in (old, new))
        return by_ids(old_values, new_values, rows=now.rows)
    if was.rows != now.rows and table not in new.schema.unbounded:
        return Fresh(f"{now.rows} rows, was {was.rows}")
    if was.seed != now.seed:
        return Fresh(f"seed {now.seed}, was {was.seed}")
    return Origin(None)


def by_ids(old_values: pa.Array, new_values: pa.Array, *, rows: int) -> Origin:
    """Origins where the values at index i of either list have row i + 2. The rows before mean the same in any table.

    Rows of the new table that no value has yet are fresh.
    """
    found_N = Vocabulary(old_values).rows(new_values)
    known_N = found_N != UNKNOWN_ROW
    old_R = np.full(rows, NONE, np.int64)
    old_R[:RESERVED_ROWS] = np.arange(RESERVED_ROWS)
    old_R[RESERVED_ROWS : RESERVED_ROWS + len(found_N)] = np.where(known_N, found_N, NONE)
    kept = int(known_N.sum())
    return Origin(old_R, kept, len(new_values) - kept, len(old_values) - kept)


def hash_alike(table: str, old: Encoder, new: Encoder) -> bool:
    """Whether an id of an unbounded table has the hash that it had."""
    if table not in old.schema.unbounded or table not in new.schema.unbounded:
        return False
    was, now = old.schema.tables[table], new.schema.tables[table]
    return was.seed == now.seed and _ids(table, old) == _ids(table, new)


def by_maps(old: IdMap, new: IdMap, *, rows: int) -> Origin:
    """Origins where id maps say which id has which row. An evicted id's row is fresh for the id that has it now."""
    given = new.admitted
    old_E = old.rows(given.hash_E)
    known_E = old_E != UNKNOWN_ROW
    old_R = np.full(rows, NONE, np.int64)
    old_R[:RESERVED_ROWS] = np.arange(RESERVED_ROWS)
    old_R[given.row_E[known_E]] = old_E[known_E]
    kept = int(known_E.sum())
    return Origin(old_R, kept, len(given) - kept, len(old.admitted) - kept)


def _ids(table: str, encoder: Encoder) -> str:
    """How ids become rows, and of which type: text and numbers that look alike have other rows."""
    if table not in encoder.schema.tables:
        return "numbered rows"
    family = next(found for name, _, found in table_readers(encoder.schema) if name == table)
    ways = {
        "vocabulary": "a vocabulary",
        "hash": "hashes",
        "unbounded": "an id map",
        "zch": "an id map",
    }
    way = ways[encoder.schema.tables[table].id_kind]
    return f"{way} of ids that a feature makes" if family == "hashed" else f"{way} of {family} ids"


def _made_otherwise(table: str, old: Encoder, new: Encoder) -> bool:
    before, after = _makers(table, old), _makers(table, new)
    return any(before[name] != after[name] for name in before.keys() & after.keys())


def _makers(table: str, encoder: Encoder) -> Mapping[str, Any]:
    """The features that make the table's ids themselves, out of other things, and how."""
    found: dict[str, Any] = {}
    for name, item in encoder.schema.features.items():
        if isinstance(item, CategoricalFeature | MultiValuedFeature):
            continue
        own = name if isinstance(item, OwnTableFeature) else getattr(item, "table", None)
        if own == table:
            tree = item.model_dump(mode="json")
            found[name] = {key: tree[key] for key in tree if key not in _NOT_OF_IDS}
        if isinstance(item, BucketFeature) and own == table:
            found[name] |= {"edges": encoder.edges[name].tolist()}
    return found
