"""Folders as sources, what their names state, and files of one source that do not agree."""

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from recsys.errors import ConfigError, DataError
from tests.pipelines.small_pipeline import CSV, PIPELINE, SCHEMA, SmallPipeline

HEADER, *LINES = CSV.strip().splitlines()
FOLDER = PIPELINE.replace('"log.csv"', '"logs/"')


def refusal(pipeline: SmallPipeline) -> str:
    with pytest.raises(DataError) as caught:
        pipeline.rows()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def typed(format_: str, text: str = FOLDER) -> str:
    return text.replace('"csv"', f'"{format_}"')


def table(**columns: pa.Array) -> pa.Table:
    log: dict[str, pa.Array] = {
        "user": pa.array(["ann"]),
        "item": pa.array([1]),
        "price": pa.array([1.0]),
        "shown_at": pa.array([0], pa.timestamp("us", tz="UTC")),
        "clicked": pa.array([True]),
    }
    return pa.table(
        {name: column for name, column in (log | columns).items() if column is not None}
    )


@pytest.mark.parametrize("path", ["logs", "logs/", "lo*"])
def test_a_folder_stands_for_its_data_files_and_those_below_by_name(
    tmp_path: Path, path: str
) -> None:
    files: dict[str, str | bytes | pa.Table] = {
        "logs/b/one.tsv": f"{HEADER}\n{LINES[0]}\n",
        "logs/a.csv": f"{HEADER}\n{LINES[1]}\n",
        "logs/c.csv": f"{HEADER}\n{LINES[2]}\n",
        "logs/_SUCCESS": "",
        "logs/_old/x.csv": "junk",
        "logs/.a.csv.crc": b"\x00",
        "logs/README.md": "junk",
    }
    small = SmallPipeline(tmp_path, pipeline=FOLDER.replace("logs/", path), files=files)
    names = [
        (batch.file.path.relative_to(tmp_path).as_posix(), row["user"])
        for batch in small.batches()
        for row in batch.table.to_pylist()
    ]
    assert names == [("logs/a.csv", "bob"), ("logs/b/one.tsv", "ann"), ("logs/c.csv", "ann")]


def test_links_to_folders_are_followed_and_a_file_of_two_names_is_refused(tmp_path: Path) -> None:
    files: dict[str, str | bytes | pa.Table] = {
        "logs/a.csv": f"{HEADER}\n{LINES[0]}\n",
        "elsewhere/b.csv": f"{HEADER}\n{LINES[1]}\n",
    }
    small = SmallPipeline(tmp_path, pipeline=FOLDER, files=files)
    small.write()
    (tmp_path / "logs/day=1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "logs/up").symlink_to(tmp_path / "logs")
    assert [row["user"] for row in small.rows()] == ["ann", "bob"]
    (tmp_path / "logs/latest.csv").symlink_to(tmp_path / "logs/a.csv")
    with pytest.raises(ConfigError, match=r"logs/a\.csv is named twice"):
        small.rows()


def test_brackets_in_a_path_are_no_pattern(tmp_path: Path) -> None:
    files: dict[str, str | bytes | pa.Table] = {
        "log[1].csv": f"{HEADER}\n{LINES[0]}\n",
        "log1.csv": f"{HEADER}\n{LINES[1]}\n",
    }
    text = PIPELINE.replace("log.csv", "log[1]*.csv")
    small = SmallPipeline(tmp_path / "work [2026]", pipeline=text, files=files)
    assert [row["user"] for row in small.rows()] == ["ann"]


@pytest.mark.parametrize("held", [None, "logs/part-00000"])
def test_a_folder_without_files_of_the_format_says_what_it_holds(
    tmp_path: Path, held: str | None
) -> None:
    (tmp_path / "logs").mkdir()
    small = SmallPipeline(tmp_path, pipeline=FOLDER, files={} if held is None else {held: CSV})
    said = refusal(small)
    assert f"{tmp_path / 'logs'}: the folder holds no csv file (*.csv, *.tsv" in said
    assert ("no other file" if held is None else "it holds part-00000") in said
    assert f"such as '{tmp_path / 'logs' / '*'}'" in said


@pytest.mark.parametrize("format_", ["csv", "parquet", "jsonl"])
def test_folder_names_are_columns_of_the_declared_type_where_files_lack_them(
    tmp_path: Path, format_: str
) -> None:
    schema = SCHEMA.replace(
        'clicked = "bool"', 'clicked = "bool"\nshop = "int16"\nday = "timestamp"'
    )
    schema = schema.replace("[tasks]", 'shop = { kind = "numeric" }\n[tasks]').replace(
        'item = "item"\n', 'item = "item"\nkeep = ["day"]\n', 1
    )
    files: dict[str, str | bytes | pa.Table] = {}
    for day, shop in (("2026-10-01", "7"), ("2026-10-02", "__HIVE_DEFAULT_PARTITION__")):
        name = f"logs/day={day}/shop={shop}/part.{format_}"
        files[name] = {
            "csv": f"{HEADER}\n{LINES[0]}\n",
            "parquet": table(),
            "jsonl": '{"user": "ann", "item": 1, "price": 1, "shown_at": "2026-10-01", "clicked": true}\n',
        }[format_]
    small = SmallPipeline(tmp_path, schema=schema, pipeline=typed(format_), files=files)
    rows = small.rows()
    assert [row["shop"] for row in rows] == [7, None]
    assert [row["day"] for row in rows] == [
        datetime.datetime(2026, 10, day, tzinfo=datetime.UTC) for day in (1, 2)
    ]
    small.schema = schema.replace('shop = "int16"', 'shop = "bool"')
    said = refusal(small)
    assert "shop=7" in said
    assert "row 1, column 'shop': found '7', which is no bool" in said


def test_a_column_of_the_file_wins_over_the_name_of_its_folder(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, pipeline=FOLDER, files={"logs/user=eve/a.csv": CSV})
    assert [row["user"] for row in small.rows()] == ["ann", "bob", "ann"]


def test_the_order_of_columns_and_columns_that_nobody_needs_may_differ(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, pipeline=typed("parquet"))
    small.files = {
        "logs/a.parquet": table(extra=pa.array([1])),
        "logs/b.parquet": table(extra=pa.array(["x"])).select(
            ["extra", "clicked", "item", "price", "user", "shown_at"]
        ),
    }
    first, second = small.rows()
    assert first == second


def test_a_column_that_one_file_lacks_names_the_file_that_has_it(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, pipeline=FOLDER)
    small.files = {"logs/a.csv": CSV, "logs/b.csv": CSV.replace("price", "prise")}
    assert (
        f"{tmp_path / 'logs' / 'b.csv'}: no column 'price' as {tmp_path / 'logs' / 'a.csv'} has it "
        "(did you mean 'prise'?)"
    ) in refusal(small)


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("item", pa.array(["1"]), "string, and int64"),
        ("user", pa.array([5], pa.int16()), "int16, and string"),
        ("price", pa.array([[1.0]]), "list<element: double>, and double"),
    ],
)
def test_types_that_differ_between_files_name_both_files_and_types(
    tmp_path: Path, column: str, values: pa.Array, found: str
) -> None:
    small = SmallPipeline(tmp_path, pipeline=typed("parquet"))
    small.files = {"logs/a.parquet": table(), "logs/b.parquet": table(**{column: values})}
    a, b = (tmp_path / "logs" / f"{name}.parquet" for name in "ab")
    assert f"{b}: column '{column}' is {found} in {a}; write both files alike" in refusal(small)


