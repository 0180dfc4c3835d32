"""Boosted trees on encoded rows: what they see, that they learn and nothing else, and that reports compare."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.baseline.baseline import Baseline, baseline
from recsys.baseline.inputs import read_tree_rows, tree_rows
from recsys.baseline.statistics import FOLDS, PRIOR_ROWS, label_statistics
from recsys.baseline.trees import Examples, boost
from recsys.days import open_days, read_rows
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.side_by_side import compare_reports
from recsys.experiment import Experiment, load_experiment
from recsys.layout import encoded_arrow
from recsys.measures import AnyArray, probability
from recsys.predictions import read_predictions
from recsys.report import RegressionMetrics, read_report
from recsys.schema import Schema
from recsys.training.trainer import train
from tests.recsys.small_data import SCHEMA_TOML, SmallData, raw_rows, small_data

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
threads = 1

[evaluation]
reference = { click = "clicked_oracle", purchase = "purchased_oracle" }
"""
DAYS = {"2026-01-01": 1000, "2026-01-02": 1000, "2026-01-03": 500, "2026-01-04": 800}


def experiment(data: SmallData, *overrides: str) -> Experiment:
    (data.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return load_experiment(data.root / "experiment.toml", overrides=overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return small_data(tmp_path_factory.mktemp("data"), rows=DAYS)


@pytest.fixture(scope="module")
def trees(data: SmallData) -> Baseline:
    return baseline(experiment(data), data.root / "baseline")


def logits(root: Path, task: str) -> AnyArray:
    found: AnyArray = pq.read_table(root).column(f"logit:{task}").to_numpy()
    return found


def test_a_planted_signal_is_learned(trees: Baseline) -> None:
    click = trees.report.binary("click")
    assert click.auc is not None
    assert click.reference is not None
    assert click.auc > 0.5 + 0.7 * (click.reference.auc - 0.5)
    watch = trees.report.entries[-1]
    assert isinstance(watch, RegressionMetrics)
    assert watch.r2 is not None
    assert watch.r2 > 0.3


def test_nothing_is_learned_from_labels_drawn_at_random(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows=DAYS)
    for number, (day, rows) in enumerate(DAYS.items()):
        raw = raw_rows(rows, seed=number)
        drawn = np.random.default_rng(100 + number).integers(0, 2, rows).astype(np.int8)
        place = raw.schema.get_field_index("clicked")
        data.build(day, raw.set_column(place, "clicked", [drawn]), first_key=1_000_000 * number)

    click = baseline(experiment(data), tmp_path / "report").report.binary("click")

    assert click.auc is not None
    assert click.auc_standard_error is not None
    assert abs(click.auc - 0.5) < 4 * click.auc_standard_error


def test_the_same_seed_gives_the_same_predictions(data: SmallData, trees: Baseline) -> None:
    same = baseline(experiment(data), data.root / "again").published.path / "predictions"
    other = baseline(experiment(data, "train.seed=1"), data.root / "other").published.path

    first = trees.published.path / "predictions"
    for task in data.schema.task_names:
        np.testing.assert_array_equal(logits(first, task), logits(same, task))
    assert (logits(first, "click") != logits(other / "predictions", "click")).any()


def test_the_trees_are_the_same_whatever_the_threads() -> None:
    random = np.random.default_rng(0)
    inputs_BI = random.normal(size=(400, 3)).astype(np.float32)
    labels_B = (inputs_BI[:, 0] + random.normal(size=400) > 0).astype(np.float32)
    examples = Examples(inputs_BI, labels_B, np.ones(400, np.float32))
    nothing = Examples(inputs_BI[:0], labels_B[:0], labels_B[:0])
    alone, together = (
        boost(examples, nothing, objective="binary", categorical=[], seed=0, threads=threads)
        for threads in (1, 2)
    )
    np.testing.assert_array_equal(alone.predict(inputs_BI), together.predict(inputs_BI))


def test_the_report_compares_with_a_models_on_the_same_rows(
    data: SmallData, trees: Baseline
) -> None:
    train(experiment(data), data.root / "run")
    model = evaluate(data.root / "run", data.root / "report")

    found = compare_reports(data.root / "report", data.root / "baseline").entries

    assert list(found) == ["click", "purchase", "purchase|click"]
    for name, comparison in found.items():
        assert comparison.rows == trees.report.binary(name).rows == model.report.binary(name).rows
        assert comparison.auc is not None
        assert comparison.auc.second == pytest.approx(trees.report.binary(name).auc)
    assert trees.report.days == model.report.days
    assert read_report(data.root / "baseline") == trees.report


def test_a_funnels_joint_probability_is_the_product_of_its_steps(trees: Baseline) -> None:
    predictions = trees.published.path / "predictions"
    conditional = read_predictions(predictions, "purchase|click")
    joint, click = (read_predictions(predictions, name) for name in ("purchase", "click"))
    at = np.isin(joint.row_key_B, conditional.row_key_B)
    product_B = probability(click.rows.logits_B[at]) * probability(conditional.rows.logits_B)
    np.testing.assert_allclose(probability(joint.rows.logits_B[at]), product_B, rtol=1e-5)


def test_what_was_learned_is_said(trees: Baseline) -> None:
    text = trees.render()
    assert "trained on 2,000 rows" in text
    assert [item.task for item in trees.learned] == ["click", "purchase", "watch"]
    assert trees.learned[0].rows == 2_000
    assert trees.learned[1].rows == trees.learned[0].positives
    assert next(iter(trees.learned[0].most_used)) in {"item_id", "user_id"}
    assert trees.to_json()["training_rows"] == 2_000


def test_a_sample_of_rows_is_taken_and_said(data: SmallData, tmp_path: Path) -> None:
    sampled = baseline(experiment(data), tmp_path / "report", up_to_rows=900)

    assert sampled.rows == 900
    assert "a sample of 900 of 2,000 rows" in sampled.render()
    assert sampled.report.rows == 800


def test_a_task_with_few_rows_of_a_class_predicts_its_average(
    data: SmallData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="recsys")
    few = baseline(experiment(data), tmp_path / "report", up_to_rows=30)

    rare = few.learned[1]
    assert rare.positives is not None
    assert min(rare.positives, rare.rows - rare.positives) < 10
    assert rare.trees == 0
    assert "purchase: predicts its average" in few.render()
    assert "fewer than 10 rows of a class" in caplog.text
    conditional = read_predictions(few.published.path / "predictions", "purchase|click").rows
    assert np.ptp(probability(conditional.logits_B)) < 1e-6
    assert probability(conditional.logits_B[:1]) == pytest.approx(
        _average(data, up_to_rows=30), abs=1e-5
    )


def _average(data: SmallData, *, up_to_rows: int) -> float:
    days = open_days(data.directory, ["2026-01-01", "2026-01-02"], encoder=data.encoder)
    rows = read_tree_rows(days, up_to_rows=up_to_rows, seed=0)
    clicked_B = rows.labels_BT[:, 0] == 1
    return float(np.average(rows.labels_BT[clicked_B, 1], weights=rows.weights_B[clicked_B]))


def encoded_rows(data: SmallData) -> pa.Table:
    days = open_days(data.directory, ["2026-01-03"], encoder=data.encoder)
    return read_rows(days.groups, encoded_arrow(data.schema).names)


def test_inputs_are_those_of_a_plain_loop(data: SmallData) -> None:
    encoded = encoded_rows(data)
    rows = tree_rows(encoded, data.schema)
    names = [item.name for item in rows.inputs]
    categorical = {item.name for item in rows.inputs if item.categorical}
    assert categorical == {"user_id", "item_id", "seen.item newest"}
    for row, inputs_I in zip(encoded.to_pylist(), rows.inputs_BI.tolist(), strict=True):
        item, seen = row["item_id"], row["seen.item"]
        expected = {
            "user_id": row["user_id"],
            "item_id": item,
            "tags count": len(row["tags"]),
            "price": row["dense:price"],
            "price_bucket": row["price_bucket"],
            "seen length": len(seen),
            "seen.item newest": seen[-1] if seen else 0,
            "seen.age newest": row["seen.age"][-1] if seen else 0,
            "seen.item is item_id": seen.count(item) if item >= 2 else 0,
        }
        expected |= {f"tags = {value}": row["tags"].count(value) for value in range(1, 16)}
        assert dict(zip(names, inputs_I, strict=True)) == expected


WEIGHTED = """
[columns]
tags = "list<string>"
strengths = "list<float32>"
picture = "list<float32>"
clicked = "bool"

[tables]
tag = { rows = 5 }
word = { rows = 500 }

[features]
tags = { kind = "multi_valued", table = "tag", weights = "strengths" }
words = { kind = "multi_valued", column = "tags", table = "word", weights = "strengths" }
picture = { kind = "vector", dim = 2 }

[tasks]
click = { label = "clicked" }
"""


def test_weights_of_ids_and_components_of_vectors_enter() -> None:
    schema = Schema.parse(tomllib.loads(WEIGHTED), where="schema.toml")
    columns = {
        "tags": [[2, 3, 2], []],
        "weights:tags": [[0.5, 2.0, 1.0], []],
        "words": [[7, 8, 7], []],
        "weights:words": [[0.5, 2.5, 1.0], []],
        "dense:picture": [[0.25, -1.0], [0.0, 0.0]],
        "label:click": [1.0, 0.0],
        "observed:click": [True, True],
        "weight": [1.0, 3.0],
        "group": [0, 1],
        "row_key": [0, 1],
    }
    arrow = encoded_arrow(schema)
    rows = tree_rows(pa.table({name: columns[name] for name in arrow.names}, schema=arrow), schema)

    found = dict(zip((item.name for item in rows.inputs), rows.inputs_BI.T.tolist(), strict=True))
    assert found == {
        "picture[0]": [0.25, 0.0],
        "picture[1]": [-1.0, 0.0],
        "tags count": [3.0, 0.0],
        "tags = 1": [0.0, 0.0],
        "tags = 2": [1.5, 0.0],
        "tags = 3": [2.0, 0.0],
        "tags = 4": [0.0, 0.0],
        "words count": [3.0, 0.0],
    }
    (words,) = rows.ids
    statistics = label_statistics(words, np.array([1, 0]), rows.weights_B, np.array([0, 1]))
    average, prior = 0.25, PRIOR_ROWS
    seven, eight = ((count + prior * average) / (count + prior) for count in (2, 1))
    expected = (1.5 * seven + 2.5 * eight) / 4
    assert statistics.held_out(words)[0, 0] == pytest.approx(expected)
    assert np.isnan(statistics.held_out(words)[1]).all()


def large_tables() -> Schema:
    """The same schema with tables so large that their ids enter by label statistics."""
    tree = tomllib.loads(SCHEMA_TOML)
    for table in tree["tables"].values():
        table["rows"] = 5_000
    return Schema.parse(tree, where="schema.toml")


def sums_of(
    value: int, listed: list[AnyArray], labels_B: AnyArray, weights_B: AnyArray
) -> tuple[float, float]:
    """Weight of an id's positive rows and of all its rows, counted in a loop."""
    positive = weight = 0.0
    for ids, label, row_weight in zip(listed, labels_B, weights_B, strict=True):
        times = int((ids == value).sum())
        positive += times * float(row_weight * label)
        weight += times * float(row_weight)
    return positive, weight


def test_ids_of_large_tables_enter_by_label_statistics_of_a_plain_loop(data: SmallData) -> None:
    rows = tree_rows(encoded_rows(data), large_tables())
    assert [ids.name for ids in rows.ids] == ["user_id", "item_id", "tags", "seen.item newest"]
    fold_B = np.arange(len(rows)) % FOLDS
    labels_B, weights_B = rows.labels_BT[:, 0], rows.weights_B
    prior = PRIOR_ROWS * np.average(labels_B, weights=weights_B)
    for ids in rows.ids:
        listed = np.split(ids.ids_N, np.cumsum(ids.lengths_B)[:-1])
        found = label_statistics(ids, labels_B, weights_B, fold_B)
        cross_fitted, held_out = found.cross_fitted(ids, fold_B), found.held_out(ids)
        for b in (0, 7, 100, 499):
            others = weights_B * (fold_B != fold_B[b])
            for columns_B2, weights, scale in (
                (held_out, weights_B, 1.0),
                (cross_fitted, others, FOLDS / (FOLDS - 1)),
            ):
                sums = [sums_of(int(value), listed, labels_B, weights) for value in listed[b]]
                means = [(positive + prior) / (weight + PRIOR_ROWS) for positive, weight in sums]
                counts = [np.log1p(scale * weight) for _, weight in sums]
                expected = [np.mean(means), np.mean(counts)] if sums else [np.nan, np.nan]
                np.testing.assert_allclose(columns_B2[b], expected, rtol=1e-6)


def test_a_training_rows_own_label_does_not_reach_its_inputs(data: SmallData) -> None:
    rows = tree_rows(encoded_rows(data), large_tables())
    fold_B = np.random.default_rng(0).integers(0, FOLDS, len(rows))
    labels_B = rows.labels_BT[:, 0]
    # Two labels of one fold change places, so that the average of all rows, which may enter, stays.
    one, other = np.flatnonzero(labels_B == 1)[0], np.flatnonzero(labels_B == 0)[0]
    fold_B[other] = fold_B[one]
    changed_B = labels_B.copy()
    changed_B[[one, other]] = labels_B[[other, one]]
    weights_B = np.ones(len(rows))
    for ids in rows.ids:
        before, after = (
            label_statistics(ids, labels, weights_B, fold_B).cross_fitted(ids, fold_B)[one]
            for labels in (labels_B, changed_B)
        )
        np.testing.assert_array_equal(before, after)


def test_without_lightgbm_one_sentence_says_how_to_install_it(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"LightGBM, which is not installed; pip install"):
        baseline(experiment(data), tmp_path / "report")


def test_days_and_labels_that_cannot_be_used_are_refused(data: SmallData, tmp_path: Path) -> None:
    without_test = experiment(data).model_copy(
        update={"data": experiment(data).data.model_copy(update={"test": None})}
    )
    with pytest.raises(ConfigError, match="names no test days"):
        baseline(without_test, tmp_path / "report")
    with pytest.raises(ArtifactError, match="no day or split '2026-01-09'"):
        baseline(experiment(data), tmp_path / "report", days="2026-01-09")
    unobserved = small_data(tmp_path, rows=DAYS)
    for number, (day, rows) in enumerate(DAYS.items()):
        raw = raw_rows(rows, seed=number)
        place = raw.schema.get_field_index("clicked")
        nothing = np.zeros(rows, np.int8)
        unobserved.build(
            day, raw.set_column(place, "clicked", [nothing]), first_key=1_000_000 * number
        )
    with pytest.raises(DataError, match=r"task 'purchase': no training row .* with click = 1"):
        baseline(experiment(unobserved), tmp_path / "report")
