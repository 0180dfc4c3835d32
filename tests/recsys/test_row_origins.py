"""Which row of a new table comes from which row of an old one, and why none does."""

import tomllib

import numpy as np
import pyarrow as pa
import pytest

from recsys.encode import Encoder
from recsys.fitting import fit
from recsys.schema import Schema
from recsys.training.row_origins import Fresh, Origin, by_ids, row_origin, row_origins
from tests.recsys.small_data import SCHEMA_TOML, raw_rows

HASHED = 'item = { rows = 128, dim = 4, ids = "hash" }'


def encoder(*changes: tuple[str, str], raw: pa.Table | None = None) -> Encoder:
    text = SCHEMA_TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    schema = Schema.parse(tomllib.loads(text), where="schema.toml")
    return fit(schema, [raw_rows(300, seed=0) if raw is None else raw])


def texts() -> pa.Table:
    """Rows whose items are text."""
    rows = raw_rows(300, seed=0)
    columns = {
        "item_id": rows["item_id"].cast(pa.string()),
        "seen_item": rows["seen_item"].cast(pa.list_(pa.string())),
    }
    return pa.table({name: columns.get(name, rows[name]) for name in rows.column_names})


def test_ids_are_found_wherever_they_stand() -> None:
    old, new = pa.array(["a", "b", "c", "d"]), pa.array(["d", "x", "b"])

    origin = by_ids(old, new, rows=7)

    # Rows 0 and 1 are "missing" and "unknown"; "a" has row 2.
    assert origin.old_R is not None
    assert origin.old_R.tolist() == [0, 1, 5, -1, 3, -1, -1]
    assert (origin.kept, origin.new, origin.evicted) == (2, 1, 2)
    assert origin.of(slice(2, 5)).tolist() == [5, -1, 3]


def test_no_ids_on_either_side_keep_the_rows_of_missing_and_unknown() -> None:
    some, none = pa.array([4, 5]), pa.array([], pa.int64())
    for old, new in ((some, none), (none, some), (none, none)):
        origin = by_ids(old, new, rows=4)
        assert origin.of(slice(0, 4)).tolist() == [0, 1, -1, -1]
        assert (origin.kept, origin.new, origin.evicted) == (0, len(new), len(old))


def test_an_equal_encoder_is_the_origin_of_all_its_rows() -> None:
    same = encoder(("item = { rows = 128, dim = 4 }", HASHED))

    origins = row_origins(same, same)

    assert origins.keys() == {"user", "item", "tag", "price_bucket", "seen.age"}
    for name, origin in origins.items():
        assert isinstance(origin, Origin)
        ids = len(same.vocabularies[name].values) if name in same.vocabularies else 4
        assert origin.of(slice(0, ids + 2)).tolist() == list(range(ids + 2))


CASES = {
    "dim": (
        [("tag = { rows = 16, dim = 4 }", "tag = { rows = 16, dim = 8 }")],
        "tag",
        "dim 8, was 4",
    ),
    "dtype": (
        [
            ('item_id = "int64"', 'item_id = "string"'),
            ('seen_item = "list<int64>"', 'seen_item = "list<string>"'),
        ],
        "item",
        "a vocabulary of string ids, was a vocabulary of integer ids",
    ),
    "hashed": (
        [("item = { rows = 128, dim = 4 }", HASHED)],
        "item",
        "hashes of integer ids, was a vocabulary of integer ids",
    ),
    "edges": (
        [("buckets = 4, dim = 4", "edges = [1, 2, 3], dim = 4")],
        "price_bucket",
        "the feature that makes its ids is another",
    ),
    "gaps": ([("buckets = 8, dim = 4", "buckets = 9, dim = 4")], "seen.age", "11 rows, was 10"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_table_that_means_something_else_has_no_origin_and_says_why(name: str) -> None:
    changes, table, reason = CASES[name]
    new = encoder(*changes, raw=texts() if name == "dtype" else None)

    found = row_origins(encoder(), new)

    assert found[table] == Fresh(reason)
    assert [other for other, origin in found.items() if isinstance(origin, Fresh)] == [table]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("rows = 256, dim = 4", "256 rows, was 128"),
        ("rows = 128, dim = 4, seed = 3", "seed 3, was 0"),
    ],
)
def test_hashed_rows_come_from_equal_hashes_alone(change: str, reason: str) -> None:
    plain = "item = { rows = 128, dim = 4 }"
    other = f'item = {{ {change}, ids = "hash" }}'

    assert row_origin("item", encoder((plain, HASHED)), encoder((plain, other))) == Fresh(reason)


def test_a_cross_of_other_columns_makes_other_ids() -> None:
    def crossed(columns: str) -> Encoder:
        table = 'pair = { rows = 64, dim = 4, ids = "hash" }'
        feature = f'pair = {{ kind = "cross", columns = [{columns}], table = "pair" }}'
        return encoder(("[features]", f"{table}\n[features]\n{feature}"))

    same, other = crossed('"user_id", "item_id"'), crossed('"item_id", "user_id"')

    assert isinstance(row_origin("pair", same, same), Origin)
    found = row_origin("pair", same, other)
    assert found == Fresh("the feature that makes its ids is another")


def test_widths_and_sides_do_not_change_what_a_bucket_means() -> None:
    old = encoder()
    new = encoder(
        ('price_bucket = { kind = "bucket",', 'price_bucket = { kind = "bucket", side = "context",')
    )
    origin = row_origin("price_bucket", old, new)
    assert isinstance(origin, Origin)
    assert np.array_equal(origin.of(slice(0, 6)), np.arange(6))
