"""A run measured on days: report, predictions, references, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from recsys.compare import delong
from recsys.days import open_days
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.evaluation.evaluate import Evaluation, evaluate
from recsys.evaluation.side_by_side import compare_reports
from recsys.experiment import load_experiment
from recsys.feed import in_order
from recsys.predictions import read_predictions
from recsys.report import read_report
from recsys.run import load_run
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, raw_rows, small_data

TOML = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
test = "2026-01-04"
batch_size = 64

[model]
embeddings = { backend = "plain" }
mixing = { kind = "shared_bottom", hidden = [8] }
heads = { kind = "towers", hidden = [4] }

[train]
epochs = 2
threads = 1

[evaluation]
reference = { click = "clicked_oracle", purchase = "purchased_oracle" }
batch_size = 50
"""


def trained(root: Path, *overrides: str) -> SmallData:
    days = {"2026-01-01": 300, "2026-01-02": 200, "2026-01-03": 150, "2026-01-04": 230}
    data = small_data(root, rows=days)
    (root / "experiment.toml").write_text(TOML, encoding="utf-8")
    train(load_experiment(root / "experiment.toml", overrides=overrides), root / "run")
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def evaluation(data: SmallData) -> Evaluation:
    return evaluate(data.root / "run", data.root / "report")


def test_every_row_is_predicted_with_its_keys_and_kept_columns(
    data: SmallData, evaluation: Evaluation
) -> None:
    table = pq.read_table(evaluation.published.path / "predictions")
    raw = raw_rows(230, seed=3)
    assert table.column("row_key").to_pylist() == list(range(3_000_000, 3_000_230))
    assert table.column("keep:user_id").to_pylist() == raw.column("user_id").to_pylist()
    assert (
        table.column("keep:clicked_oracle").to_pylist() == raw.column("clicked_oracle").to_pylist()
    )
    assert (
        table.column("label:click").to_pylist()
        == raw.column("clicked").cast(pa.float32()).to_pylist()
    )


def test_logits_are_the_models_whatever_the_batch(data: SmallData, evaluation: Evaluation) -> None:
    model = load_run(data.root / "run").model
    days = open_days(data.directory, ["2026-01-04"], encoder=data.encoder)
    with torch.no_grad():
        expected = torch.cat([model(item.batch) for item in in_order(days, batch_size=7)]).numpy()
    table = pq.read_table(evaluation.published.path / "predictions")
    for t, task in enumerate(data.schema.task_names):
        found = table.column(f"logit:{task}").to_numpy()
        # Products of another batch size round differently.
        np.testing.assert_allclose(found, expected[:, t], atol=1e-5)


def test_metrics_equal_scikit_learns_on_the_predictions(evaluation: Evaluation) -> None:
    predictions = evaluation.published.path / "predictions"
    for name in ("click", "purchase", "purchase|click"):
        rows = read_predictions(predictions, name).rows
        entry = evaluation.report.binary(name)
        probability = 1 / (1 + np.exp(-rows.logits_B.astype(np.float64)))
        assert entry.auc == pytest.approx(
            roc_auc_score(rows.labels_B, rows.logits_B, sample_weight=rows.weights_B)
        )
        assert entry.log_loss == pytest.approx(
            log_loss(rows.labels_B, probability, sample_weight=rows.weights_B)
        )
        assert entry.rows == len(rows)


def test_two_checkpoints_are_compared_on_the_rows_of_both_reports(
    data: SmallData, evaluation: Evaluation, tmp_path: Path
) -> None:
    checkpoints = sorted((data.root / "run" / "checkpoints").glob("2*"))
    other = evaluate(data.root / "run", tmp_path / "other", checkpoint=checkpoints[0].name)
    found = compare_reports(tmp_path / "other", data.root / "report")

    for name in ("click", "purchase", "purchase|click"):
        first, second = other.report.binary(name), evaluation.report.binary(name)
        difference = found.entries[name].auc
        assert difference is not None
        assert (difference.first, difference.second) == pytest.approx((first.auc, second.auc))
        assert name in found.render()
    same = compare_reports(data.root / "report", data.root / "report").entries["click"].auc
    assert same is not None
    assert same.low == same.high == 0


def test_reports_of_other_days_are_not_compared(data: SmallData, tmp_path: Path) -> None:
    evaluate(data.root / "run", tmp_path / "other", days="2026-01-03")
    evaluate(data.root / "run", tmp_path / "report")

    with pytest.raises(DataError, match="row key"):
        compare_reports(tmp_path / "other", tmp_path / "report")


def test_references_are_compared_for_every_entry(evaluation: Evaluation) -> None:
    report = evaluation.report
    raw = raw_rows(230, seed=3)
    click = report.binary("click").reference
    assert click is not None
    oracle = raw.column("clicked_oracle").to_numpy()
    labels, weights = raw.column("clicked").to_numpy(), raw.column("importance").to_numpy()
    assert click.auc == pytest.approx(roc_auc_score(labels, oracle, sample_weight=weights))
    assert report.binary("purchase").reference is not None
    assert report.binary("purchase|click").reference is not None
    assert report.references == {"click": "clicked_oracle", "purchase": "purchased_oracle"}


