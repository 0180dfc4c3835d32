"""TorchRec's managed collision against the same rules over dictionaries, and its whole state in an id map."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.idmap import IdMap, read_id_maps, write_id_maps
from recsys.models.embeddings.managed_collision import ManagedCollision
from recsys.schema import Schema, Table
from recsys.schema_sections import Eviction

ROWS = 40
CPU = torch.device("cpu")
EVICTIONS: tuple[Eviction, ...] = ("lru", "lfu")


@dataclass
class ByHand:
    """The rules: who is stronger by `number` stays, of equals who has a row, then the smaller hash."""

    by_count: bool
    rows: int = ROWS
    row: dict[int, int] = field(default_factory=dict)
    number: dict[int, int] = field(default_factory=dict)
    updates: int = 0

    def update(self, hashes: list[int]) -> list[int]:
        """Take in the ids of a step; the rows that went to new ones."""
        self.updates += 1
        times = Counter(item for item in hashes if item)
        for item in times.keys() & self.row.keys():
            self.number[item] = self.number[item] + times[item] if self.by_count else self.updates
        free = sorted(set(range(2, self.rows)) - set(self.row.values()))
        ranked: list[tuple[int, int | None, int | None]] = [
            (self.number[item], item, self.row[item]) for item in sorted(self.row)
        ]
        ranked += [(0, None, row) for row in free]
        new = sorted(times.keys() - self.row.keys(), key=lambda item: (-times[item], item))
        ranked += [(times[item] if self.by_count else self.updates, item, None) for item in new]
        ranked.sort(key=lambda entry: -entry[0])
        given = []
        coming = [entry for entry in ranked[: self.rows - 2] if entry[2] is None]
        going = [entry for entry in ranked[self.rows - 2 :] if entry[2] is not None]
        for (_, old, row), (number, item, _) in zip(going, coming, strict=True):
            assert row is not None
            assert item is not None
            if old is not None:
                del self.row[old], self.number[old]
            self.row[item], self.number[item] = row, number
            given.append(row)
        return given

    def columns(self) -> list[list[int]]:
        hashes = sorted(self.row)
        numbers = [self.number[item] for item in hashes]
        nothing = [0] * len(hashes)
        kept = [numbers, nothing] if self.by_count else [nothing, numbers]
        return [hashes, [self.row[item] for item in hashes], *kept]


def table(eviction: Eviction, rows: int = ROWS) -> Table:
    return Table(rows=rows, dim=4, ids="zch", eviction=eviction)


def steps(count: int, *, most: int = 60) -> Iterator[NDArray[np.uint64]]:
    """Hashes of steps: few ids often and many seldom, missing ones, none at all, more than there are rows."""
    random = np.random.default_rng(3)
    hashes = np.random.default_rng(4).integers(0, 2**64, 300, dtype=np.uint64)
    hashes[0] = 0
    for step in range(count):
        chosen = np.minimum(random.zipf(1.3, random.integers(0, most)), 200) - 1
        yield hashes[(chosen + step // 4) % 300]


def signed(hashes: NDArray[np.uint64]) -> Tensor:
    return torch.from_numpy(hashes.view(np.int64))


def updated(found: ManagedCollision, hashes: NDArray[np.uint64]) -> list[int]:
    # As from ranks: hashes that come twice, with their counts.
    distinct, counts = np.unique(hashes, return_counts=True)
    halves = torch.from_numpy(np.concatenate([counts - counts // 2, counts // 2]))
    given: list[int] = found.update(signed(distinct).repeat(2), halves).tolist()
    return given


def columns_of(found: IdMap) -> list[list[int]]:
    return [item.tolist() for item in (found.hash_E, found.row_E, found.count_E, found.seen_E)]


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_torchrecs_map_follows_the_rules(eviction: Eviction) -> None:
    found, by_hand = (
        ManagedCollision(IdMap.empty(), table(eviction), CPU),
        ByHand(eviction == "lfu"),
    )
    evicted = 0
    for hashes in steps(200):
        expected = [by_hand.row.get(item, 1 if item else 0) for item in hashes.tolist()]
        assert found.rows(signed(hashes)).tolist() == expected
        before = dict(by_hand.row)
        assert updated(found, hashes) == by_hand.update(hashes.tolist())
        after = found.id_map()
        assert columns_of(after) == by_hand.columns()
        assert after.updates == by_hand.updates
        evicted += len(before.keys() - by_hand.row.keys())
    assert evicted > 20
    assert len(by_hand.row) == ROWS - 2


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_map_from_a_file_goes_on_as_if_it_had_stayed_in_memory(
    eviction: Eviction, tmp_path: Path
) -> None:
    schema = Schema.parse(
        {
            "columns": {"item": "int64", "clicked": "bool"},
            "tables": {"item": {"rows": ROWS, "ids": "zch", "eviction": eviction}},
            "features": {"item": {"kind": "categorical", "table": "item"}},
            "tasks": {"click": {"label": "clicked"}},
        },
        where="schema.toml",
    )
    stayed = ManagedCollision(IdMap.empty(), table(eviction), CPU)
    # The first are stored with free rows, the others without.
    for step, hashes in enumerate(steps(60, most=8)):
        write_id_maps(tmp_path / str(step), {"item": stayed.id_map()})
        read = read_id_maps(tmp_path / str(step), schema)["item"]
        again = ManagedCollision(read, table(eviction), CPU)
        assert updated(again, hashes) == updated(stayed, hashes)
        assert columns_of(again.id_map()) == columns_of(stayed.id_map())


def test_a_larger_table_goes_on_with_the_rows_that_ids_have() -> None:
    before = ManagedCollision(IdMap.empty(), table("lru"), CPU)
    for hashes in steps(50):
        updated(before, hashes)
    old = before.id_map()
    after = ManagedCollision(old, table("lru", rows=ROWS + 10), CPU)
    assert columns_of(after.id_map()) == columns_of(old)

    strangers = np.arange(1, 11, dtype=np.uint64)
    assert sorted(updated(after, strangers)) == list(range(ROWS, ROWS + 10))
    assert after.rows(signed(old.hash_E)).tolist() == old.row_E.tolist()


def test_the_one_id_that_looks_like_a_free_row_has_none() -> None:
    found = ManagedCollision(IdMap.empty(), table("lru"), CPU)
    odd = np.array([2**64 - 1, 2**63, 2**63 - 1, 1], np.uint64)
    assert found.rows(signed(odd)).tolist() == [1, 1, 1, 1]
    updated(found, odd)
    rows = found.rows(signed(odd)).tolist()
    assert rows[0] == 1
    assert len({*rows}) == 4
    assert found.id_map().rows(odd).tolist() == rows
