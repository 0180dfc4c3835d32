"""JSON lines: what pyarrow reads, what is read line by line, and one sentence with the row for the rest."""

import bz2
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import jsonl_files
from pipelines.files import column_names, cut_into_parts, read
from pipelines.sources import DataFile
from recsys.errors import DataError
from recsys.schema import ARROW_TYPES
from tests.pipelines.small_pipeline import PIPELINE, SCHEMA, SmallPipeline

PIPELINE_JSONL = PIPELINE.replace("log.csv", "log.jsonl").replace('"csv"', '"jsonl"')
LINE: dict[str, Any] = {
    "user": "ann",
    "item": 1,
    "price": 2,
    "shown_at": "2026-10-01T10:00:00Z",
    "clicked": True,
}


def values_of(path: Path, dtype: str | None, *, part_bytes: int = 1 << 20) -> list[Any]:
    """The values of key "a", part by part; every batch must say how many rows stand before it."""
    file = DataFile(path, 0, "jsonl", None, {})
    declared: Mapping[str, pa.DataType] = {} if dtype is None else {"a": ARROW_TYPES[dtype]}
    found: list[Any] = []
    for part in cut_into_parts([file], part_bytes=part_bytes):
        for piece in part:
            for batch in read(piece, ["a"], declared=declared):
                assert batch.first_row == len(found)
                found += batch.table.column("a").to_pylist()
    return found


