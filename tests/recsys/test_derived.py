"""Every kind of feature against plain Python row by row, its invariances, and the sentence for each bad value."""

import math
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from recsys.encode import Encoder, load_encoder
from recsys.errors import DataError
from recsys.fitting import fit
from recsys.layout import encoded_arrow
from recsys.schema import Schema
from tests.every_kind import parse, rows, tree

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return fit(parse(), [rows(300, seed=1)])


def splitmix(value: int, seed: int = 0) -> int:
    state = (value + (seed + 1) * GAMMA) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def hashed(value: str | int) -> int:
    return splitmix(value) if isinstance(value, int) else xxhash.xxh3_64_intdigest(value.encode())


def combined(hashes: list[int]) -> int:
    result, *others = hashes
    for other in others:
        result = splitmix((result * GAMMA) & MASK ^ other)
    return result


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def table_row(encoder: Encoder, table: str, value: Any) -> int:
    if value is None:
        return 0
    settings = encoder.schema.tables[table]
    if settings.id_kind == "vocabulary":
        fitted = encoder.vocabularies[table].values.to_pylist()
        return fitted.index(value) + 2 if value in fitted else 1
    return splitmix(value, settings.seed) % (settings.rows - 2) + 2


def cross(encoder: Encoder, table: str, values: list[Any]) -> int:
    if None in values:
        return 0
    return table_row(encoder, table, signed(combined([hashed(value) for value in values])))


def plain(text: str) -> str:
    kept = [c if unicodedata.category(c)[0] in "LMN" else " " for c in text]
    return " ".join("".join(kept).split())


def ngram_rows(
    encoder: Encoder, table: str, units: list[str], lengths: list[int], most: int
) -> list[int]:
    ids = [
        signed(combined([hashed(unit) for unit in units[i : i + n]]))
        for i in range(len(units))
        for n in lengths
        if i + n <= len(units)
    ]
    return [table_row(encoder, table, value) for value in ids[:most]]


def date_row(shown: datetime | None, hours: float, part: Callable[[datetime], int]) -> int:
    return 0 if shown is None else 2 + part(shown + timedelta(hours=hours))


def vector(values: list[float] | None, length: float) -> list[float]:
    return [0.0] * 3 if values is None else [value / (length or 1.0) for value in values]


def share(left: Any, right: Any, measure: str) -> float | None:
    if left is None or right is None:
        return None
    first, second = ({left} if isinstance(left, str) else set(left) - {None}, set(right) - {None})
    whole = {"count": 1, "share": len(first), "jaccard": len(first | second)}[measure]
    return len(first & second) / whole if whole else None


def number(encoder: Encoder, name: str, value: float | None) -> float:
    item: Any = encoder.schema.features[name]
    if value is None or not math.isfinite(value):
        return 0.0
    if item.transform == "log1p":
        value = math.copysign(math.log1p(abs(value)), value)
    if item.normalize == "zscore":
        value = (value - encoder.moments[name].mean) / encoder.moments[name].std
    return value if item.clip is None else max(-item.clip, min(item.clip, value))


def rate(price: float | None, clicks: int | None) -> float | None:
    if price is None or clicks is None or clicks <= -1 or price == 2:
        return None
    return math.log1p(clicks) / (price - 2)


def cheap(price: float | None, clicks: int | None) -> float | None:
    if price is None:
        return None
    if price < 2:
        return 1.0
    return None if clicks is None else float(max(0, min(5, clicks)))


def naive_row(encoder: Encoder, raw: dict[str, Any]) -> dict[str, Any]:
    """One row, encoded by the definitions with plain Python."""
    price, clicks, title, shown = (raw[name] for name in ("price", "clicks", "title", "shown_at"))
    picture = raw["picture"]
    edges = encoder.edges["price_bucket"]
    numbers = {
        "price": price,
        "affinity": dict(raw["affinity"] or []).get(raw["genre"]),
        "visits": dict(raw["visits"] or []).get(raw["item_id"]),
        "common": share(raw["liked"], raw["tags"], "count"),
        "share": share(raw["tags"], raw["liked"], "share"),
        "alike": share(raw["liked"], raw["tags"], "jaccard"),
        "likes_it": share(raw["genre"], raw["liked"], "count"),
        "rate": rate(price, clicks),
        "cheap": cheap(price, clicks),
    }
    return {
        "user_id": table_row(encoder, "user", raw["user_id"]),
        "genre": table_row(encoder, "genre", raw["genre"]),
        "tags": [table_row(encoder, "tag", tag) for tag in raw["tags"] or []],
        "weights:tags": raw["tag_scores"] or [],
        "liked": [table_row(encoder, "tag", tag) for tag in raw["liked"] or []],
        "price_band": 0 if price is None else 2 + sum(edge <= price for edge in (1, 2.5, 10)),
        "price_bucket": 0 if price is None else 2 + sum(edge <= price for edge in edges),
        "hour": date_row(shown, 5.5, lambda at: at.hour),
        "weekday": date_row(shown, -8, lambda at: at.weekday()),
        "day": date_row(shown, 0, lambda at: at.day - 1),
        "month": date_row(shown, 0, lambda at: at.month - 1),
        "hour_of_week": date_row(shown, 0, lambda at: at.weekday() * 24 + at.hour),
        "user_genre": cross(encoder, "user_genre", [raw["user_id"], raw["genre"]]),
        "user_item": cross(
            encoder, "user_item", [raw[name] for name in ("user_id", "item_id", "genre")]
        ),
        "words": ngram_rows(encoder, "word", plain((title or "").lower()).split(), [1, 2], 5),
        "letters": ngram_rows(encoder, "letter", list(plain(title or "")), [2, 3], 64),
        "dense:picture": vector(picture, math.hypot(*(picture or [0]))),
        "dense:outline": vector(picture, 1.0),
    } | {f"dense:{name}": number(encoder, name, value) for name, value in numbers.items()}


