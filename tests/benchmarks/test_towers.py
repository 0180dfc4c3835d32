"""The comparison of towers: budgets are equal, numbers are what they say, and a small slice of it runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from towers_numbers import Runs, read_runs
from towers_page import PAGE, render
from towers_rows import ROWS, SUITES, TOLERANCE, dense_parameters, sized
from towers_runs import RECORDS, Cell, Place, multiply_adds
from towers_words import ABOUT, published_verdict, verdicts

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("row", SUITES["retailrocket"].rows)
def test_a_row_has_the_dense_parameters_of_the_budget(row: str) -> None:
    suite = SUITES["retailrocket"]
    base = Place(suite, suite.folder).experiment()
    schema = base.load_schema()
    budget = sized(suite, "equal_parameters", ROWS["mmoe"], base, schema).parameters

    found = sized(suite, "equal_parameters", ROWS[row], base, schema)

    assert abs(found.parameters - budget) <= TOLERANCE * budget
    assert found.parameters == dense_parameters(schema, found.model)


def test_multiply_adds_of_one_mlp_are_its_weights() -> None:
    suite = SUITES["retailrocket"]
    place = Place(suite, suite.folder)
    base = place.experiment()
    schema = base.load_schema()
    found = sized(suite, "equal_experts", ROWS["shared_bottom"], base, schema)
    width = 8 + 4 + 1 + 1  # two ids, two counts
    # The last layer of a tower is a dot product, not a product of matrices.
    expected = width * 64 + 64 * 32 + 2 * 32 * 16

    assert multiply_adds(place, found) == expected


def _record(auc: dict[str, float], minus: dict[str, dict[str, float]], **more: Any) -> Any:
    return {
        "entries": {
            task: {"auc": value, "rows": 1000, "positives": 90} for task, value in auc.items()
        },
        "minus": {
            name: {
                task: {"difference": value, "standard_error": 0.001}
                for task, value in tasks.items()
            }
            for name, tasks in minus.items()
        },
        **more,
    }


def test_delta_m_is_the_mean_gain_above_chance_in_percent() -> None:
    # References at 0.7 and 0.6: gains of 0.02 / 0.2 and -0.01 / 0.1.
    record = _record({"a": 0.72, "b": 0.59}, {"single_task": {"a": 0.02, "b": -0.01}})

    gain = Runs("mmoe", (record, record)).gain("single_task")

    assert gain is not None
    assert gain.mean == pytest.approx((10 - 10) / 2)
    assert Runs("mmoe", (record,)).gain("trees") is None


def test_the_seesaw_counts_what_is_sure() -> None:
    minus = {"single_task": {"a": 0.0021, "b": -0.0021, "c": 0.0018}}
    runs = Runs("mmoe", (_record({"a": 0.7, "b": 0.7, "c": 0.7}, minus),) * 5)

    assert runs.surely("single_task", sign=1) == ("a",)
    assert runs.surely("single_task", sign=-1) == ("b",)


def test_the_verdict_on_trees_names_who_wins_where() -> None:
    minus = {
        "single_task": {"a": 0.02, "b": 0.01, "c": 0.0},
        "trees": {"a": 0.01, "b": -0.01, "c": 0.001},
    }
    runs = {"mmoe": Runs("mmoe", (_record({"a": 0.7, "b": 0.7, "c": 0.7}, minus),) * 5)}

    assert "Trees beat the best row on b, lose to it on a, and tie on c." in verdicts(runs)


def test_the_gap_to_a_published_number_counts_rows_and_seeds() -> None:
    def records(*aucs: float) -> tuple[Any, ...]:
        entries = [
            {
                "income": {"auc": auc, "auc_standard_error": 0.002},
                "never_married": {"auc": 0.9945, "auc_standard_error": 0.0005},
            }
            for auc in aucs
        ]
        return tuple({"entries": item} for item in entries)

    runs = {
        "home": Runs("home", records(0.9532, 0.9532)),
        "ple": Runs("ple", records(0.9422, 0.9422)),
    }

    income, never_married = published_verdict(runs).splitlines()

    # 1.96 standard errors of the test rows; seeds agree.
    assert "home +0.0010 ± 0.0039; ple **-0.0100 ± 0.0039**" in income
    assert "home +0.0000 ± 0.0010; ple +0.0000 ± 0.0010" in never_married


def test_every_suite_is_described() -> None:
    assert set(ABOUT) == set(SUITES)


def test_the_page_is_what_the_records_generate() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python benchmarks/towers.py --page"


def test_records_are_of_the_suites_as_they_are_now() -> None:
    files = sorted(RECORDS.glob("*/*/*.json"))
    stale = {
        (record["table"], record["suite"])
        for file in files
        if (record := json.loads(file.read_text(encoding="utf-8")))["suite_digest"]
        != SUITES[record["suite"]].digest
    }
    assert files
    assert not stale
    assert not [file for file in files if "/" in file.read_text(encoding="utf-8")]


def test_a_slice_is_measured_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "towers.py"), "many_tasks", "--table", "equal_parameters",
        "--row", "home", "--seeds", "1", "--rows", "3000", "--records", str(tmp_path / "records"),
        "--work", str(tmp_path / "work"),
    ]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)

    runs = read_runs(tmp_path / "records", "equal_parameters", "many_tasks")
    assert list(runs) == ["single_task", "shared_bottom", "home", "trees"]
    assert set(runs["home"].first["search"]) == {"0.0003", "0.001", "0.003"}
    assert runs["home"].first["dense_lr"] == float(
        max(runs["home"].first["search"], key=runs["home"].first["search"].__getitem__)
    )
    assert len(runs["home"].first["minus"]["trees"]) == 20
    assert "home seed 0" in told.stdout
    assert not again.stdout
    assert Cell("equal_parameters", "many_tasks", "home", 0, tmp_path / "records").record.is_file()
