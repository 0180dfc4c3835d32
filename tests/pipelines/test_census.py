"""The census example runs from the original files and finds what is known about them."""

from pathlib import Path

import pytest

from pipelines.build import build, fit
from pipelines.contract import check
from recsys.publish import file_digest

PIPELINE = Path(__file__).parents[2] / "examples" / "census" / "pipeline.toml"


@pytest.mark.slow
def test_the_census_files_become_three_splits_with_the_known_label_rates(
    tmp_path: Path, recsys_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(recsys_data))
    report = check(PIPELINE)
    assert report.problems == []
    assert {name: item.nulls for name, item in report.columns.items() if item.nulls} == {}
    train = {task: days["train"] for task, days in report.labels.items()}
    assert (train["income"].total, train["never_married"].total) == (12_382, 86_485)
    held_out = [report.labels["income"][name].total for name in ("validation", "test")]
    assert sum(held_out) == 6_186
    encoder = fit(PIPELINE, tmp_path / "encoder")
    sizes = {name: len(vocabulary.values) for name, vocabulary in encoder.vocabularies.items()}
    assert (sizes["sex"], sizes["hisp_origin"], sizes["country"]) == (2, 10, 43)
    assert "NA" in encoder.vocabularies["hisp_origin"].values.to_pylist()
    assert "?" in encoder.vocabularies["country"].values.to_pylist()
    summary = build(PIPELINE, tmp_path / "data", encoder=tmp_path / "encoder")
    rows = {day.day: day.rows for day in summary.days}
    assert rows["train"] == 199_523
    # The halves are drawn by a fixed seed: another split would make every published figure incomparable.
    assert (rows["validation"], rows["test"]) == (49_883, 49_879)
    digests = sorted(file_digest(file) for file in (tmp_path / "data").rglob("*.parquet"))
    build(PIPELINE, tmp_path / "again", encoder=tmp_path / "encoder")
    assert sorted(file_digest(file) for file in (tmp_path / "again").rglob("*.parquet")) == digests
