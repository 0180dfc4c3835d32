"""Which ids of an unbounded table have a row: the update of an id map by one day.

A day's ids are counted wherever encoded rows hold them, chunk by chunk, so that memory is bounded by the table and one
chunk. When the day is whole:

1. An id seen at least `min_count` times since it was first counted asks for a row, the strongest first.
2. It gets a free row while there is one.
3. Then it gets the row of the weakest id that has one, if it is stronger: under `lru` seen by a later update, under
   `lfu` seen more often. The evicted id is forgotten, its count too.

Who is weaker by that number (`seen` or `count`) is told by the other one and at last by the hash, so a map is a
function of the days taken in and their order. Ids that have no row are counted too, but no more ids in all than twice
the table's rows: of more the weakest without a row are dropped, and their counts with them, so that a count is a lower
bound where there are many new ids.

Axes: **N** ids, **E** entries of a map.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.idmap import HashArray, IdMap, Int64Array
from recsys.schema import RESERVED_ROWS, UNKNOWN_ROW, Schema, Table
from recsys.schema_rules import table_readers

# Ids that a map counts, with a row or without, for each row of the table.
_COUNTED_PER_ROW = 2


@dataclass(frozen=True)
class Taken:
    """What one update did to a table's id map.

    `ids` counts the day's ids, missing ones left out, and `unknown` those of them that have no row after it. `kept`,
    `new` and `evicted` are distinct ids that had a row before and have it still, have one now, and lost it. `waiting`
    are counted without a row; `dropped` lost their count for want of room. `collisions` is how many pairs of the
    distinct ids known now are expected to share a hash (`expected_collisions`).
    """

    table: str
    day: str
    ids: int
    unknown: int
    kept: int
    new: int
    evicted: int
    waiting: int
    dropped: int
    collisions: float

    @property
    def counts(self) -> dict[str, float]:
        """The numbers, by name."""
        told = ("ids", "unknown", "kept", "new", "evicted", "waiting", "dropped", "collisions")
        return {name: getattr(self, name) for name in told}


def expected_collisions(distinct: int, *, family: str) -> float:
    """Pairs of `distinct` ids that share a 64-bit hash, on average: n (n - 1) / 2^65.

    None can be seen, for raw ids are gone. Of integers there are none: splitmix64 is one-to-one.
    """
    return 0.0 if family == "integer" else distinct * (distinct - 1) / 2.0**65


def id_families(schema: Schema) -> dict[str, str]:
    """What the ids of each table are: "integer", "string", or "hashed" by a feature."""
    return {table: family for table, _, family in table_readers(schema)}


class Update:
    """One day that goes into a table's map: `add` its ids by chunks, then `finish`. The map itself stays as it was."""

    def __init__(self, before: IdMap, table: Table) -> None:
        self._now = before.updates + 1
        self._rows = table.rows
        self._min_count = table.min_count
        self._by_count = table.eviction == "lfu"
        self._hash_E = before.hash_E
        # Copied: a map may lie in a read-only file.
        self._row_E, self._count_E = before.row_E.copy(), before.count_E.copy()
        self._seen_E, self._today_E = before.seen_E.copy(), np.zeros(len(before), np.int64)
        self._had_rows = len(before.admitted)
        self._ids = self._dropped = 0

    def add(self, hash_N: HashArray) -> None:
        """Count ids of the day; 0, a missing one, does not count."""
        hashes, times = np.unique(hash_N[hash_N != 0], return_counts=True)
        self._ids += int(times.sum())
        place = np.searchsorted(self._hash_E, hashes)
        known = np.zeros(len(hashes), np.bool_)
        inside = place < len(self._hash_E)
        known[inside] = self._hash_E[place[inside]] == hashes[inside]
        self._count_E[place[known]] += times[known]
        self._today_E[place[known]] += times[known]
        self._seen_E[place[known]] = self._now
        self._insert(place[~known], hashes[~known], times[~known])
        self._drop_weakest()

    def finish(self, *, table: str, day: str, family: str) -> tuple[IdMap, Taken]:
        """The map after the day, and what the day did to it."""
        asking = np.flatnonzero((self._row_E == UNKNOWN_ROW) & (self._count_E >= self._min_count))
        asking = self._strongest_first(asking)
        holders = self._strongest_first(np.flatnonzero(self._row_E >= RESERVED_ROWS))[::-1]
        free = np.arange(RESERVED_ROWS + self._had_rows, self._rows)[: len(asking)]
        self._row_E[asking[: len(free)]] = free
        asking = asking[len(free) :]
        evicted = holders[: self._stronger(asking, holders)]
        self._row_E[asking[: len(evicted)]] = self._row_E[evicted]
        self._forget(evicted)
        after = IdMap(
            self._hash_E, self._row_E, self._count_E, self._seen_E, updates=self._now, last_day=day
        )
        has_row_E = self._row_E >= RESERVED_ROWS
        return after, Taken(
            table=table,
            day=day,
            ids=self._ids,
            unknown=self._ids - int(self._today_E[has_row_E].sum()),
            kept=self._had_rows - len(evicted),
            new=len(free) + len(evicted),
            evicted=len(evicted),
            waiting=int((~has_row_E).sum()),
            dropped=self._dropped,
            collisions=expected_collisions(len(after), family=family),
        )

    def _stronger(self, asking: Int64Array, holders: Int64Array) -> int:
        """How many of the asking, strongest first, are stronger than the holder in their place, weakest first."""
        pairs = min(len(asking), len(holders))
        first = self._count_E if self._by_count else self._seen_E
        return int(np.count_nonzero(first[asking[:pairs]] > first[holders[:pairs]]))

    def _strongest_first(self, entries: Int64Array) -> Int64Array:
        numbers = (self._seen_E[entries], self._count_E[entries])
        second, first = numbers if self._by_count else numbers[::-1]
        return entries[np.lexsort((self._hash_E[entries], -second, -first))]

    def _drop_weakest(self) -> None:
        """Keep so many of the ids without a row that there is room for all."""
        too_many = len(self._hash_E) - _COUNTED_PER_ROW * self._rows
        if too_many <= 0:
            return
        weakest = self._strongest_first(np.flatnonzero(self._row_E == UNKNOWN_ROW))[-too_many:]
        self._dropped += len(weakest)
        self._forget(weakest)

    def _insert(self, place: NDArray[Any], hashes: HashArray, times: Int64Array) -> None:
        self._hash_E = np.insert(self._hash_E, place, hashes)
        self._row_E = np.insert(self._row_E, place, UNKNOWN_ROW)
        self._count_E = np.insert(self._count_E, place, times)
        self._seen_E = np.insert(self._seen_E, place, self._now)
        self._today_E = np.insert(self._today_E, place, times)

    def _forget(self, entries: Int64Array) -> None:
        kept_E = np.ones(len(self._hash_E), np.bool_)
        kept_E[entries] = False
        self._hash_E, self._row_E = self._hash_E[kept_E], self._row_E[kept_E]
        self._count_E, self._seen_E = self._count_E[kept_E], self._seen_E[kept_E]
        self._today_E = self._today_E[kept_E]
