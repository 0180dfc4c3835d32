"""Id maps: the same row for a hash in every reader, lists cut or not, and files that refuse what is damaged."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys.errors import ArtifactError
from recsys.hashing import splitmix64
from recsys.idmap import (
    ID_MAPS,
    IdMap,
    empty_id_maps,
    hashes_of,
    read_id_maps,
    table_rows,
    write_id_maps,
)
from recsys.schema import Schema
from tests.samples import parse, tree

HASHES = st.integers(1, 2**64 - 1)
TOP = 2**64 - 1


def map_of(rows: dict[int, int], *, waiting: tuple[int, ...] = ()) -> IdMap:
    """The map in which these hashes have these rows, and others wait for one."""
    entries = sorted((rows | dict.fromkeys(waiting, 1)).items())
    hash_E = np.array([hashed for hashed, _ in entries], np.uint64)
    row_E = np.array([row for _, row in entries], np.int64)
    return IdMap(hash_E, row_E, np.ones_like(row_E), np.ones_like(row_E), 1, "2026-10-01")


def unbounded_schema(**item: object) -> Schema:
    changed = tree()
    changed["tables"]["item"] = {"rows": 6, "dim": 4, "ids": "unbounded"} | item
    return parse(changed)


@given(st.dictionaries(HASHES, st.integers(2, 99), max_size=30), st.lists(HASHES), st.data())
def test_a_hash_has_the_row_that_a_dictionary_gives(
    rows: dict[int, int], others: list[int], data: st.DataObject
) -> None:
    asked = data.draw(st.permutations([*rows, *others, 0]))
    waiting = tuple(set(others) - rows.keys())

    found = map_of(rows, waiting=waiting).rows(np.array(asked, np.uint64))

    assert found.tolist() == [0 if hashed == 0 else rows.get(hashed, 1) for hashed in asked]


@pytest.mark.parametrize(
    "hashes",
    [
        splitmix64(np.arange(1_000)),
        # All of one prefix, and all but one: no integer's hash looks so.
        np.arange(1, 200, dtype=np.uint64),
        np.append(np.arange(1, 20, dtype=np.uint64), np.uint64(TOP)),
        np.array([TOP], np.uint64),
    ],
)
def test_a_place_is_where_a_bisection_finds_it(hashes: NDArray[np.uint64]) -> None:
    hash_E = np.sort(hashes)
    nothing = np.zeros(len(hash_E), np.int64)
    ends = np.array([0, TOP], np.uint64)
    asked = np.concatenate([hashes, hashes - np.uint64(1), hashes + np.uint64(1), ends])

    found = IdMap(hash_E, nothing, nothing, nothing).places(asked)

    assert found.tolist() == np.searchsorted(hash_E, asked).tolist()


def test_ids_that_wait_are_no_part_of_what_a_server_needs() -> None:
    found = map_of({5: 2, TOP: 3}, waiting=(7,)).admitted

    assert found.hash_E.tolist() == [5, TOP]
    assert (found.updates, found.last_day) == (1, "2026-10-01")


def test_columns_of_unbounded_tables_become_rows_and_others_stay() -> None:
    schema = unbounded_schema()
    lists = pa.array([[9], [5, 0, TOP], [], [7]], pa.list_(pa.uint64()))
    encoded = pa.table(
        {
            "user_id": pa.array([2, 3, 4], pa.int64()),
            "item_id": pa.array([5, 0, 7], pa.uint64()),
            # A slice: the array still holds the list before it.
            "clicks.item": lists.slice(1),
        }
    )

    assert hashes_of(encoded.column("clicks.item")).tolist() == [5, 0, TOP, 7]
    found = table_rows(encoded, schema, {"item": map_of({5: 2, TOP: 3})})

    assert found.to_pydict() == {
        "user_id": [2, 3, 4],
        "item_id": [2, 0, 1],
        "clicks.item": [[2, 0, 3], [], [1]],
    }
    assert found.schema.field("item_id").type == pa.int64()
    assert found.schema.field("clicks.item").type == pa.list_(pa.int64())


def test_a_map_in_a_file_is_the_map(tmp_path: Path) -> None:
    schema = unbounded_schema()
    written = map_of({5: 2, TOP: 5}, waiting=(7,))
    write_id_maps(tmp_path / ID_MAPS, {"item": written})
    found = read_id_maps(tmp_path / ID_MAPS, schema)["item"]

    for name in ("hash_E", "row_E", "count_E", "seen_E"):
        assert getattr(found, name).tolist() == getattr(written, name).tolist()
        assert getattr(found, name).dtype == getattr(written, name).dtype
    assert (found.updates, found.last_day) == (1, "2026-10-01")


def test_a_schema_without_unbounded_tables_has_no_maps(tmp_path: Path) -> None:
    write_id_maps(tmp_path / ID_MAPS, empty_id_maps(parse()))

    assert not (tmp_path / ID_MAPS).exists()
    assert read_id_maps(tmp_path / ID_MAPS, parse()) == {}


@pytest.mark.parametrize(
    "damaged",
    [
        {5: 2, 7: 2},  # one row for two ids
        {5: 2, 7: 6},  # a row that the table of 6 does not have
        {5: -1},
    ],
)
def test_rows_that_the_table_cannot_give_are_refused(
    damaged: dict[int, int], tmp_path: Path
) -> None:
    write_id_maps(tmp_path / ID_MAPS, {"item": map_of(damaged)})

    with pytest.raises(ArtifactError, match=r"item\.arrow: .* ids do not have a row each of .* 6"):
        read_id_maps(tmp_path / ID_MAPS, unbounded_schema())


def test_hashes_that_do_not_ascend_are_refused(tmp_path: Path) -> None:
    two = map_of({5: 2, 7: 3})
    turned = IdMap(two.hash_E[::-1].copy(), two.row_E, two.count_E, two.seen_E)
    write_id_maps(tmp_path / ID_MAPS, {"item": turned})

    with pytest.raises(ArtifactError, match="do not have a row each"):
        read_id_maps(tmp_path / ID_MAPS, unbounded_schema())


def test_a_file_that_is_no_map_or_of_another_table_is_refused(tmp_path: Path) -> None:
    schema = unbounded_schema()
    with pytest.raises(ArtifactError, match=r"item\.arrow: not a readable id map"):
        read_id_maps(tmp_path / ID_MAPS, schema)
    write_id_maps(tmp_path / ID_MAPS, {"user": map_of({})})
    (tmp_path / ID_MAPS / "user.arrow").rename(tmp_path / ID_MAPS / "item.arrow")
    with pytest.raises(ArtifactError, match="for table 'user', this release reads format 1"):
        read_id_maps(tmp_path / ID_MAPS, schema)
    (tmp_path / ID_MAPS / "item.arrow").write_bytes(b"ARROW1")
    with pytest.raises(ArtifactError, match="not a readable id map"):
        read_id_maps(tmp_path / ID_MAPS, schema)