def write(folder: Path, content: str | bytes, name: str = "log.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


VALUES: dict[str, tuple[str | None, list[Any]]] = {
    "int64": ("int64", [1, None, -(2**63), 2**63 - 1]),
    "integers written as floats": ("int64", [1, 2.0, 2**60 + 1]),
    "float32": ("float32", [1, 2.5, None, 1e300]),
    "string": ("string", ["1", "é 😀 \n", None, "NaN"]),
    "bool": ("bool", [True, None, False]),
    "numbers of a bool": ("bool", [0, 1]),
    "timestamp": ("timestamp", ["2026-10-01", None]),
    "list<int64>": ("list<int64>", [[1, 2], [], None, [3, None]]),
    "list<string>": ("list<string>", [["a"], []]),
    "only nulls": ("int64", [None, None]),
    "only empty lists": ("list<int64>", [[], None]),
    "undeclared text": (None, ["a", None]),
    "undeclared dates stay text": (None, ["2026-10-01", "2026-10-01 10:00:00"]),
    "undeclared numbers": (None, [1, 2.5]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("reader", ["pyarrow", "line by line"])
def test_values_come_back_as_json_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader: str
) -> None:
    dtype, values = VALUES[name]
    if reader == "line by line":
        monkeypatch.setattr(jsonl_files, "_plain_block", lambda *_: None)
    path = write(tmp_path, "".join(json.dumps({"b": [{}], "a": value}) + "\n" for value in values))
    assert values_of(path, dtype) == values


def test_a_block_of_plain_json_is_read_by_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl_files, "_any_block", None)
    path = write(tmp_path, '{"a": "x", "b": 1}\n{"b": 2}\n{"a": null}\n')
    assert values_of(path, "string") == ["x", None, None]


def test_absent_keys_are_null_and_blank_lines_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"a": 1}\r\n\r\n{"b": 2}\n   \n{"a": null}\n\n{"a": 3}')
    assert values_of(path, "int64") == [1, None, None, 3]
    assert column_names(DataFile(path, 0, "jsonl", None, {})) == ("a", "b")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_lines_are_unpacked(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = write(tmp_path, pack(b'{"a": 1}\n{"a": 2}\n'), f"log.jsonl{suffix}")
    assert values_of(path, "int64", part_bytes=1) == [1, 2]


@given(
    values=st.lists(st.none() | st.text('aé\n"{', max_size=3), max_size=8)
    | st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=8),
    between=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n", "\n\t"]),
    part_bytes=st.integers(10, 100),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_lines_come_back_wherever_the_file_is_cut(
    tmp_path: Path, values: list[Any], between: str, part_bytes: int
) -> None:
    text = between.join(json.dumps({"a": value}) for value in [None, *values])
    assert values_of(write(tmp_path, text), None, part_bytes=part_bytes) == [None, *values]


BAD_LINES: dict[str, tuple[str | bytes, str, str]] = {
    "a number for text": (
        '{"a": "17"}\n{"a": 17}\n',
        "string",
        "row 2, column 'a': found 17, a number, where the schema says string; "
        'write it as text ("17") or declare it as a number',
    ),
    "text for a number": (
        '{"a": 17}\n{"a": "17"}\n',
        "int64",
        "row 2, column 'a': found \"17\", text, where the schema says int64; write a number",
    ),
    "true among numbers": (
        '{"a": 17}\n{"a": true}\n',
        "int64",
        "row 2, column 'a': found true, true or false, where earlier rows hold a number",
    ),
    "a value for a list": ('{"a": [1]}\n{"a": 1}\n', "list<int64>", "row 2, column 'a': found 1, a number, where"),
    "text within a list": (
        '{"a": [1]}\n{"a": null}\n{"a": [2, "x"]}\n',
        "list<int64>",
        "row 3, column 'a': found \"x\", text, where the schema says int64",
    ),
    "beyond 64 bits": (
        '{"a": 1}\n{"a": 18446744073709551615}\n',
        "int64",
        "row 2, column 'a': found 18446744073709551615, beyond 64-bit integers; write it as text",
    ),
    "beyond floats": ('{"a": 1e999}\n', "float32", "row 1, column 'a': found inf, beyond 64-bit floats"),
    "NaN": ('{"a": 1}\n{"a": NaN}\n', "float32", "row 2: NaN is no JSON; write null"),
    "Infinity": ('{"a": [-Infinity]}\n', "list<float32>", "row 1: -Infinity is no JSON"),
    "a missing comma": (
        '{"a": 1}\n\n{"a": 1 "b": 2}\n',
        "int64",
        "row 2: not JSON (Expecting ',' delimiter at character 9), found '{\"a\": 1 \"b\": 2}'; each line must be",
    ),
    "a line cut short": ('{"a": 1}\n{"a": ', "int64", "row 2: not JSON (Expecting value at character"),
    "two objects on a line": ('{"a": 1}{"a": 2}\n', "int64", "row 1: not JSON (Extra data at"),
    "an object over several lines": ('{\n"a": 1\n}\n', "int64", "row 1: not JSON"),
    "one list": ('[{"a": 1},\n{"a": 2}]\n', "int64", "the file is one JSON list; write one object a line"),
    "no object": ('{"a": 1}\n2\n', "int64", "row 2: found '2'; each line must be one JSON object"),
    "a key twice": ('{"a": 1, "a": 2}\n', "int64", "row 1: key 'a' occurs twice in one object"),
    "latin-1": ('{"a": "é"}\n'.encode("latin-1"), "string", "row 1: the line is not UTF-8"),
    "UTF-16": ('{"a": "é"}\n'.encode("utf-16"), "string", "the text looks like UTF-16"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_cannot_be_meant_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    content, dtype, said = BAD_LINES[name]
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        values_of(path, dtype)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert said in str(caught.value)


def test_a_fault_in_a_later_part_is_named_with_its_row_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}\n' * 5_000 + '{"a": "x"}\n')
    with pytest.raises(DataError, match="row 5001, column 'a': found \"x\""):
        values_of(path, "int64", part_bytes=1_000)


def test_json_lines_become_typed_rows(tmp_path: Path) -> None:
    lines = [
        LINE,
        LINE | {"price": None, "clicked": False, "shown_at": None},
        LINE | {"price": 2.5},
    ]
    small = SmallPipeline(
        tmp_path,
        pipeline=PIPELINE_JSONL,
        files={"log.jsonl": "\n".join(json.dumps(line) for line in lines)},
    )
    assert [(row["price"], row["clicked"]) for row in small.rows()] == [
        (2.0, True),
        (None, False),
        (2.5, True),
    ]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("item", 2.5, "row 2, column 'item': found 2.5, which is no int64"),
        ("clicked", 2, "row 2, column 'clicked': found 2, a number, where earlier rows"),
        ("shown_at", "01/10/2026", "row 2, column 'shown_at': found '01/10/2026', which is no ISO"),
        (
            "shown_at",
            1790847000,
            "column 'shown_at': found 1790847000, a number, where earlier rows",
        ),
    ],
)
def test_values_that_do_not_fit_their_dtype_are_named(
    tmp_path: Path, column: str, value: Any, said: str
) -> None:
    text = "\n".join(json.dumps(line) for line in (LINE, LINE | {column: value}))
    small = SmallPipeline(tmp_path, pipeline=PIPELINE_JSONL, files={"log.jsonl": text})
    with pytest.raises(DataError) as caught:
        small.rows()
    assert said in str(caught.value)


def test_a_rule_may_use_a_key_that_the_schema_does_not_declare(tmp_path: Path) -> None:
    pipeline = PIPELINE_JSONL + '\n[labels]\nclicked = { column = "event", equals = "click" }\n'
    lines = [LINE | {"event": event} for event in ("click", "view", None)]
    text = "\n".join(json.dumps(line) for line in lines)
    small = SmallPipeline(tmp_path, SCHEMA, pipeline, {"log.jsonl": text})
    assert [row["clicked"] for row in small.rows()] == [True, False, None]


def test_a_side_table_may_be_json_lines_whose_blocks_type_a_column_apart(tmp_path: Path) -> None:
    pipeline = PIPELINE + (
        '\n[[joins]]\npath = "items.jsonl"\nformat = "jsonl"\non = ["item"]\ncolumns = ["sort"]\n'
        '\n[labels]\nclicked = { column = "sort", equals = "x" }\n'
    )
    small = SmallPipeline(tmp_path, pipeline=pipeline)
    small.files["items.jsonl"] = '{"item": 1, "sort": null}\n{"item": 2, "sort": "x"}'
    assert [row["clicked"] for row in small.rows()] == [None, True, True]