def test_every_kind_encodes_as_plain_python_does_row_by_row(encoder: Encoder) -> None:
    raw = rows(250, seed=2)

    for found, source in zip(encoder.encode_inputs(raw).to_pylist(), raw.to_pylist(), strict=True):
        expected = naive_row(encoder, source)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-6), (name, source)


def test_the_rows_compared_hold_what_is_rare(encoder: Encoder) -> None:
    encoded = encoder.encode_inputs(rows(250, seed=2))
    seen = {name: set(map(str, encoded[name].to_pylist())) for name in encoded.column_names}

    assert all(len(values) > 1 for values in seen.values()), seen
    assert min(encoded["words"].to_pylist(), key=len) == []
    assert max(len(ids) for ids in encoded["words"].to_pylist()) == 5


def test_a_row_alone_encodes_as_in_any_batch(encoder: Encoder) -> None:
    raw = rows(60, seed=3)
    together = encoder.encode_inputs(raw).to_pylist()

    assert [
        row for index in range(60) for row in encoder.encode_inputs(raw.slice(index, 1)).to_pylist()
    ] == together
    assert encoder.encode_inputs(raw.slice(7, 31)).to_pylist() == together[7:38]


def test_encoded_rows_have_the_declared_arrow_schema_even_if_there_are_none(
    encoder: Encoder,
) -> None:
    for raw in (rows(50), rows(5).slice(0, 0)):
        encoded = encoder.encode_inputs(raw)
        encoded.validate(full=True)
        assert encoded.schema == encoded_arrow(parse(), labels=False)


def test_one_side_needs_only_the_columns_that_its_features_read(encoder: Encoder) -> None:
    raw = rows(30)
    both = encoder.encode_inputs(raw)

    for side in ("user", "candidate"):
        features = [
            item
            for item in parse().features.values()
            if (item.side == "candidate") == (side == "candidate")
        ]
        read = {name for item in features for name in item.columns}
        part = encoder.encode_inputs(raw.select(sorted(read)), side=side)
        assert part.equals(both.select(part.column_names))


def test_fitting_does_not_depend_on_the_batches_and_measures_what_is_known() -> None:
    raw = rows(300, seed=5)
    whole = fit(parse(), [raw])
    parts = fit(parse(), [raw.slice(start, 41) for start in range(0, 300, 41)])

    for table, vocabulary in whole.vocabularies.items():
        assert parts.vocabularies[table].values.equals(vocabulary.values), table
    for name, moments in whole.moments.items():
        assert parts.moments[name].mean == pytest.approx(moments.mean), name
        assert parts.moments[name].std == pytest.approx(moments.std), name
    known = [
        value for row in raw.to_pylist() if (value := rate(row["price"], row["clicks"])) is not None
    ]
    assert whole.moments["rate"].mean == pytest.approx(np.mean(known))
    assert whole.moments["rate"].std == pytest.approx(np.std(known))
    assert whole.edges["price_band"].tolist() == [1.0, 2.5, 10.0]
    assert "visits" not in whole.moments


def test_an_extended_encoder_keeps_every_row_and_learns_new_combinations(
    encoder: Encoder,
) -> None:
    newcomers = rows(60, seed=7)
    column = newcomers.schema.get_field_index("user_id")
    newcomers = newcomers.set_column(column, "user_id", pa.array(["new"] * 60))
    extended = fit(parse(), [newcomers], previous=encoder)
    raw = rows(80, seed=8)

    known = np.asarray(encoder.encode_inputs(raw)["user_genre"]) > 1
    assert extended.encode(raw.filter(known)).drop(["words"]) == encoder.encode(
        raw.filter(known)
    ).drop(["words"])
    assert extended.accepts(encoder.digest)
    assert set(encoder.encode_inputs(newcomers)["user_genre"].to_pylist()) <= {0, 1}
    assert max(extended.encode_inputs(newcomers)["user_genre"].to_pylist()) > 1


def test_saved_and_loaded_it_encodes_the_same(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)

    assert (loaded.digest, loaded.schema) == (encoder.digest, encoder.schema)
    assert loaded.encode(rows()).equals(encoder.encode(rows()))


