"""The kinds of features in a schema: what they derive, what invalidates data, and the sentence for each mistake."""

from typing import Any

import pyarrow as pa
import pytest

from recsys.errors import ConfigError
from recsys.layout import column_sides, dense, encoded_arrow, slots
from recsys.schema import BucketFeature, DatePartFeature, parse_schema
from tests import samples
from tests.every_kind import parse, tree


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tree with one entry replaced, or removed if the value is None."""
    return samples.edited(tree(), path, value)


def test_each_kind_is_a_single_id_a_bag_a_number_or_a_vector() -> None:
    found = {slot.name: (slot.table, slot.side, slot.kind, slot.dim) for slot in slots(parse())}
    widths = {item.name: (item.side, item.width) for item in dense(parse())}

    assert found["user_genre"] == ("user_genre", "candidate", "single", 4)
    assert found["hour_of_week"] == ("hour_of_week", "user", "single", 8)
    assert found["price_band"] == ("price_band", "candidate", "single", 4)
    assert found["words"] == ("word", "candidate", "bag", 4)
    assert widths["picture"] == ("candidate", 3)
    assert widths["rate"] == widths["affinity"] == widths["common"] == ("candidate", 1)
    assert [slot.name for slot in slots(parse()) if slot.weighted] == ["tags"]
    assert parse().all_tables["hour_of_week"].rows == 168 + 2
    assert parse().all_tables["price_band"].rows == 4 + 2


def test_weights_stand_beside_their_ids_and_a_vector_is_one_column() -> None:
    schema = encoded_arrow(parse())

    assert schema.names[schema.get_field_index("tags") + 1] == "weights:tags"
    assert schema.field("weights:tags").type == pa.list_(pa.float32())
    assert schema.field("dense:picture").type == pa.list_(pa.float32(), 3)
    assert schema.field("dense:affinity").type == pa.float32()


def test_a_request_carries_each_column_once_on_one_side() -> None:
    sides = column_sides(parse())

    assert tuple(sides) == parse().request_columns
    by_side = {
        side: {name for name, found in sides.items() if found == side}
        for side in ("user", "context", "candidate")
    }
    assert by_side["user"] == {"user_id", "liked", "affinity", "visits"}
    assert by_side["context"] == {"shown_at"}
    assert by_side["candidate"] == {
        *("genre", "tags", "tag_scores", "price", "clicks", "title", "picture", "item_id")
    }


def test_the_time_of_a_candidate_side_date_part_is_carried_once() -> None:
    schema = parse(changed("features.hour.side", "candidate"))

    assert column_sides(schema)["shown_at"] == "context"
    assert {slot.name: slot.side for slot in slots(schema)}["hour"] == "candidate"


def test_columns_default_to_the_name_and_a_date_part_to_the_time() -> None:
    features = parse().features

    assert features["affinity"].columns == ("affinity", "genre")
    assert features["tags"].columns == ("tags", "tag_scores")
    assert features["rate"].columns == ("clicks", "price")
    hour = features["hour"]
    assert isinstance(hour, DatePartFeature)
    assert (hour.column, hour.side) == ("shown_at", "context")


def test_edges_say_how_many_buckets_there_are() -> None:
    band = parse().features["price_band"]

    assert isinstance(band, BucketFeature)
    assert band.buckets == 4


def test_a_schema_survives_json_with_both_digests() -> None:
    again = parse_schema(parse().to_json(), where="copy")

    assert again == parse()
    assert again.model_digest == parse().model_digest
    assert again.data_digest == parse().data_digest


@pytest.mark.parametrize(
    ("path", "value", "invalidates_data"),
    [
        ("features.tags.weights", None, True),
        ("features.price_band.edges", [1, 2.5, 11], True),
        ("features.hour.utc_offset_hours", 1.0, True),
        ("features.hour.dim", 9, False),
        ("features.hour.side", "candidate", False),
        ("features.outline.dim", 2, True),
        ("features.picture.normalize", "none", True),
        ("features.user_genre.columns", ["genre", "user_id"], True),
        ("features.user_genre.user_columns", [], False),
        ("features.words.ngrams", [1], True),
        ("features.words.max_ids", 6, True),
        ("features.words.pooling", "sum", False),
        ("features.affinity.key", "user_id", True),
        ("features.share.measure", "count", True),
        ("features.rate.expression", "clicks / price", True),
        ("features.rate.clip", 4, True),
    ],
)
def test_data_digest_changes_exactly_when_encoded_rows_would(
    path: str, value: Any, invalidates_data: bool
) -> None:
    other = parse(changed(path, value))

    assert (other.data_digest != parse().data_digest) is invalidates_data
    assert other.model_digest != parse().model_digest


MISTAKES: list[tuple[str, Any, str]] = [
    (
        "features.q",
        {"kind": "cross", "columns": ["user_id", "tags"], "table": "user_genre"},
        "features.q needs column 'tags' to be one of bool, int8, int16, int32, int64, string, found list<string>",
    ),
    (
        "features.user_genre.columns",
        ["genre"],
        "features.user_genre.columns: needs at least 2 entries",
    ),
    ("features.user_genre.columns", ["genre", "genre"], "names a column twice"),
    ("features.user_genre.table", "user_gnre", "(did you mean 'user_genre'?)"),
    ("features.user_genre.user_columns", ["usr_id"], "does not read (did you mean 'user_id'?)"),
    (
        "features.user_genre.side",
        "user",
        'of side = "user" come once a request; remove user_columns',
    ),
    ("features.genre.user_columns", ["genre"], "unknown key 'features.genre.user_columns'"),
    ("features.user_genre.serve", "fixed", "unknown key 'features.user_genre.serve'"),
    (
        "features.genre.table",
        "user_genre",
        "tables.user_genre is read by column 'genre' (string) and feature 'user_genre' (hashed); give each",
    ),
    (
        "features.affinity.key",
        "item_id",
        "features.affinity needs column 'item_id' to be string, found int64",
    ),
    ("features.visits.key", "genre", "needs column 'genre' to be one of bool, int8"),
    (
        "features.affinity.column",
        "tags",
        "needs column 'tags' to be one of map<string,float32>, map<",
    ),
    (
        "columns.affinity",
        "map<string,int64>",
        "unknown dtype 'map<string,int64>' (did you mean 'map<",
    ),
    (
        "features.common.columns",
        ["item_id", "tags"],
        "features.common reads columns 'tags' (string) and 'item_id' (integer); compare ids of one type",
    ),
    ("features.common.columns", ["price", "tags"], "needs column 'price' to be one of"),
    ("features.common.measure", "dice", "'count', 'share' or 'jaccard', found 'dice'"),
    ("features.picture.dim", None, "'features.picture.dim' is missing; add it"),
    ("features.picture.column", "tags", "to be list<float32>, found list<string>"),
    ("features.price_band.edges", [1, 3, 2], "edges must increase, found 3 before 2; sort them"),
    ("features.price_band.edges", [1, 1], "edges must increase, found 1 before 1; sort them"),
    ("features.price_band.edges", [], "features.price_band.edges: needs at least 1 entry"),
    (
        "features.price_band.edges",
        [1, float("inf")],
        "edges[1]: must be a finite number, found inf",
    ),
    ("features.price_band.edges", [float("nan")], "edges[0]: must be a finite number, found nan"),
    (
        "features.liked",
        {"kind": "multi_valued", "table": "tag", "serve": "fixed", "value": "red"},
        "features.liked: column 'liked' is list<string>, and a fixed value is one number or text",
    ),
    ("features.price_band.buckets", 8, "edges and buckets are both given; give edges, or buckets"),
    ("tables.price_band", {"rows": 9}, "a bucket feature brings its own table"),
    ("tables.hour", {"rows": 9}, "a date_part feature brings its own table"),
    (
        "keys.time",
        None,
        "features.hour is a part of the row's time, which [keys] does not name; add",
    ),
    ("features.hour.part", "hours", "found 'hours'"),
    ("features.hour.column", "price", "needs column 'price' to be timestamp, found float32"),
    ("features.tags.weights", "tag_score", "(did you mean 'tag_scores'?)"),
    (
        "features.tags.weights",
        "liked",
        "needs column 'liked' to be list<float32>, found list<str",
    ),
    (
        "features.words.ngrams",
        [2, 1],
        "ngrams are lengths that increase, such as [1, 2], found [2, 1]",
    ),
    (
        "features.words.column",
        "tags",
        "needs column 'tags' to be string, found list<string>",
    ),
    (
        "features.rate.expression",
        "log1p(clicks",
        "schema.toml: features.rate.expression: position 13: expected an operator or ')', found the end",
    ),
    (
        "features.rate.expression",
        "lg(clicks)",
        "position 1: no function 'lg' (did you mean 'log'?)",
    ),
    ("features.rate.expression", "1 + 2", "the expression reads no column; name at least one"),
    (
        "features.rate.expression",
        "clics + 1",
        "names column 'clics', which [columns] does not declare (did",
    ),
    ("features.rate.expression", "shown_at + 1", "needs column 'shown_at' to be one of bool, int8"),
    (
        "features.rate.expression",
        "price * clicked",
        "reads column 'clicked', the label of task 'click'",
    ),
    (
        "features.likes_it.columns",
        ["clicked", "liked"],
        "reads column 'clicked', the label of task",
    ),
    (
        "features.user_genre.columns",
        ["clicked", "genre"],
        "reads column 'clicked', the label of task",
    ),
]


@pytest.mark.parametrize(("path", "value", "sentence"), MISTAKES)
def test_each_mistake_is_one_sentence_naming_file_key_and_remedy(
    path: str, value: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(path, value))

    message = str(caught.value)
    assert message.startswith("schema.toml: ")
    assert sentence in message
    assert "\n" not in message
