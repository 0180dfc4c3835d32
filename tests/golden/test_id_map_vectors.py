"""Golden id maps. A change here gives ids the rows of others: bump the map's format version before touching them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.encode import Encoder
from recsys.hashing import hash_ids
from recsys.idmap import read_id_maps, table_rows, write_id_maps
from recsys.vocabulary import Vocabulary
from tests.samples import parse, tree

STORED = Path(__file__).parent / "id_maps"
# splitmix64 of 7, 2^40 and -3 under seed 0, by the reference generator's finaliser.
HASHES = {7: 0x63CBE1E459320DD7, 2**40: 0x1FDD7128F310C389, -3: 0xF75F04CBB5A1A1DD}


def encoder() -> Encoder:
    unbounded = tree()
    unbounded["tables"]["item"] = {"rows": 50, "dim": 4, "ids": "unbounded"}
    schema = parse(unbounded)
    nothing = {"user": Vocabulary(pa.array(["u"])), "tag": Vocabulary(pa.array(["t"]))}
    return Encoder(schema, {}, {"price_bucket": np.array([1.0])}, nothing)


def encoded() -> pa.Table:
    schema = encoder().schema.raw_arrow(labels=False)
    first = {"item_id": 7, "clicks_item": [2**40, None, -3], "clicks_age": [None] * 3}
    rows = [first, {"item_id": None}]
    raw = pa.Table.from_pylist(rows, schema=schema)
    return encoder().encode_inputs(raw.append_column("position", pa.nulls(2, pa.int32())))


def test_the_hashes_of_ids_are_pinned() -> None:
    found = encoded()

    assert found.column("item_id").to_pylist() == [HASHES[7], 0]
    assert found.column("clicks.item").to_pylist() == [[HASHES[2**40], 0, HASHES[-3]], []]
    assert found.column("item_id").type == pa.uint64()


def test_an_id_of_hash_0_is_not_missing() -> None:
    # splitmix64 adds gamma first, and what is 0 then stays 0.
    hashed_to_0 = 2**64 - 0x9E3779B97F4A7C15
    assert hash_ids(pa.array([hashed_to_0])).tolist() == [0]

    schema = encoder().schema.raw_arrow(labels=False)
    raw = pa.Table.from_pylist([{"item_id": hashed_to_0}], schema=schema)
    raw = raw.append_column("position", pa.nulls(1, pa.int32()))
    assert encoder().encode_inputs(raw).column("item_id").to_pylist() == [1]


def test_a_stored_map_gives_the_rows_that_it_was_stored_with(tmp_path: Path) -> None:
    maps = read_id_maps(STORED, encoder().schema)

    rows = table_rows(encoded(), encoder().schema, maps)
    assert rows.column("item_id").to_pylist() == [2, 0]
    assert rows.column("clicks.item").to_pylist() == [[7, 0, 1], []]
    assert (maps["item"].updates, maps["item"].last_day) == (3, "2026-10-03")
    assert maps["item"].count_E.tolist() == [4, 9, 1]
    assert maps["item"].seen_E.tolist() == [2, 3, 1]
    write_id_maps(tmp_path / "again", maps)
    assert read_id_maps(tmp_path / "again", encoder().schema)["item"].rows(
        np.array(list(HASHES.values()), np.uint64)
    ).tolist() == [2, 7, 1]
