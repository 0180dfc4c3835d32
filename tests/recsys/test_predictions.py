"""Predictions written beside a report are read back as they were evaluated."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.compare import compare_predictions
from recsys.errors import ArtifactError, DataError
from recsys.evaluation.metrics import evaluate_tasks
from recsys.evaluation.outcomes import OutcomeAccumulator
from recsys.layout import encoded_arrow, entry_name
from recsys.measures import Float64Array, auc, log_loss
from recsys.predictions import (
    PredictionWriter,
    predictions_arrow,
    predictions_table,
    read_predictions,
)
from recsys.report import BinaryMetrics
from recsys.schema import Schema

SCHEMA = Schema.parse(
    {
        "columns": {
            "item_id": "int64",
            "country": "string",
            "clicked": "int8",
            "purchased": "int8",
            "seconds": "float32",
        },
        "keys": {"item": "item_id", "keep": ["country"]},
        "tables": {"item": {"rows": 100, "dim": 4}},
        "features": {"item_id": {"kind": "categorical", "table": "item"}},
        "tasks": {
            "click": {"label": "clicked"},
            "purchase": {"label": "purchased", "given": "click"},
            "seconds": {"label": "seconds", "kind": "regression"},
        },
    },
    where="test",
)


def encoded_rows(seed: int, *, rows: int = 500, first_key: int = 0) -> pa.Table:
    """Encoded rows of the schema, as a published day holds them."""
    random = np.random.default_rng(seed)
    clicked_B = random.random(rows) < 0.5
    columns = {
        "item_id": random.integers(2, 100, rows),
        "label:click": clicked_B.astype(np.float32),
        "observed:click": random.random(rows) < 0.9,
        "label:purchase": (clicked_B & (random.random(rows) < 0.4)).astype(np.float32),
        "observed:purchase": random.random(rows) < 0.9,
        "label:seconds": random.normal(size=rows).astype(np.float32),
        "observed:seconds": np.ones(rows, dtype=bool),
        "weight": random.choice([0.5, 2.0], rows).astype(np.float32),
        "group": random.integers(0, 50, rows),
        "row_key": np.arange(first_key, first_key + rows),
        "keep:item_id": random.integers(1000, 2000, rows),
        "keep:country": random.choice(["de", "fr", "jp"], rows).tolist(),
    }
    schema = encoded_arrow(SCHEMA)
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
    return pa.table(arrays, schema=schema)


def logits(rows: int, seed: int = 0) -> Float64Array:
    random = np.random.default_rng(seed)
    click_B = random.normal(size=rows)
    child_B = random.normal(size=rows)
    joint_B = click_B + child_B - np.log1p(np.exp(click_B) + np.exp(child_B))
    return np.stack([click_B, joint_B, random.normal(size=rows)], axis=1)


def written(directory: Path, *, seed: int = 0) -> Path:
    """Predictions of two batches in each of two parts, as two processes write them."""
    for part in range(2):
        with PredictionWriter(directory, SCHEMA, part=part) as writer:
            for batch in range(2):
                first_key = part * 1_000 + batch * 500
                writer.write(
                    encoded_rows(first_key, first_key=first_key), logits(500, seed=seed + batch)
                )
    return directory


def test_predictions_hold_keys_labels_logits_and_kept_columns_once_a_row() -> None:
    names = predictions_arrow(SCHEMA).names
    assert names == [
        "row_key",
        "group",
        "weight",
        *("label:click", "observed:click", "logit:click"),
        *("label:purchase", "observed:purchase", "logit:purchase"),
        *("label:seconds", "observed:seconds", "logit:seconds"),
        "keep:item_id",
        "keep:country",
    ]
    encoded = encoded_rows(0)
    table = predictions_table(encoded, logits(500), schema=SCHEMA)
    assert table.column("keep:country").equals(encoded.column("keep:country"))
    found = table.column("logit:purchase").to_numpy()
    np.testing.assert_array_equal(found, logits(500)[:, 1].astype(np.float32))


def test_a_metric_of_predictions_read_back_equals_the_evaluations(tmp_path: Path) -> None:
    written(tmp_path)
    accumulator = OutcomeAccumulator(SCHEMA.task_names)
    for first_key in (0, 500, 1_000, 1_500):
        encoded = encoded_rows(first_key, first_key=first_key)
        columns = {name: encoded.column(name).to_numpy() for name in encoded.column_names[:-1]}
        accumulator.add(
            logits_BT=logits(500, seed=first_key // 500 % 2).astype(np.float32),
            labels_BT=np.stack([columns[f"label:{task}"] for task in SCHEMA.task_names], axis=1),
            observed_BT=np.stack(
                [columns[f"observed:{task}"] for task in SCHEMA.task_names], axis=1
            ),
            weights_B=columns["weight"],
            groups_B=columns["group"],
        )
    entries = evaluate_tasks(accumulator.outcomes(), SCHEMA.tasks)
    binary = [entry for entry in entries if isinstance(entry, BinaryMetrics)]
    assert [entry.name for entry in binary] == ["click", "purchase", "purchase|click"]
    for entry in binary:
        rows = read_predictions(tmp_path, entry.name).rows
        assert (len(rows), rows.labels_B.sum()) == (entry.rows, entry.positives)
        assert auc(rows) == pytest.approx(entry.auc, abs=1e-12)
        assert log_loss(rows) == pytest.approx(entry.log_loss, abs=1e-12)


def test_two_models_predictions_compare_and_unequal_rows_do_not(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", seed=7)
    comparison = compare_predictions(
        read_predictions(first, "purchase|click"),
        read_predictions(second, "purchase|click"),
        replicates=20,
    )
    assert comparison.auc is not None
    assert comparison.groups == 50
    (second / "part-00001.parquet").unlink()
    with pytest.raises(
        DataError, match=r"rows are only in .*/a \(click\) \(such as row key 1\d\d\d\)"
    ):
        compare_predictions(read_predictions(first, "click"), read_predictions(second, "click"))


def test_an_interrupted_evaluation_closes_its_file(tmp_path: Path) -> None:
    encoded = encoded_rows(0)

    def interrupted() -> None:
        with PredictionWriter(tmp_path, SCHEMA) as writer:
            writer.write(encoded, logits(500))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pq.read_metadata(tmp_path / "part-00000.parquet").num_rows == 500


def test_an_unknown_entry_is_refused_with_the_nearest_known(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(DataError, match=r"no task 'purchas' \(did you mean 'purchase'\?\)"):
        read_predictions(tmp_path, "purchas|click")
    with pytest.raises(DataError, match="labels other than 0 and 1"):
        read_predictions(tmp_path, "seconds")


def test_missing_and_damaged_predictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no predictions"):
        read_predictions(tmp_path, "click")
    file = tmp_path / "part-00000.parquet"
    file.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ArtifactError, match=r"part-00000.parquet: cannot be read"):
        read_predictions(tmp_path, "click")
    pq.write_table(pa.table({"row_key": [1]}), file)
    with pytest.raises(ArtifactError, match=r"part-00000.parquet: not a file of predictions"):
        read_predictions(tmp_path, "click")
    newer = predictions_arrow(SCHEMA).with_metadata({b"recsys.predictions": b"99"})
    pq.write_table(newer.empty_table(), file)
    with pytest.raises(ArtifactError, match="predictions format 99, this release reads 1"):
        read_predictions(tmp_path, "click")


def test_a_logit_that_is_not_finite_is_not_read_as_a_number(tmp_path: Path) -> None:
    broken = logits(500)
    broken[:, 0] = math.nan
    with PredictionWriter(tmp_path, SCHEMA) as writer:
        writer.write(encoded_rows(0), broken)
    with pytest.raises(DataError, match="NaN or infinite"):
        read_predictions(tmp_path, "click")


def test_entries_are_named_after_their_rows() -> None:
    assert entry_name("purchase") == "purchase"
    assert entry_name("purchase", "click") == "purchase|click"
