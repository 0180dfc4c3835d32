"""The check before a fit: what it counts, what it calls a problem, and that it goes on after a broken file."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.build import fit
from pipelines.column_summary import ColumnSummary
from pipelines.contract import CheckReport, check
from pipelines.plan import load_plan
from tests.pipelines.small_pipeline import PIPELINE, SCHEMA, SmallPipeline
from tests.pipelines.test_history import HISTORY, SEQUENCE_SCHEMA

HEADER = "user,item,price,shown_at,clicked\n"
GOOD = HEADER + "ann,1,2,2026-10-01,1\nbob,2,3,2026-10-01,0\n" * 20


def checked(folder: Path, text: str = GOOD, *, schema: str = SCHEMA, more: str = "") -> CheckReport:
    return check(SmallPipeline(folder, schema, PIPELINE + more, {"log.csv": text}).write())


def test_a_sound_pipeline_has_no_problems_and_counts_what_it_read(tmp_path: Path) -> None:
    report = checked(tmp_path)
    assert report.problems == []
    assert report.tally.read == sum(report.days.values()) == 40
    assert report.columns["price"].to_json() == {
        "rows": 40,
        "nulls": 0,
        "not_finite": 0,
        "distinct": 2,
        "least": 2.0,
        "most": 3.0,
    }
    rows = sum(item.observed for item in report.labels["click"].values())
    clicks = sum(item.total for item in report.labels["click"].values())
    assert (rows, clicks) == (40, 20)
    assert any("'shown_at' is the same in every row" in note for note in report.notes)


def test_a_fit_on_without_rows_is_told_as_that_alone(tmp_path: Path) -> None:
    pipeline = "fit_on = { from = '2025-01-01', to = '2025-01-31' }" + PIPELINE.replace(
        'by = "hash"\nparts = { train = 0.5, test = 0.5 }', 'by = "time"'
    )
    report = check(SmallPipeline(tmp_path, SCHEMA, pipeline, {"log.csv": GOOD}).write())
    (said,) = report.problems
    assert said == "no row is of the days or splits that fit_on names; found 2026-10-01"


def test_the_report_renders_and_is_json(tmp_path: Path) -> None:
    report = checked(tmp_path, GOOD + "eve,3,,2026-10-01,\n")
    assert json.loads(json.dumps(report.to_json()))["columns"]["price"]["nulls"] == 1
    text = report.render()
    assert "no problems" in text
    assert "click" in text


@pytest.mark.parametrize(
    ("text", "schema", "more", "said"),
    [
        (
            GOOD + "ann,1,nan,2026-10-01,1\n",
            SCHEMA,
            "",
            "column 'price': values that are NaN or infinite: 1",
        ),
        (GOOD + "ann,1,cheap,2026-10-01,1\n", SCHEMA, "", "row 41, column 'price': found 'cheap'"),
        (
            GOOD + "ann,1,2,2026-10-01,2\n",
            SCHEMA.replace('clicked = "bool"', 'clicked = "int8"'),
            "",
            "task 'click': labels of column 'clicked' that are neither 0 nor 1: 1",
        ),
        (
            GOOD,
            SCHEMA,
            '[labels]\nclicked = { column = "price", above = 2.5 }',
            "feature 'price' reads column 'price', which the label of task 'click' is made of",
        ),
        (
            GOOD,
            SCHEMA,
            '[[filters]]\ncolumn = "item"\nabove = 9',
            "no row is left after the filters",
        ),
        (HEADER + "ann,1,2,2026-10-01,1\n" * 40, SCHEMA, "", "do not hold both labels"),
    ],
)
def test_what_would_spoil_a_model_is_a_problem(
    tmp_path: Path, text: str, schema: str, more: str, said: str
) -> None:
    problems = checked(tmp_path, text, schema=schema, more=f"\n{more}\n").problems
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize("history", ["", HISTORY])
def test_every_broken_file_is_told_and_the_sound_ones_are_counted(
    tmp_path: Path, history: str
) -> None:
    pipeline = PIPELINE.replace("log.csv", "log*.csv") + history
    files: dict[str, str | bytes | pa.Table] = {f"log{n}.csv": GOOD for n in range(4)}
    files["log1.csv"] = GOOD + "ann,x,2,2026-10-01,1\n"
    files["log2.csv"] = GOOD + "ann,1\n"
    report = check(
        SmallPipeline(tmp_path, SEQUENCE_SCHEMA if history else SCHEMA, pipeline, files).write()
    )
    assert [problem.split(":")[0].split(",")[0] for problem in report.problems] == [
        str(tmp_path / "log1.csv"),
        str(tmp_path / "log2.csv"),
    ]
    assert sum(report.days.values()) == 80


def test_ids_that_an_encoder_does_not_know_are_counted(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, files={"log.csv": GOOD * 1})
    fit(small.write(), tmp_path / "encoder")
    small.files = {"log.csv": GOOD + "ann,77,2,2026-10-01,1\n" * 10}
    report = check(small.write(), encoder=tmp_path / "encoder")
    assert report.unknown_share == {"item": pytest.approx(10 / 50)}
    assert "20.00% of item" in report.render()


def test_a_map_is_summed_up_by_its_keys_and_its_numbers() -> None:
    pairs = [[("a", 1.0), ("b", None)], None, [], [("a", float("nan")), ("c", -2.0)]]
    maps = pa.array(pairs, pa.map_(pa.string(), pa.float32()))
    summary = ColumnSummary()
    for part in (maps.slice(0, 2), maps.slice(2, 2)):
        summary.add(part)
    expected = {"rows": 4, "nulls": 1, "not_finite": 1, "distinct": 3, "least": -2.0, "most": 1.0}
    assert summary.to_json() == expected


def test_distinct_values_are_exact_when_few_and_close_when_many() -> None:
    rng = np.random.default_rng(0)
    few, many = ColumnSummary(), ColumnSummary()
    values = rng.integers(0, 200_000, 400_000)
    for batch in np.array_split(values, 7):
        few.add(pa.array(batch % 1_000))
        many.add(pa.array(batch.astype(np.float64)))
    assert (few.exact, few.distinct) == (True, 1_000)
    assert not many.exact
    # Four standard errors of 1.6 %.
    assert many.distinct == pytest.approx(len(np.unique(values)), rel=0.064)


def test_a_column_summary_reads_lists_nulls_and_zeros() -> None:
    summary = ColumnSummary()
    summary.add(pa.array([["a", None], None, []], pa.list_(pa.string())))
    assert (summary.rows, summary.nulls, summary.distinct, summary.least) == (3, 1, 1, "a")
    zeros = ColumnSummary()
    zeros.add(pa.array([0.0, -0.0]))
    assert zeros.constant


def test_every_block_of_the_documentation_is_a_pipeline(tmp_path: Path) -> None:
    """Blocks that are not whole files are completed by the least that is missing."""
    document = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in document.split("```toml\n")[1:]]
    assert len(blocks) >= 6
    for number, block in enumerate(blocks):
        folder = tmp_path / str(number)
        text = block if "schema_file" in block else 'schema_file = "schema.toml"\n' + block
        if "source" not in block:
            text += '\n[source]\npath = "x.parquet"\nformat = "parquet"\n'
        if "[split]" not in block:
            text += '\n[split]\nby = "hash"\nparts = { train = 0.5, test = 0.5 }\n'
        plan = load_plan(SmallPipeline(folder, DOCUMENTED_SCHEMA, text, {}).write())
        assert plan.settings.all_sources


DOCUMENTED_SCHEMA = """
[columns]
user_id = "string"
item_id = "int64"
category = "string"
price = "float32"
stars = "float32"
age = "int16"
country = "string"
watch_seconds = "float32"
user_clicks = "int64"
item_views = "int64"
views_today = "int64"
shown_at = "timestamp"
rated_at = "timestamp"
seen_at = "timestamp"
clicked = "bool"
purchased = "bool"
clicks_item = "list<int64>"
clicks_age = "list<timestamp>"
purchases_item = "list<int64>"
purchases_price = "list<float32>"

[keys]
user = "user_id"
time = "shown_at"

[features]
price = { kind = "numeric" }

[tasks]
click = { label = "clicked" }
"""


def test_no_more_values_are_estimated_than_there_are() -> None:
    for seed in range(20):
        summary = ColumnSummary()
        unique = np.random.default_rng(seed).choice(10**9, 5_000, replace=False)
        summary.add(pa.array(unique))
        assert not summary.exact
        assert 4_600 < summary.distinct <= 5_000
