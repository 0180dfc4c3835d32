"""Maps of numbers from every format, and what is no map."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.convert import convert, parse
from recsys.errors import DataError
from tests.pipelines.small_pipeline import PIPELINE, SmallPipeline

TEXT_MAP, INTEGER_MAP = "map<string,float32>", "map<int64,float32>"
SCHEMA = f"""
[columns]
item = "int64"
tastes = "{TEXT_MAP}"
clicked = "bool"

[tables]
item = {{ rows = 100 }}

[features]
item = {{ kind = "categorical", table = "item" }}

[tasks]
click = {{ label = "clicked" }}
"""

maps = st.lists(
    st.none()
    | st.dictionaries(
        st.text("abc:", min_size=1, max_size=3), st.floats(width=32, allow_nan=False)
    ),
    max_size=5,
)


def as_dictionaries(values: pa.Array) -> list[dict[Any, Any] | None]:
    return [None if row is None else dict(row) for row in values.to_pylist()]


@given(maps)
def test_all_ways_of_writing_a_map_mean_the_same(rows: list[dict[str, float] | None]) -> None:
    pairs = [None if row is None else list(row.items()) for row in rows]
    arrow = pa.array(pairs, pa.map_(pa.string(), pa.float64()))
    listed = pa.array(
        [None if row is None else [{"value": v, "key": k} for k, v in row] for row in pairs],
        pa.list_(pa.struct([("value", pa.float64()), ("key", pa.string())])),
    )
    text = pa.array(
        [None if row is None else "|".join(f"{k}:{v!r}" for k, v in row) for row in pairs],
        pa.string(),
    )
    for found in (
        convert(arrow, TEXT_MAP),
        convert(listed, TEXT_MAP),
        convert(pa.concat_arrays([arrow, arrow]).slice(len(rows)), TEXT_MAP),
        parse(text, TEXT_MAP, separator="|"),
    ):
        found.validate(full=True)
        assert found.type == pa.map_(pa.string(), pa.float32())
        assert as_dictionaries(found) == rows


@given(maps)
def test_the_fields_of_a_struct_are_keys_and_its_nulls_are_absent(
    rows: list[dict[str, float] | None],
) -> None:
    names = sorted({name for row in rows for name in row or {}} | {"a"})
    values = pa.array(rows, pa.struct([(name, pa.float64()) for name in names]))
    found = convert(values, TEXT_MAP)
    found.validate(full=True)
    assert as_dictionaries(found) == rows


def test_keys_are_integers_where_the_schema_says_so() -> None:
    typed = pa.array([[(7, 1), (8, None)], None], pa.map_(pa.int32(), pa.int64()))
    struct = pa.array([{"7": 1.0, "8": None}, None])
    text = pa.array(["7=1, 8=2", None])
    assert as_dictionaries(convert(typed, INTEGER_MAP)) == [{7: 1.0, 8: None}, None]
    assert as_dictionaries(convert(struct, INTEGER_MAP)) == [{7: 1.0}, None]
    parsed = parse(text, INTEGER_MAP, separator=",", map_separator="=")
    assert as_dictionaries(parsed) == [{7: 1.0, 8: 2.0}, None]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[("a", 1.0), ("a", 2.0)]], pa.map_(pa.string(), pa.float64())),
        pa.array([[{"key": None, "value": 1.0}]]),
        pa.array([[{"key": "1", "value": 1.0}, {"key": "1", "value": 1.0}]]),
    ],
)
def test_a_key_that_is_null_or_occurs_twice_does_not_fit(values: pa.Array) -> None:
    with pytest.raises(pa.ArrowInvalid, match="key"):
        convert(values, TEXT_MAP)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pa.array([[("a", 1.0)]], pa.map_(pa.string(), pa.float64())), INTEGER_MAP),
        (pa.array([[(1, 1.0)]], pa.map_(pa.int64(), pa.float64())), TEXT_MAP),
        (pa.array([[("a", "x")]], pa.map_(pa.string(), pa.string())), TEXT_MAP),
        (pa.array([{"a": "x"}]), TEXT_MAP),
        (pa.array(["a:1"]), TEXT_MAP),
        (pa.array([[1.0]]), TEXT_MAP),
    ],
)
def test_another_family_is_refused(values: pa.Array, dtype: str) -> None:
    with pytest.raises(DataError, match="in the file, the schema says"):
        convert(values, dtype)


@pytest.mark.parametrize("text", ["a", "a:x", "a:1||b:2", "a:1|a:2", "|", "a:"])
def test_text_that_is_no_map_is_named_with_its_row(tmp_path: Path, text: str) -> None:
    lines = f"item,tastes,clicked\n1,a:1|b:-2.5,1\n2,,1\n3,{text},0\n"
    pipeline = PIPELINE.replace(
        'format = "csv"', 'format = "csv"\ncsv = { list_separator = "|", nulls = [] }'
    )
    small = SmallPipeline(tmp_path, schema=SCHEMA, pipeline=pipeline, files={"log.csv": lines})
    with pytest.raises(DataError) as caught:
        small.rows()
    assert f"log.csv, row 3, column 'tastes': found {text!r}, which is no {TEXT_MAP}" in str(
        caught.value
    )
    small.files = {"log.csv": lines.replace(f"3,{text},", "3,b:1,")}
    assert [dict(row["tastes"]) for row in small.rows()] == [{"a": 1.0, "b": -2.5}, {}, {"b": 1.0}]


def test_maps_of_json_objects(tmp_path: Path) -> None:
    tastes: list[Any] = [{"a": 1, "b": 2.5}, None, {}, {"a": None}]
    lines = [{"item": 1, "tastes": taste, "clicked": True} for taste in tastes]
    pipeline = PIPELINE.replace('"csv"', '"jsonl"').replace("log.csv", "log.jsonl")
    text = "\n".join(json.dumps(line) for line in lines)
    small = SmallPipeline(tmp_path, schema=SCHEMA, pipeline=pipeline, files={"log.jsonl": text})
    found = pa.concat_arrays(
        [pa.array([row["tastes"]], pa.map_(pa.string(), pa.float32())) for row in small.rows()]
    )
    assert as_dictionaries(found) == tastes
    assert pc.is_null(found).to_pylist() == [False, True, False, False]
    small.schema = SCHEMA.replace(TEXT_MAP, INTEGER_MAP)
    with pytest.raises(DataError, match="row 1, column 'tastes': found the key \"a\""):
        small.rows()
