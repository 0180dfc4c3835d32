"""Who has a row of an unbounded table, by hand and against an oracle of dictionaries."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.admission import Taken, Update, expected_collisions, id_families
from recsys.idmap import IdMap
from recsys.schema import Table
from tests.samples import parse

Day = list[int]
Policy = Literal["lru", "lfu"]


def table_of(places: int, *, min_count: int = 1, eviction: Policy = "lru") -> Table:
    """A table with rows for so many ids."""
    return Table(rows=places + 2, ids="unbounded", min_count=min_count, eviction=eviction)


def after(table: Table, *days: Day, chunk: int = 1_000) -> tuple[IdMap, list[Taken]]:
    """The map after days, and what each did. An id's hash is the id."""
    found, taken = IdMap.empty(), []
    for number, day in enumerate(days, start=1):
        update = Update(found, table)
        for start in range(0, len(day), chunk):
            update.add(np.array(day[start : start + chunk], np.uint64))
        found, told = update.finish(table="item", day=f"day {number}", family="string")
        taken.append(told)
    return found, taken


def rows_of(found: IdMap) -> dict[int, int]:
    admitted = found.admitted
    return dict(zip(admitted.hash_E.tolist(), admitted.row_E.tolist(), strict=True))


def test_an_id_has_a_row_once_it_was_seen_often_enough() -> None:
    table = table_of(4, min_count=3)
    found, (first,) = after(table, [7, 7, 8, 0, 0, 0, 0])

    assert rows_of(found) == {}
    assert (first.ids, first.unknown, first.new, first.waiting) == (3, 3, 0, 2)

    found, (_, second) = after(table, [7, 7, 8], [7, 9])
    assert rows_of(found) == {7: 2}
    assert (second.ids, second.unknown, second.new, second.waiting) == (2, 1, 1, 2)


def test_the_strongest_take_the_first_rows() -> None:
    found, (taken,) = after(table_of(3), [4, 5, 5, 6, 6, 6, 3])

    # 3 and 4 were seen as often: the smaller hash comes first.
    assert rows_of(found) == {6: 2, 5: 3, 3: 4}
    assert (taken.new, taken.waiting, taken.unknown, taken.evicted) == (3, 1, 1, 0)


def test_lru_evicts_who_was_not_seen_today_longest_ago_first() -> None:
    days = [[1, 1, 1, 2, 3], [2], [3, 8], [3, 9]]
    found, taken = after(table_of(3), *days[:3])
    assert rows_of(found) == {8: 2, 2: 3, 3: 4}
    assert (taken[2].kept, taken[2].new, taken[2].evicted) == (2, 1, 1)

    found, taken = after(table_of(3), *days)
    assert rows_of(found) == {8: 2, 9: 3, 3: 4}


def test_lru_evicts_nobody_who_was_seen_today() -> None:
    found, (_, second) = after(table_of(2), [1, 2], [1, 2, 3, 3, 3])

    assert rows_of(found) == {1: 2, 2: 3}
    assert (second.evicted, second.waiting, second.unknown) == (0, 1, 3)


def test_lfu_evicts_who_was_seen_less_often_all_days_together() -> None:
    table = table_of(2, eviction="lfu")
    found, taken = after(table, [1, 1, 1, 2, 2], [3, 3, 2], [3, 3])

    assert rows_of(found) == {3: 2, 2: 3}
    assert [item.evicted for item in taken] == [0, 0, 1]
    # 3 has 4 of 1's 3 and 2's 3; of these two 1 was seen longer ago.
    assert 1 not in found.hash_E


def test_an_evicted_id_begins_anew() -> None:
    table = table_of(1, min_count=2)
    found, taken = after(table, [5, 5, 5], [6, 6], [5])

    assert rows_of(found) == {6: 2}
    assert (taken[2].waiting, taken[2].unknown) == (1, 1)
    found, _ = after(table, [5, 5, 5], [6, 6], [5], [5])
    assert rows_of(found) == {5: 2}


def test_memory_is_bounded_by_the_table_and_one_chunk() -> None:
    table = table_of(8, min_count=2)
    day = [1, 1, *range(100, 1_100), 2, 2, 1]
    found, (taken,) = after(table, day, chunk=50)

    assert len(found) == 2 * table.rows
    assert taken.dropped == 1_002 - len(found)
    assert rows_of(found) == {1: 2, 2: 3}
    assert taken.unknown == 1_000


def test_a_map_is_left_as_it_was() -> None:
    table = table_of(2)
    before, _ = after(table, [1, 2])
    for column in (before.hash_E, before.row_E, before.count_E, before.seen_E):
        column.flags.writeable = False
    update = Update(before, table)
    update.add(np.array([1, 9, 9], np.uint64))
    found, _ = update.finish(table="item", day="2", family="string")

    assert rows_of(before) == {1: 2, 2: 3}
    assert rows_of(found) == {1: 2, 9: 3}


def test_integers_never_share_a_hash_and_strings_hardly_ever() -> None:
    assert expected_collisions(10**9, family="integer") == 0
    # The birthday bound: n^2 / 2 pairs, each of which agrees once in 2^64.
    assert expected_collisions(10**9, family="string") == pytest.approx(0.0271, rel=1e-3)
    assert id_families(parse())["user"] == "string"
    assert id_families(parse())["item"] == "integer"


@dataclass
class Oracle:
    """The rules one by one, in dictionaries."""

    places: int
    min_count: int
    eviction: Policy
    now: int = 0
    row: dict[int, int] = field(default_factory=dict)
    count: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)

    def take_in(self, day: Day) -> int:
        """Returns how many were evicted."""
        self.now += 1
        for item in day:
            self.count[item] = self.count.get(item, 0) + 1
            self.seen[item] = self.now
        asking = [i for i in self.count if i not in self.row and self.count[i] >= self.min_count]
        evicted = 0
        for item in sorted(asking, key=self.strength, reverse=True):
            if len(self.row) < self.places:
                self.row[item] = len(self.row) + 2
                continue
            held = [i for i in self.row if i not in asking]
            weakest = min(held, key=self.strength, default=None)
            if weakest is not None and self.strength(item)[0] > self.strength(weakest)[0]:
                self.row[item] = self.row.pop(weakest)
                del self.count[weakest], self.seen[weakest]
                evicted += 1
        return evicted

    def strength(self, item: int) -> tuple[int, int, int]:
        numbers = (self.seen[item], self.count[item])
        first, second = numbers if self.eviction == "lru" else numbers[::-1]
        return first, second, -item


DAYS = st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(DAYS, st.integers(6, 8), st.integers(1, 3), st.sampled_from(["lru", "lfu"]), st.data())
def test_the_map_is_that_of_the_rules_one_by_one_however_a_day_is_cut(
    days: list[Day], places: int, min_count: int, eviction: Policy, data: st.DataObject
) -> None:
    oracle = Oracle(places, min_count, eviction)
    evicted = [oracle.take_in(day) for day in days]

    table = table_of(places, min_count=min_count, eviction=eviction)
    found, taken = after(table, *days, chunk=data.draw(st.integers(1, 12)))

    assert rows_of(found) == oracle.row
    assert [item.evicted for item in taken] == evicted
    assert len(found) == len(oracle.count)
    last = found.rows(np.array(days[-1], np.uint64))
    assert (taken[-1].ids, taken[-1].unknown) == (len(days[-1]), int((last == 1).sum()))
    assert taken[-1].kept + taken[-1].new == len(oracle.row)
