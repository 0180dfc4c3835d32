"""Planted behaviours say what they are planted to say and nothing else."""

from pathlib import Path

import numpy as np
import planted_behaviours as planted
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from planted_behaviours import BEHAVIOURS, INFORMATIVE, TASKS

from recsys.experiment import load_experiment
from recsys.measures import auc, scored_rows

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "suites" / "planted_behaviours"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("planted")
    planted.write(folder, rows=4_000, seed=7)
    return pq.read_table(folder / "rows.parquet")


def test_events_are_drawn_by_the_softmax_of_taste_and_place() -> None:
    items_J = planted.items(1)
    tastes_BS = np.where(np.arange(40_000)[:, None] % 2, 1.0, -1.0) * np.array([[1.0, -1.0]])

    found_BSL = planted.events(tastes_BS, items_J, np.random.default_rng(1))

    for taste in (-1.0, 1.0):
        weights_J = np.exp(taste * items_J / planted.TEMPERATURE)
        drawn = found_BSL[tastes_BS == taste]
        shares_J = np.bincount(drawn.ravel(), minlength=len(items_J)) / drawn.size
        expected_J = weights_J / weights_J.sum()
        assert (abs(shares_J - expected_J) < 5 * np.sqrt(expected_J / drawn.size)).all()


def test_a_task_depends_on_its_planted_parts_of_the_taste_alone() -> None:
    rng = np.random.default_rng(2)
    tastes_BS = rng.choice([-1.0, 1.0], (64, len(BEHAVIOURS)))
    places_B = rng.uniform(-1, 1, 64)
    before_BT = planted.logits(tastes_BS, places_B)

    for s in range(len(BEHAVIOURS)):
        turned_BS = tastes_BS.copy()
        turned_BS[:, s] *= -1
        moved_T = np.abs(planted.logits(turned_BS, places_B) - before_BT).max(axis=0) > 1e-9
        assert moved_T.tolist() == [bool(informs[s]) for informs in INFORMATIVE]


def test_every_task_has_its_rate_and_the_taste_is_worth_more_than_the_item() -> None:
    items_J = planted.items(0)
    rng = np.random.default_rng(3)
    users = planted.draw(items_J, 40_000, rng)
    places_B = items_J[users.candidates_B]
    probabilities_BT = planted.sigmoid(planted.logits(users.tastes_BS, places_B))
    labels_BT = rng.random(probabilities_BT.shape) < probabilities_BT

    errors_T = probabilities_BT.std(axis=0) / np.sqrt(len(places_B))
    assert (np.abs(probabilities_BT.mean(axis=0) - planted.RATES) < 5 * errors_T).all()
    for t in range(len(TASKS)):
        oracle = auc(scored_rows(probabilities_BT[:, t], labels_BT[:, t]))
        item = auc(scored_rows(places_B, labels_BT[:, t]))
        assert oracle is not None
        assert item is not None
        assert oracle > 0.79
        assert item < oracle - 0.1


def test_splits_differ_and_a_seed_gives_the_same_rows(rows: pa.Table, tmp_path: Path) -> None:
    planted.write(tmp_path, rows=4_000, seed=7)
    assert pq.read_table(tmp_path / "rows.parquet").equals(rows)
    counts = {item["values"]: item["counts"] for item in rows["split"].value_counts().to_pylist()}
    assert {name: count / 4_000 for name, count in counts.items()} == planted.SPLITS
    train, validation = rows.slice(0, 800), rows.slice(4_000, 800)
    assert train["item_id"].to_pylist() != validation["item_id"].to_pylist()


def test_sequences_are_short_and_some_are_empty(rows: pa.Table) -> None:
    for name in BEHAVIOURS:
        lengths = pc.list_value_length(rows[f"{name}_item"]).to_numpy()
        assert set(lengths) == {0, *range(planted.SHORTEST, planted.LONGEST + 1)}
        assert (lengths == 0).mean() == pytest.approx(planted.EMPTY, abs=0.02)


def test_the_suite_names_what_is_written(rows: pa.Table) -> None:
    experiment = load_experiment(SUITE / "experiment.toml")
    schema = experiment.load_schema()
    assert schema.task_names == TASKS
    assert tuple(schema.sequences) == BEHAVIOURS
    assert set(schema.columns) == set(rows.column_names)
    assert schema.tables["item"].rows == planted.ITEMS + 2
    assert {item.max_length for item in schema.sequences.values()} == {planted.LONGEST}
    assert experiment.evaluation.reference == {task: f"oracle_{task}" for task in TASKS}