def test_hidden_values_of_null_lists_and_maps_do_not_count(encoder: Encoder) -> None:
    raw = rows(40, seed=9)
    hidden = {"genre": ["red", "war"], "liked": [["red"], ["war"]], "tags": [["red"], ["war"]]}
    maps = pa.array([[("red", 1.0)], [("war", 2.0)]], raw.schema.field("affinity").type)
    first_null = pa.array([True, False])
    table = raw.slice(0, 2)
    for name, values in hidden.items():
        array = pa.array(values, raw.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, array)
    masked = pa.MapArray.from_arrays(maps.offsets, maps.keys, maps.items, mask=first_null)
    table = table.set_column(table.schema.get_field_index("affinity"), "affinity", masked)
    scores = pa.array([[1.0], [1.0]], pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("tag_scores"), "tag_scores", scores)

    assert masked.keys.to_pylist() == ["red", "war"]
    found = encoder.encode_inputs(table)["dense:affinity"].to_pylist()
    assert found == pytest.approx([0.0, number(encoder, "affinity", 2.0)], abs=1e-6)


def test_a_map_of_large_strings_is_as_good(encoder: Encoder) -> None:
    raw = rows(30)
    large = raw["affinity"].cast(pa.map_(pa.large_string(), pa.float32()))
    other = raw.set_column(raw.schema.get_field_index("affinity"), "affinity", large)

    assert encoder.encode_inputs(other).equals(encoder.encode_inputs(raw))


def _with(name: str, values: list[Any]) -> pa.Table:
    raw = rows(len(values), seed=4)
    if name == "tag_scores":
        tags = pa.array([["red", "war"]] * len(values))
        raw = raw.set_column(raw.schema.get_field_index("tags"), "tags", tags)
    column = pa.array(values, raw.schema.field(name).type)
    return raw.set_column(raw.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("picture", [[1, 2, 3], [1, 2]], "row 1: feature 'picture', column 'picture': 2 numbers"),
        ("picture", [None, []], "row 1: feature 'picture', column 'picture': 0 numbers"),
        ("picture", [None, [1, None, 3]], "row 1: feature 'picture', column 'picture': null insi"),
        (
            "picture",
            [[1, 2, 3], [math.nan, 0, 0]],
            "row 1: feature 'picture', column 'picture': nan",
        ),
        ("tag_scores", [[1, 2], [1]], "row 1: feature 'tags', column 'tag_scores': 1 weights for"),
        ("tag_scores", [[1, 2], None], "row 1: feature 'tags', column 'tag_scores': 0 weights for"),
        ("tag_scores", [[1, 2], [1, -1]], "row 1: feature 'tags', column 'tag_scores': weight -1"),
        (
            "tag_scores",
            [[1, 2], [1, None]],
            "row 1: feature 'tags', column 'tag_scores': weight nu",
        ),
        (
            "tag_scores",
            [[1, 2], [1, math.inf]],
            "column 'tag_scores': weight inf; a weight is a fi",
        ),
        ("price", [1.0, math.nan], "row 1: feature 'price', column 'price': nan is not a finite"),
    ],
)
def test_rows_that_break_a_kind_get_a_sentence(
    encoder: Encoder, name: str, values: list[Any], sentence: str
) -> None:
    with pytest.raises(DataError) as caught:
        encoder.encode_inputs(_with(name, values))
    assert sentence in str(caught.value)


def test_a_map_value_that_is_looked_up_must_be_finite(encoder: Encoder) -> None:
    raw = _with("affinity", [[("red", math.inf)], [("red", math.inf)]])
    genres = pa.array(["war", "red"])
    raw = raw.set_column(raw.schema.get_field_index("genre"), "genre", genres)

    with pytest.raises(DataError, match="row 1: feature 'affinity', column 'affinity': inf"):
        encoder.encode_inputs(raw)


def test_an_expression_too_large_for_a_float32_is_refused_with_its_row() -> None:
    change = tree()
    change["features"]["rate"] |= {
        "expression": "exp(clicks)",
        "normalize": "none",
        "clip": 1e60,
    }
    schema: Schema = parse(change)
    encoder = fit(schema, [rows(20)])

    with pytest.raises(DataError, match=r"row 1: feature 'rate', column 'clicks': 1\.2.*e\+39"):
        encoder.encode_inputs(_with("clicks", [1, 90]))
    assert _dense(encoder, [710, 1]) == pytest.approx([0.0, math.e])


def test_numbers_too_large_to_normalise_are_refused_when_fitting() -> None:
    change = tree()
    change["features"]["rate"]["expression"] = "exp(clicks)"

    with pytest.raises(DataError, match="feature 'rate': its numbers are too large for a mean"):
        fit(parse(change), [_with("clicks", [700, 3])])


def _dense(encoder: Encoder, clicks: list[int]) -> list[float]:
    values: list[float] = encoder.encode_inputs(_with("clicks", clicks))["dense:rate"].to_pylist()
    return values
