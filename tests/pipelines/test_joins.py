"""Side tables that are filtered and counted before rows meet them."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.build import build, fit
from recsys.errors import ConfigError, DataError
from tests.pipelines.small_pipeline import PIPELINE, SCHEMA, SmallPipeline

SALES = """item,shop,kind
1,a,sale
1,a,view
2,b,view
1,b,sale
,a,sale
3,a,sale
"""

COUNT = """
[[joins]]
path   = "sales.csv"
format = "csv"
on     = ["item"]
count  = "sold"
"""


def counting(folder: Path, join: str = COUNT, *, dtype: str = "int32") -> SmallPipeline:
    schema = SCHEMA.replace('price = "float32"\n', f'price = "float32"\nsold = "{dtype}"\n', 1)
    log = "user,item,price,shown_at,clicked\n" + "".join(
        f"ann,{item},1,2026-10-01,1\n" for item in ("1", "2", "7", "3", "")
    )
    return SmallPipeline(
        folder, schema=schema, pipeline=PIPELINE + join, files={"log.csv": log, "sales.csv": SALES}
    )


def sold(small: SmallPipeline) -> list[float]:
    return [row["sold"] for row in small.rows()]


def test_a_count_is_the_number_of_rows_of_the_key_and_0_without_any(tmp_path: Path) -> None:
    assert sold(counting(tmp_path)) == [3, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", ["int8", "int64", "float32"])
def test_a_count_has_the_dtype_that_the_schema_declares(tmp_path: Path, dtype: str) -> None:
    small = counting(tmp_path, dtype=dtype)
    [rows] = small.batches()
    assert str(rows.table.schema.field("sold").type).replace("float", "float32") == dtype


def test_where_leaves_only_those_rows_of_the_side_table(tmp_path: Path) -> None:
    one = COUNT + 'where = { column = "kind", equals = "sale" }\n'
    both = COUNT + (
        'where = [{ column = "kind", equals = "sale" }, { column = "shop", equals = "a" }]\n'
    )
    assert sold(counting(tmp_path / "one", one)) == [2, 0, 0, 1, 0]
    assert sold(counting(tmp_path / "both", both)) == [1, 0, 0, 1, 0]


def test_a_count_of_no_row_at_all_is_0(tmp_path: Path) -> None:
    none = COUNT + 'where = { column = "kind", equals = "gift" }\n'
    assert sold(counting(tmp_path, none)) == [0, 0, 0, 0, 0]


def test_several_keys_are_counted_together(tmp_path: Path) -> None:
    small = counting(tmp_path, COUNT.replace('["item"]', '["item", "user"]'))
    small.files["sales.csv"] = "item,user\n1,ann\n1,ann\n2,bob\n"
    assert sold(small) == [2, 0, 0, 0, 0]


def test_where_makes_a_key_of_a_plain_join_unique(tmp_path: Path) -> None:
    join = COUNT.replace("count  =", "# ") + 'where = { column = "shop", equals = "a" }\n'
    small = counting(tmp_path, join)
    small.files["sales.csv"] = "item,shop,sold\n1,a,5\n1,b,6\n2,b,7\n"
    assert sold(small) == [5, None, None, None, None]
    small.pipeline = PIPELINE + COUNT.replace("count  =", "# ")
    with pytest.raises(DataError, match="item = 1 occurs more than once"):
        sold(small)


def test_a_file_without_any_value_of_an_undeclared_key_matches_and_counts_nothing(
    tmp_path: Path,
) -> None:
    schema = SCHEMA.replace(
        'price = "float32"\n', 'price = "float32"\nseen = "int64"\nrank = "int64"\n', 1
    )
    text = PIPELINE.replace('"log.csv"', '"log-*.jsonl"').replace('"csv"', '"jsonl"') + (
        '[[joins]]\npath = "shops.jsonl"\nformat = "jsonl"\non = ["shop"]\ncolumns = ["rank"]\n'
        '[counters.seen]\nby = "shop"\n'
    )
    row = '{"user":"ann","item":1,"price":1,"shown_at":"2026-10-0%d","clicked":true,"shop":%s}\n'
    files: dict[str, str | bytes | pa.Table] = {
        "log-1.jsonl": row % (1, "null"),
        "log-2.jsonl": row % (2, '"a"') + row % (3, '"a"'),
        "shops.jsonl": '{"shop":"a","rank":7}\n',
    }
    small = SmallPipeline(tmp_path, schema=schema, pipeline=text, files=files)
    found = [(row["rank"], row["seen"]) for row in small.rows()]
    assert found == [(None, None), (7, 0), (7, 1)]


def test_two_counts_of_one_file_are_reported_apart(tmp_path: Path) -> None:
    small = counting(tmp_path, COUNT + COUNT.replace('"sold"', '"seen"'))
    small.pipeline += 'where = { column = "kind", equals = "view" }\n'
    small.schema = small.schema.replace('sold = "int32"', 'sold = "int32"\nseen = "int32"')
    path = small.write()
    fit(path, tmp_path / "encoder")
    summary = build(path, tmp_path / "data", encoder=tmp_path / "encoder")
    by_item = "sales.csv, counted by item"
    assert summary.unmatched == {by_item: 2, f"{by_item}, where kind equals 'view'": 3}


@pytest.mark.parametrize(
    ("join", "dtype", "said"),
    [
        (COUNT + 'columns = ["kind"]\n', "int32", "write two joins, or leave one out"),
        (COUNT, "string", "the schema declares 'sold' as string; a count is a number"),
        (COUNT.replace('"sold"', '"price"'), "int32", "column 'price' is in the rows already"),
        (
            COUNT + 'where = { column = "kinds", equals = "sale" }\n',
            "int32",
            "no column 'kinds' (did you mean 'kind'?)",
        ),
        (
            COUNT + 'where = { column = "item", equals = "sale" }\n',
            "int32",
            "joins[0].where: 'sale' cannot be compared with column 'item'",
        ),
    ],
    ids=["columns too", "dtype", "taken name", "unknown column", "other family"],
)
def test_a_count_that_cannot_be_made_is_refused(
    tmp_path: Path, join: str, dtype: str, said: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        counting(tmp_path, join, dtype=dtype).rows()
    assert said in str(caught.value)
