"""The report survives its file, refuses a damaged one, and prints as an aligned table."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from recsys.errors import ArtifactError
from recsys.publish import publication
from recsys.report import (
    KIND,
    REPORT,
    BinaryMetrics,
    EvaluatedDay,
    EvaluatedModel,
    Gauc,
    ReferenceComparison,
    RegressionMetrics,
    Report,
    read_report,
    render_table,
    write_report,
)


def click() -> BinaryMetrics:
    return BinaryMetrics(
        name="click",
        task="click",
        given=None,
        rows=120_000,
        positives=14_812,
        weight=120_000.0,
        positive_rate=0.1234,
        mean_prediction=0.1251,
        auc=0.781234,
        auc_standard_error=0.0021,
        auc_standard_error_by_group=0.0034,
        log_loss=0.3123,
        normalized_entropy=0.8312,
        predicted_over_observed=1.0138,
        gauc=Gauc(value=0.7012, groups=900, groups_total=1_000, rows_share=0.93),
        reference=ReferenceComparison(
            auc=0.7853,
            difference=-0.0041,
            low=-0.0062,
            high=-0.0020,
            standard_error=0.00107,
            standard_error_by_group=0.0012,
            log_loss=0.309,
            normalized_entropy=0.822,
        ),
        note=None,
    )


def purchase_given_click() -> BinaryMetrics:
    return BinaryMetrics(
        name="purchase|click",
        task="purchase",
        given="click",
        rows=14_812,
        positives=0,
        weight=14_812.0,
        positive_rate=0.0,
        mean_prediction=0.002,
        auc=None,
        auc_standard_error=None,
        auc_standard_error_by_group=None,
        log_loss=0.00609,
        normalized_entropy=None,
        predicted_over_observed=None,
        gauc=None,
        reference=None,
        note="no positive among 14812 rows, so AUC is undefined",
    )


def seconds() -> RegressionMetrics:
    return RegressionMetrics(
        name="seconds",
        rows=120_000,
        weight=120_000.0,
        mean_label=5.2,
        mean_prediction=5.1,
        rmse=1.25,
        mae=0.9,
        r2=0.41,
        note=None,
    )


def report(*entries: BinaryMetrics | RegressionMetrics) -> Report:
    return Report(
        created="2026-10-15T08:00:00+00:00",
        model=EvaluatedModel(
            run="runs/mmoe",
            checkpoint="20261014T000000.000000Z-1f",
            step=1_200,
            bottom="flat",
            mixing="mmoe",
            parameters=17_667,
        ),
        data_digest="d" * 64,
        model_digest="m" * 64,
        encoder_digest="e" * 64,
        days=(
            EvaluatedDay(day="2026-10-13", build="b1", rows=50_000),
            EvaluatedDay(day="2026-10-14", build="b2", rows=70_000),
        ),
        rows=120_000,
        references={"click": "click_oracle"},
        entries=entries or (click(), purchase_given_click(), seconds()),
    )


def published(root: Path) -> Path:
    with publication(root, kind=KIND) as draft:
        write_report(draft.path, report())
    assert draft.published is not None
    return draft.published.path


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    published(tmp_path)
    assert read_report(tmp_path) == report()


def test_entries_are_found_by_name() -> None:
    assert report().binary("purchase|click").given == "click"
    with pytest.raises(KeyError):
        report().binary("purchase")
    with pytest.raises(KeyError):
        report().binary("seconds")


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such report"):
        read_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, r"report format 3, this release reads up to 2"),
        ({"rows": "many"}, r"damaged at rows"),
        ({"surprise": 1}, r"damaged at surprise"),
        ({"entries": [{"kind": "ranking"}]}, r"damaged at entries\.0"),
    ],
)
def test_a_damaged_or_newer_report_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with publication(tmp_path, kind=KIND) as draft:
        tree = json.loads(report().model_dump_json()) | change
        (draft.path / REPORT).write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        read_report(tmp_path)


def test_a_report_of_the_first_format_is_read_as_one_without_experts(tmp_path: Path) -> None:
    tree = json.loads(report().model_dump_json()) | {"format_version": 1}
    del tree["experts"]
    with publication(tmp_path, kind=KIND) as draft:
        (draft.path / REPORT).write_text(json.dumps(tree), encoding="utf-8")
    found = read_report(tmp_path)
    assert found.experts is None
    assert found.model_copy(update={"format_version": 2}) == report()


def test_a_report_holds_no_nan() -> None:
    with pytest.raises(ValidationError, match="finite"):
        click().model_validate(click().model_dump() | {"auc": math.nan})


def test_the_table_is_aligned_and_names_what_each_number_is_about() -> None:
    text = render_table(report())
    assert text == "\n".join(
        (
            "flat + mmoe, step 1,200, checkpoint 20261014T000000.000000Z-1f",
            "120,000 rows of 2026-10-13 to 2026-10-14",
            "",
            "task               rows  positives     AUC  std. err.  log loss      NE  pred/obs    GAUC  GAUC rows",
            "--------------  -------  ---------  ------  ---------  --------  ------  --------  ------  ---------",
            "click           120,000     14,812  0.7812     0.0034    0.3123  0.8312     1.014  0.7012        93%",
            "purchase|click   14,812          0       -          -   0.00609       -         -       -          -",
            "",
            "task      AUC  reference  difference       95 % interval      NE  reference NE",
            "-----  ------  ---------  ----------  ------------------  ------  ------------",
            "click  0.7812     0.7853     -0.0041  -0.0062 .. -0.0020  0.8312        0.8220",
            "",
            "task        rows    RMSE     MAE      R2  mean label  mean prediction",
            "-------  -------  ------  ------  ------  ----------  ---------------",
            "seconds  120,000  1.2500  0.9000  0.4100      5.2000           5.1000",
            "",
            "purchase|click: on rows with click = 1",
            "purchase|click: no positive among 14812 rows, so AUC is undefined",
            "std. err.: of the AUC, by rows (DeLong) or by users, whichever is larger",
            "reference: click from 'click_oracle'; difference is model minus reference",
        )
    )


def test_the_table_leaves_out_what_there_is_none_of() -> None:
    text = render_table(report(seconds()).model_copy(update={"references": {}}))
    assert "AUC" not in text
    assert "reference" not in text
    assert text.endswith("5.1000")


def test_a_report_says_what_may_be_chance_or_tells_no_more_than_the_mean() -> None:
    good = click()
    said = render_table(report(good))
    assert "chance" not in said
    assert "tell no more" not in said
    assert "std. err.: of the AUC, by rows (DeLong) or by users, whichever is larger" in said
    chance = good.model_copy(update={"auc": 0.506, "normalized_entropy": 1.0011})
    said = render_table(report(chance))
    assert "click: its AUC is not surely above 0.5, which chance gives (14,812 positives)" in said
    assert "click: its probabilities tell no more than the mean label would (NE 1.001)" in said
    # By the larger of its two errors: 0.507 - 1.96 * 0.0034 > 0.5 by users, 0.0036 is too much.
    sure = good.model_copy(update={"auc": 0.507})
    assert "chance" not in render_table(report(sure))
    unsure = sure.model_copy(update={"auc_standard_error_by_group": 0.0036})
    assert "chance" in render_table(report(unsure))
