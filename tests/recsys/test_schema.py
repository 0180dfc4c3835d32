"""The schema: what it derives, which changes invalidate data, and the sentence for each mistake."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recsys.errors import ConfigError
from recsys.layout import dense, encoded_arrow, slots
from recsys.schema import load_schema, parse_schema
from tests import samples
from tests.samples import parse, tree


def test_slots_follow_declaration_features_first_then_tokens() -> None:
    found = [(slot.name, slot.table, slot.side, slot.kind, slot.dim) for slot in slots(parse())]

    assert found == [
        ("user_id", "user", "user", "single", 16),
        ("item_id", "item", "candidate", "single", 8),
        ("tags", "tag", "candidate", "bag", 4),
        ("price_bucket", "price_bucket", "candidate", "single", 4),
        ("clicks.item", "item", "user", "token", 8),
        ("clicks.age", "clicks.age", "user", "token", 8),
    ]
    assert [item.name for item in dense(parse())] == ["price", "position"]


def test_a_request_carries_inputs_but_no_fixed_feature_no_label_and_no_key() -> None:
    assert parse().raw_arrow(labels=False).names == [
        "user_id",
        "item_id",
        "tags",
        "price",
        "clicks_item",
        "clicks_age",
        "shown_at",
    ]


def test_encoded_rows_carry_labels_and_kept_columns_raw() -> None:
    schema = encoded_arrow(parse())

    assert schema.field("clicks.item").type == pa.list_(pa.int64())
    assert schema.names[-4:] == ["keep:user_id", "keep:item_id", "keep:shown_at", "keep:country"]


def test_large_tables_hash_and_small_ones_take_a_vocabulary() -> None:
    tables = parse().tables

    assert (tables["user"].id_kind, tables["item"].id_kind) == ("vocabulary", "hash")


def test_a_schema_survives_json_with_both_digests() -> None:
    again = parse_schema(parse().to_json(), where="copy")

    assert again == parse()
    assert again.model_digest == parse().model_digest


@pytest.mark.parametrize(
    ("section", "change", "invalidates_data"),
    [
        (("tables", "user"), {"dim": 32}, False),
        (("tables", "user"), {"rows": 99}, True),
        (("tables", "item"), {"seed": 1}, True),
        (("features", "user_id"), {"side": "context"}, False),
        (("features", "tags"), {"pooling": "sum"}, False),
        (("features", "price"), {"transform": "none"}, True),
        (("sequences", "clicks"), {"target": {}}, False),
        (("sequences", "clicks"), {"max_length": 9}, True),
        (("tasks", "click"), {"label": "purchased"}, True),
    ],
)
def test_data_digest_changes_exactly_when_encoded_rows_would(
    section: tuple[str, str], change: dict[str, Any], invalidates_data: bool
) -> None:
    changed = tree()
    changed[section[0]][section[1]].update(change)

    assert (parse(changed).data_digest != parse().data_digest) is invalidates_data
    assert parse(changed).model_digest != parse().model_digest


@pytest.mark.parametrize(
    ("change", "invalidates_data"),
    [
        ({"rows": 2_000_000}, False),
        ({"dim": 4}, False),
        ({"min_count": 5}, False),
        ({"eviction": "lfu"}, False),
        ({"seed": 1}, True),
        ({"ids": "hash"}, True),
    ],
)
def test_how_an_unbounded_table_admits_ids_is_not_in_the_days(
    change: dict[str, Any], invalidates_data: bool
) -> None:
    unbounded = tree()
    unbounded["tables"]["item"] |= {"ids": "unbounded"}
    changed = tree()
    changed["tables"]["item"] |= {"ids": "unbounded"} | change

    assert (parse(changed).data_digest != parse(unbounded).data_digest) is invalidates_data
    assert parse(changed).model_digest != parse(unbounded).model_digest
    assert parse(unbounded).data_digest != parse().data_digest


def test_ids_of_unbounded_tables_are_hashes_in_the_days() -> None:
    unbounded = tree()
    unbounded["tables"]["item"] |= {"ids": "unbounded"}
    fields = encoded_arrow(parse(unbounded))

    assert parse(unbounded).unbounded == ("item",)
    assert fields.field("item_id").type == pa.uint64()
    assert fields.field("clicks.item").type == pa.list_(pa.uint64())
    assert fields.field("user_id").type == fields.field("clicks.age").type.value_type == pa.int64()


def test_model_digest_sees_the_order_of_features() -> None:
    changed = tree()
    changed["features"] = dict(reversed(changed["features"].items()))

    assert parse(changed).model_digest != parse().model_digest
    assert parse(changed).data_digest == parse().data_digest


MISTAKES: list[tuple[str, dict[str, Any] | None, str]] = [
    ("features.q", {"kind": "categoricl"}, "unknown 'categoricl' (did you mean 'categorical'?)"),
    (
        "features.q",
        {"kind": "categorical", "table": "usr", "column": "user_id"},
        "(did you mean 'user'?)",
    ),
    (
        "features.q",
        {"kind": "categorical", "table": "user"},
        "column 'q', which [columns] does not declare",
    ),
    (
        "features.q",
        {"kind": "numeric", "column": "user_id"},
        "needs column 'user_id' to be one of bool, int8",
    ),
    (
        "features.q",
        {"kind": "numeric", "column": "clicked"},
        "the label of task 'click'; remove the leak",
    ),
    (
        "features.q",
        {"kind": "numeric", "column": "price", "serve": "fixed"},
        "give both or neither",
    ),
    (
        "features.q",
        {"kind": "numeric", "column": "price", "serve": "fixed", "value": "a"},
        "does not fit column 'price'",
    ),
    ("features.a/b", {"kind": "numeric", "column": "price"}, "must be a letter followed by"),
    ("features.clicks", {"kind": "numeric", "column": "price"}, "a feature has this name too"),
    ("features.price_bucket.buckets", 1, "must be at least 2, found 1"),
    ("features.price.clip", "a", "must be a number, found 'a'"),
    ("columns.price", "flot32", "unknown dtype 'flot32' (did you mean 'float32'?)"),
    ("tables.user.rowz", 3, "unknown key 'tables.user.rowz' (did you mean 'rows'?)"),
    ("tables.unused", {"rows": 10}, "tables.unused is read by no feature"),
    ("features.price.clipp", 1, "unknown key 'features.price.clipp' (did you mean 'clip'?)"),
    (
        "features.numeric",
        {"kind": "numeric", "clip": "a"},
        "features.numeric.clip: must be a number",
    ),
    ("features.column", {"kind": "numeric", "foo": 1}, "unknown key 'features.column.foo'"),
    ("sequences.clicks.max_lenght", 3, "(did you mean 'max_length'?)"),
    ("sequences.clicks.age.kind", "tme_gap", "unknown 'tme_gap' (did you mean 'time_gap'?)"),
    (
        "sequences.clicks.target",
        {"itm": "item_id"},
        "no id token of that name (did you mean 'item'?)",
    ),
    (
        "sequences.clicks.target",
        {"item": "user_id"},
        "needs a candidate-side categorical feature of table 'item'",
    ),
    ("keys.time", "price", "keys.time needs column 'price' to be timestamp"),
    ("keys.time", None, "so [keys] must name the impression's time column"),
    ("tasks.purchase.given", "clik", "(did you mean 'click'?)"),
    ("tasks.click.given", "purchase", "the funnel runs in a circle"),
    ("tasks", {}, "tasks: none declared"),
    ("feature", {}, "unknown key 'feature' (did you mean 'features'?)"),
]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    MISTAKES,
    ids=[f"{path}-{i}" for i, (path, *_) in enumerate(MISTAKES)],
)
def test_each_mistake_is_one_sentence_naming_file_key_and_remedy(
    path: str, value: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(samples.edited(tree(), path, value))

    message = str(caught.value)
    assert message.startswith("schema.toml: ")
    assert sentence in message
    assert "\n" not in message


def test_a_table_read_as_strings_and_as_integers_is_refused() -> None:
    changed = tree()
    changed["features"]["q"] = {"kind": "categorical", "table": "item", "column": "user_id"}

    with pytest.raises(
        ConfigError,
        match=r"tables.item is read by column 'item_id' \(integer\) and column 'user_id'",
    ):
        parse(changed)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_schema(tmp_path / "schema.toml")
    (tmp_path / "schema.toml").write_text("[columns\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_schema(tmp_path / "schema.toml")
