"""Encoding against a naive reference row by row, its invariances, and the sentence for each bad value."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from recsys.collate import collate
from recsys.encode import Encoder, load_encoder, read_encoder
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.fitting import fit
from recsys.layout import encoded_arrow
from recsys.schema import Schema
from tests.samples import parse, rows, tree


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return fit(parse(), [rows(400, seed=1)])


def naive_row(encoder: Encoder, raw: dict[str, Any]) -> dict[str, Any]:
    """One row, encoded by the definitions with plain Python."""
    user_values = encoder.vocabularies["user"].values.to_pylist()
    tag_values = encoder.vocabularies["tag"].values.to_pylist()

    def looked_up(values: list[str], value: str | None) -> int:
        return 0 if value is None else values.index(value) + 2 if value in values else 1

    def hashed(value: int | None) -> int:
        if value is None:
            return 0
        mask = 2**64 - 1
        state = (value + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return (state ^ (state >> 31)) % (1_000_000 - 2) + 2

    price, moments = raw["price"], encoder.moments["price"]
    edges = encoder.edges["price_bucket"]
    gaps = [(raw["shown_at"] - at).total_seconds() for at in (raw["clicks_age"] or [])[-50:]]
    return {
        "user_id": looked_up(user_values, raw["user_id"]),
        "item_id": hashed(raw["item_id"]),
        "tags": [looked_up(tag_values, tag) for tag in raw["tags"] or []],
        "price_bucket": 0 if price is None else 2 + sum(edge <= price for edge in edges),
        "clicks.item": [hashed(item) for item in (raw["clicks_item"] or [])[-50:]],
        "clicks.age": [2 + min(15, int(math.log2(1 + gap))) for gap in gaps],
        "dense:price": 0.0
        if price is None
        else max(-5.0, min(5.0, (math.log1p(price) - moments.mean) / moments.std)),
    }


def test_encoding_equals_the_definitions_row_by_row(encoder: Encoder) -> None:
    raw = rows(150, seed=2)
    encoded = encoder.encode_inputs(raw)

    for found, source in zip(encoded.to_pylist(), raw.to_pylist(), strict=True):
        expected = naive_row(encoder, source)
        assert found.pop("dense:price") == pytest.approx(expected.pop("dense:price"), abs=1e-6)
        found.pop("dense:position")
        assert found == expected


def test_a_row_alone_encodes_as_in_any_batch(encoder: Encoder) -> None:
    raw = rows(60, seed=3)
    together = encoder.encode(raw, row_key=np.arange(60)).to_pylist()

    for index in range(60):
        assert encoder.encode(raw.slice(index, 1), row_key=np.array([index])).to_pylist() == [
            together[index]
        ]


def test_one_side_is_the_same_columns_of_both(encoder: Encoder) -> None:
    raw = rows(30)
    both = encoder.encode_inputs(raw)

    for side in ("user", "candidate"):
        part = encoder.encode_inputs(raw, side=side)
        assert part.equals(both.select(part.column_names))


def test_encoded_rows_have_the_declared_arrow_schema_and_targets(encoder: Encoder) -> None:
    raw = rows(100, seed=4)
    encoded = encoder.encode(raw)

    encoded.validate(full=True)
    assert encoded.schema == encoded_arrow(parse())
    assert encoded.column("observed:purchase").to_pylist() == [
        value is not None for value in raw["purchased"].to_pylist()
    ]
    assert encoded.column("label:click").to_pylist() == [
        float(value) for value in raw["clicked"].to_pylist()
    ]
    for user, group, key in zip(
        *(encoded[name].to_pylist() for name in ("keep:user_id", "group", "row_key")), strict=True
    ):
        hashed = None if user is None else xxhash.xxh3_64_intdigest(user.encode())
        assert group == (key if hashed is None else np.uint64(hashed).view(np.int64))


def test_ids_seen_once_are_unknown_and_the_most_frequent_take_the_room() -> None:
    changed = tree()
    changed["tables"]["user"] = {"rows": 4, "min_count": 2}
    schema = parse(changed)
    raw = rows(6).set_column(0, "user_id", pa.array(["a", "b", "b", "c", "c", "c"]))
    more = rows(3).set_column(0, "user_id", pa.array(["d", "d", "a"]))
    encoder = fit(schema, [raw, more])

    assert encoder.vocabularies["user"].values.to_pylist() == ["c", "a"]
    assert encoder.encode_inputs(raw)["user_id"].to_pylist() == [3, 1, 1, 2, 2, 2]


def test_fitting_does_not_depend_on_the_batches() -> None:
    raw = rows(300, seed=5)
    whole, parts = (
        fit(parse(), [raw]),
        fit(parse(), [raw.slice(start, 37) for start in range(0, 300, 37)]),
    )

    assert parts.vocabularies["user"].values.equals(whole.vocabularies["user"].values)
    assert parts.moments["price"].mean == pytest.approx(whole.moments["price"].mean, rel=1e-12)
    assert parts.moments["price"].std == pytest.approx(whole.moments["price"].std, rel=1e-12)
    assert parts.edges["price_bucket"].tolist() == whole.edges["price_bucket"].tolist()


def test_moments_and_edges_are_those_of_the_column() -> None:
    raw = rows(500, seed=6)
    encoder = fit(parse(), [raw])
    price = np.array([value for value in raw["price"].to_pylist() if value is not None])

    assert encoder.moments["price"].mean == pytest.approx(np.log1p(price).mean())
    assert encoder.moments["price"].std == pytest.approx(np.log1p(price).std())
    assert encoder.edges["price_bucket"] == pytest.approx(np.quantile(price, np.arange(1, 8) / 8))


def test_an_extended_encoder_keeps_every_row_and_accepts_old_data(encoder: Encoder) -> None:
    newcomers = rows(50, seed=7).set_column(0, "user_id", pa.array(["new1", "new2"] * 25))
    extended = fit(parse(), [newcomers], previous=encoder)
    raw = rows(80, seed=8)

    assert extended.encode(raw).equals(encoder.encode(raw))
    assert extended.accepts(encoder.digest)
    assert not encoder.accepts(extended.digest)
    assert set(extended.encode_inputs(newcomers)["user_id"].to_pylist()).isdisjoint({0, 1})


def test_an_encoder_of_another_schema_cannot_be_extended(encoder: Encoder) -> None:
    changed = tree()
    changed["tables"]["user"]["rows"] = 50
    with pytest.raises(ConfigError, match="another schema"):
        fit(parse(changed), [rows()], previous=encoder)


def test_saved_and_loaded_it_encodes_the_same(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)

    assert (loaded.digest, loaded.schema) == (encoder.digest, encoder.schema)
    assert loaded.encode(rows()).equals(encoder.encode(rows()))


def test_statistics_edited_by_hand_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    encoder.write(tmp_path / "copy")
    file = tmp_path / "copy" / "encoder.json"
    file.write_text(file.read_text().replace('"std": ', '"std": 1'))
    with pytest.raises(ArtifactError, match="does not match its digest"):
        read_encoder(tmp_path / "copy")


def replaced(name: str, values: list[Any], dtype: str | None = None) -> pa.Table:
    raw = rows(len(values))
    index = raw.schema.get_field_index(name)
    column = (
        pa.array(values, pa.type_for_alias(dtype))
        if dtype
        else pa.array(values, raw.schema.field(name).type)
    )
    return raw.set_column(index, name, column)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (
            rows(3).drop_columns(["price"]),
            "feature 'price' needs column 'price', which the rows do not have",
        ),
        (
            replaced("price", ["1", "2"], "string"),
            "column 'price' is string, the schema says float32; cast it",
        ),
        (
            replaced("price", [1.0, math.nan, math.inf]),
            "row 1: feature 'price', column 'price': nan is not a finite number (2 such rows",
        ),
        (replaced("clicks_item", [[1], [2]]), "the lists of a sequence must be aligned"),
    ],
)
def test_rows_that_break_the_schema_get_a_sentence(
    encoder: Encoder, raw: pa.Table, sentence: str
) -> None:
    with pytest.raises(DataError) as caught:
        encoder.encode(raw)
    assert sentence in str(caught.value)


def test_labels_other_than_0_and_1_are_refused_only_where_observed() -> None:
    changed = tree()
    changed["columns"] |= {"clicked": "int32", "in_space": "bool"}
    changed["tasks"]["click"]["mask"] = "in_space"
    schema = parse(changed)
    raw = rows(3)
    raw = raw.set_column(
        raw.schema.get_field_index("clicked"), "clicked", pa.array([0, 2, 1], pa.int32())
    )
    masked = raw.append_column("in_space", pa.array([True, False, True]))
    encoder = fit(schema, [masked])

    assert encoder.encode(masked)["observed:click"].to_pylist() == [True, False, True]
    with pytest.raises(
        DataError, match="row 1: task 'click', column 'clicked': label 2; a binary label is 0 or 1"
    ):
        encoder.encode(raw.append_column("in_space", pa.array([True, True, True])))


@pytest.mark.parametrize("weight", [-1.0, None])
def test_a_negative_or_missing_sample_weight_is_refused(weight: float | None) -> None:
    changed = tree()
    changed["columns"]["weight"] = "float32"
    changed["keys"]["sample_weight"] = "weight"
    raw = rows(2).append_column("weight", pa.array([1.0, weight], pa.float32()))

    with pytest.raises(DataError, match="sample weight"):
        fit(parse(changed), [raw]).encode(raw)


def _with_number(change: dict[str, Any]) -> Schema:
    changed = tree()
    changed["columns"]["number"] = "float64"
    for section, items in change.items():
        changed[section] |= items
    return parse(changed)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": {"sample_weight": "number"}},
        {"tasks": {"number": {"label": "number", "kind": "regression"}}},
        {"features": {"number": {"kind": "numeric", "normalize": "none", "clip": None}}},
    ],
    ids=["weight", "label", "feature"],
)
def test_a_number_beyond_float32_is_refused_with_its_row(change: dict[str, Any]) -> None:
    schema = _with_number(change)
    good, bad = (
        rows(2).append_column("number", pa.array([1.0, number])) for number in (3e38, 4e38)
    )
    encoder = fit(schema, [good])

    encoder.encode(good)
    with pytest.raises(DataError, match=r"row 1: .*column 'number': 4e\+38 is beyond"):
        encoder.encode(bad)


def test_no_rows_to_fit_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no training rows"):
        fit(parse(), [rows(5).slice(0, 0)])


def test_no_rows_to_encode_give_an_empty_table(encoder: Encoder) -> None:
    empty = encoder.encode(rows(5).slice(0, 0))

    assert empty.num_rows == 0
    assert collate(empty, parse()).lengths_FB.shape == (6, 0)


def test_a_large_list_type_and_chunks_are_as_good(encoder: Encoder) -> None:
    raw = rows(20)
    large = raw.set_column(2, "tags", raw["tags"].cast(pa.large_list(pa.large_string())))
    chunked = pa.concat_tables([raw.slice(0, 7), raw.slice(7)])

    assert encoder.encode(large).equals(encoder.encode(raw))
    assert encoder.encode(chunked).equals(encoder.encode(raw))


def test_collated_values_are_slot_major_and_respect_slices(encoder: Encoder) -> None:
    encoded = encoder.encode(rows(40, seed=9))
    window = encoded.slice(11, 13)
    packed = collate(window, parse())
    names = ["user_id", "item_id", "tags", "price_bucket", "clicks.item", "clicks.age"]
    columns = [
        [value if isinstance(value, list) else [value] for value in window[name].to_pylist()]
        for name in names
    ]

    assert packed.lengths_FB.tolist() == [[len(ids) for ids in column] for column in columns]
    assert packed.values_N.tolist() == [
        value for column in columns for ids in column for value in ids
    ]
    assert packed.dense_BD[:, 1].tolist() == window["dense:position"].to_pylist()
