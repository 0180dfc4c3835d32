"""The page about the examples says what the records say, and its intervals are what it claims."""

import json
import math
from pathlib import Path

import estimates
import examples_table as table
import numpy as np
import pytest
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_what_the_records_generate() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert page == table.render(), "run: python benchmarks/examples.py --table"


def test_records_name_no_folder_of_the_machine_that_made_them() -> None:
    files = sorted(table.RECORDS.glob("*/*.json"))
    assert files
    assert not [file for file in files if "/" in file.read_text(encoding="utf-8")]


def test_an_interval_over_seeds_is_students() -> None:
    values = [0.91, 0.92, 0.905, 0.93]
    low, high = student.interval(
        0.95, len(values) - 1, np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    )
    found = estimates.over_seeds(values)
    assert (found.mean - found.reach, found.mean + found.reach) == pytest.approx((low, high), 1e-4)
    assert str(estimates.over_seeds([0.5])) == "0.5000"


def test_more_seeds_do_not_shrink_the_interval_below_that_of_the_rows() -> None:
    same = [{"difference": 0.01, "standard_error": 0.004}] * 5
    assert estimates.paired(same).reach == pytest.approx(1.96 * 0.004)
    spread = [{"difference": 0.01 * n, "standard_error": 0.004} for n in range(5)]
    assert estimates.paired(spread).reach > estimates.over_seeds([0.01 * n for n in range(5)]).reach


def test_a_difference_is_bold_where_its_interval_leaves_out_0(tmp_path: Path) -> None:
    for name, difference in (("better", 0.02), ("equal", 0.001)):
        folder = tmp_path / "records" / name
        folder.mkdir(parents=True)
        entries = {"click": {"rows": 1000, "positives": 90, "auc": 0.71, "rmse": None}}
        record = {"entries": entries, "training_rows": 9000, "parameters": 7, "cpu_seconds": 3.2}
        compared = {"click": {"difference": difference, "standard_error": 0.005}}
        for kind, more in (("trees", {}), ("model", {"minus_trees": compared})):
            (folder / f"{kind}-0.json").write_text(json.dumps(record | more | {"kind": kind}))
    (tmp_path / "better").mkdir()
    (tmp_path / "better" / "reference.toml").write_text(
        '[[figures]]\nentry = "click"\nauc = 0.7\nsource = "a paper"\n'
    )

    page = table.render(tmp_path / "records", tmp_path)

    row = "| [{0}](../examples/{0}/README.md) | click | 1,000 | 90 | 0.7100 | 0.7100 | {1} | {2} |"
    assert row.format("better", "**+0.0200 ± 0.0098**", "0.7000") in page
    assert row.format("equal", "+0.0010 ± 0.0098", "") in page
    assert "- better, click: 0.7000, a paper" in page
