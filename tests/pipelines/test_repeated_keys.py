"""The check of impression keys: repeated ones are counted, and the first is named with its row."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import files, rows
from pipelines.contract import check
from tests.pipelines.small_pipeline import PIPELINE, SCHEMA, SmallPipeline


def problems(folder: Path, keys: list[str], *, dtype: str, filtered: str = "") -> list[str]:
    """What a check of rows with these impression keys says about them."""
    schema = SCHEMA.replace("[keys]", f'key = "{dtype}"\n[keys]\nimpression = "key"')
    lines = [f"ann,1,2,2026-10-01,{n % 2},{key}" for n, key in enumerate(keys)]
    text = "\n".join(["user,item,price,shown_at,clicked,key", *lines])
    pipeline = PIPELINE.replace("[split]", '[csv]\nquote = ""\n\n[split]', 1) + filtered
    report = check(SmallPipeline(folder, schema, pipeline, {"log.csv": text}).write())
    return [problem for problem in report.problems if "impression key" in problem]


@given(
    keys=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    dtype=st.sampled_from(["int64", "string"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.usefixtures("small_parts")
def test_repeats_are_what_a_plain_count_finds(tmp_path: Path, keys: list[int], dtype: str) -> None:
    repeats = sum(count - 1 for count in Counter(keys).values())
    found = problems(tmp_path, [str(key) for key in keys], dtype=dtype)
    if not repeats:
        assert found == []
        return
    row = next(row for row, key in enumerate(keys) if key in keys[:row])
    value = keys[row] if dtype == "int64" else str(keys[row])
    (said,) = found
    assert f"impression key 'key': rows that repeat the key of an earlier row: {repeats}, " in said
    assert f"the first is {value!r} ({tmp_path / 'log.csv'}, row {row + 1})" in said


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is cut after a row or two, so that parts meet."""
    monkeypatch.setattr(rows, "cut_into_parts", partial(files.cut_into_parts, part_bytes=60))


def test_rows_that_filters_take_do_not_count(tmp_path: Path) -> None:
    only_clicked = '\n[[filters]]\ncolumn = "clicked"\nequals = true\n'
    keys = ["a", "b", "a", "a", "c", "c"]
    (said,) = problems(tmp_path, ["a", "b", "a", "b"], dtype="string", filtered=only_clicked)
    assert "of an earlier row: 1," in said
    assert "the first is 'b'" in said
    assert "row 4)" in said
    assert problems(tmp_path, keys[1:3], dtype="string", filtered=only_clicked) == []