def test_the_report_says_what_was_evaluated_and_reads_back(
    data: SmallData, evaluation: Evaluation
) -> None:
    report = read_report(data.root / "report")
    assert report == evaluation.report
    trained_run = load_run(data.root / "run")
    assert report.model.checkpoint == trained_run.checkpoint.version
    assert report.model.step == trained_run.step
    assert [(day.day, day.rows) for day in report.days] == [("2026-01-04", 230)]
    assert report.encoder_digest == data.encoder.digest
    parameters = sum(item.numel() for item in trained_run.model.program.parameters())
    tables = sum(table.rows * table.dim for table in data.schema.all_tables.values())
    assert report.model.parameters == parameters + tables
    assert "click" in evaluation.render()
    assert evaluation.to_json()["rows"] == 230


def test_days_and_checkpoints_can_be_named(data: SmallData, tmp_path: Path) -> None:
    found = evaluate(
        data.root / "run", tmp_path / "report", days="2026-01-03:2026-01-04", checkpoint="CURRENT"
    )
    assert found.report.rows == 380
    version = found.report.model.checkpoint
    again = evaluate(
        data.root / "run",
        tmp_path / "report",
        days=["2026-01-03", "2026-01-04"],
        checkpoint=version,
    )
    assert again.report.entries == found.report.entries
    with pytest.raises(ArtifactError, match="no checkpoint '"):
        evaluate(data.root / "run", tmp_path / "report", checkpoint="20260101T000000.000000Z-0000")
    with pytest.raises(ArtifactError, match="2026-09-09"):
        evaluate(data.root / "run", tmp_path / "report", days="2026-09-09")


def test_a_run_without_test_days_asks_for_days(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    (tmp_path / "experiment.toml").write_text(
        TOML.replace('test = "2026-01-04"\n', ""), encoding="utf-8"
    )
    train(
        load_experiment(tmp_path / "experiment.toml", overrides=["train.steps=1"]), tmp_path / "run"
    )
    with pytest.raises(ConfigError, match="names no test days"):
        evaluate(tmp_path / "run", tmp_path / "report")
    assert evaluate(tmp_path / "run", tmp_path / "report", days="2026-01-03").report.rows == 200
    assert data.schema.task_names


def test_a_reference_that_is_no_probability_is_refused_and_nothing_published(
    tmp_path: Path,
) -> None:
    data = trained(tmp_path, "train.steps=1", "data.test=odd")
    raw = raw_rows(50, seed=1)
    position = raw.column_names.index("clicked_oracle")
    odd = raw.set_column(position, "clicked_oracle", pa.array([None, *[0.5] * 49], pa.float32()))
    data.build("odd", odd, first_key=0)
    with pytest.raises(DataError, match="null or outside 0 to 1"):
        evaluate(tmp_path / "run", tmp_path / "report")
    assert list((tmp_path / "report").iterdir()) == []


def shuffled_labels(raw: pa.Table, seed: int) -> pa.Table:
    """The same rows with clicks and purchases drawn from other rows, so that no input says anything about them."""
    order = np.random.default_rng(seed).permutation(raw.num_rows)
    for name in ("clicked", "purchased", "seconds"):
        position = raw.column_names.index(name)
        raw = raw.set_column(position, name, raw.column(name).take(pa.array(order)))
    return raw


def learned_aucs(root: Path, *, shuffled: bool, rows: int) -> dict[str, tuple[float, float]]:
    """AUC and its DeLong standard error per task on a test day, after training with true or shuffled labels."""
    data = small_data(
        root, rows=dict.fromkeys(("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"), 60)
    )
    for number, day in enumerate(("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04")):
        raw = raw_rows(rows, seed=10 + number)
        data.build(
            day, shuffled_labels(raw, number) if shuffled else raw, first_key=number * 10_000_000
        )
    (root / "experiment.toml").write_text(TOML, encoding="utf-8")
    overrides = ["train.epochs=4", "train.patience=4", "optimizer.embedding_lr=0.1"]
    train(load_experiment(root / "experiment.toml", overrides=overrides), root / "run")
    found = evaluate(root / "run", root / "report")
    estimates = {}
    for name in ("click", "purchase"):
        estimate = delong(read_predictions(found.published.path / "predictions", name).rows)
        assert estimate is not None
        assert estimate.standard_error is not None
        estimates[name] = (estimate.auc, estimate.standard_error)
    return estimates


def test_shuffled_labels_teach_nothing_and_true_labels_do(tmp_path: Path) -> None:
    for folder in ("shuffled", "true"):
        (tmp_path / folder).mkdir()
    for auc, error in learned_aucs(tmp_path / "shuffled", shuffled=True, rows=1500).values():
        assert abs(auc - 0.5) < 4 * error
    # The check can fail: with true labels both tasks are far outside.
    for auc, error in learned_aucs(tmp_path / "true", shuffled=False, rows=1500).values():
        assert auc - 0.5 > 4 * error