def test_widths_of_numbers_and_forms_of_text_may_differ_between_files(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, pipeline=typed("parquet"))
    small.files = {
        "logs/a.parquet": table(),
        "logs/b.parquet": table(
            user=pa.array(["ann"]).dictionary_encode(), item=pa.array([1], pa.int8())
        ),
        "logs/c.parquet": table(user=pa.array(["ann"], pa.large_string()), price=pa.array([None])),
    }
    first, second, third = small.rows()
    assert first == second == {**third, "price": 1.0}


@pytest.mark.parametrize("path", ["logs/a.csv", "logs/one.csv"])
def test_a_column_that_occurs_twice_says_where_and_how_to_name_it(
    tmp_path: Path, path: str
) -> None:
    small = SmallPipeline(tmp_path, pipeline=FOLDER, files={path: CSV.replace("price", "item", 1)})
    said = refusal(small)
    assert f"{tmp_path / path}: column 'item' occurs twice or more, as columns 2 and 3" in said
    assert "names = [...] under [csv], which replaces the header" in said
    small.pipeline += '\n[csv]\nnames = ["user", "item", "price", "shown_at", "clicked"]\n'
    assert [row["item"] for row in small.rows()] == [1, 2, 2]


def test_keys_that_some_json_lines_lack_are_null_there(tmp_path: Path) -> None:
    whole = '{"user": "ann", "item": 1, "price": 2, "shown_at": "2026-10-01", "clicked": true}\n'
    small = SmallPipeline(tmp_path, pipeline=typed("jsonl"))
    small.files = {"logs/a.jsonl": whole.replace('"price": 2, ', ""), "logs/b.jsonl": whole}
    assert [row["price"] for row in small.rows()] == [None, 2.0]
    small.files = {"logs/b.jsonl": whole.replace("price", "prise")}
    (tmp_path / "logs" / "a.jsonl").unlink()
    assert "b.jsonl: no column 'price' (did you mean 'prise'?)" in refusal(small)


def test_a_key_that_comes_late_in_json_lines_is_found(tmp_path: Path) -> None:
    line = '{"user": "ann", "item": 1, "shown_at": "2026-10-01", "clicked": true}\n'
    late = line.replace("}", ', "price": 3}')
    small = SmallPipeline(
        tmp_path, pipeline=typed("jsonl"), files={"logs/a.jsonl": line * 1_500 + late}
    )
    assert [row["price"] for row in small.rows()] == [None] * 1_500 + [3.0]
