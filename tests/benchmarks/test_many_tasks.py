"""The suite of many tasks is the construction it says it is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from many_tasks import (
    BUCKETS,
    CATEGORIES,
    LATENT,
    SPLITS,
    TASKS,
    correlations,
    degrees,
    polynomials,
    rates,
    sigmoid,
    standardized,
    task_weights,
    world,
    write,
)

from recsys.experiment import load_experiment

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "suites" / "many_tasks"


def test_latent_scores_correlate_as_asked() -> None:
    rng = np.random.default_rng(3)
    for wanted in (correlations(), np.full((7, 7), 0.4) + 0.6 * np.eye(7)):
        weights_TD = task_weights(wanted, LATENT, rng=rng)
        assert weights_TD.shape == (len(wanted), LATENT)
        np.testing.assert_allclose(weights_TD @ weights_TD.T, wanted, rtol=0, atol=1e-10)


def test_tasks_of_a_category_are_closer_than_others() -> None:
    found = correlations()
    category = [name for name, tasks in CATEGORIES.items() for _ in tasks]
    for t, one in enumerate(category):
        for u, other in enumerate(category):
            expected = 1.0 if t == u else 0.6 if one == other else 0.1
            assert found[t, u] == expected
    assert tuple(name for tasks in CATEGORIES.values() for name in tasks) == TASKS
    assert np.linalg.eigvalsh(found).min() > 0.3


def test_scores_of_given_degrees_correlate_as_the_closed_form_says() -> None:
    # cov(z, z') = r, cov(z^2, z'^2) = 2 r^2, cov(z^3, z'^3) = 9 r + 6 r^3, cov(z, z'^3) = 3 r.
    r = 0.4
    one, two, cubes = r, 2 * r**2, 9 * r + 6 * r**3
    covariances = {
        (1, 1): one,
        (1, 2): one,
        (1, 3): one + 3 * r,
        (2, 2): one + two,
        (2, 3): one + 3 * r + two,
        (3, 3): one + 2 * 3 * r + two + cubes,
    }
    variances = {1: 1, 2: 3, 3: 24}
    degrees_T = np.array([1, 1, 2, 2, 3, 3])
    rng = np.random.default_rng(11)
    weights_TD = task_weights(np.full((6, 6), r) + (1 - r) * np.eye(6), 8, rng=rng)

    scores_BT = polynomials(rng.standard_normal((500_000, 8)) @ weights_TD.T, degrees_T)
    found_TT = np.asarray(np.corrcoef(scores_BT.T))

    for t in range(6):
        for u in range(t + 1, 6):
            a, b = int(degrees_T[t]), int(degrees_T[u])
            expected = covariances[a, b] / np.sqrt(variances[a] * variances[b])
            # Six deviations of a correlation of normal rows are .007; cubes spread wider.
            assert found_TT[t, u] == pytest.approx(expected, abs=0.01), (a, b)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_standardized_scores_have_mean_0_and_variance_1(degree: int) -> None:
    # Exact for polynomials of this degree: Gauss-Hermite in the probabilists' weight.
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    weights = weights / weights.sum()
    degree_1 = np.array([degree])
    scores = standardized(polynomials(nodes[:, None], degree_1), degree_1)[:, 0]
    assert weights @ scores == pytest.approx(0, abs=1e-12)
    assert weights @ scores**2 == pytest.approx(1, abs=1e-12)


def test_positive_rates_spread_a_hundredfold_in_every_category_and_are_met() -> None:
    rates_T = rates()
    assert sorted(rates_T) == pytest.approx(np.geomspace(0.003, 0.3, 20))
    assert all(item.max() / item.min() > 40 for item in rates_T.reshape(4, 5))
    assert {tuple(np.unique(item)) for item in degrees().reshape(4, 5)} == {(1, 2, 3)}

    x_BD = np.random.default_rng(5).standard_normal((50_000, LATENT))
    probabilities_BT = sigmoid(world(0).outcomes.logits(x_BD))

    errors_T = probabilities_BT.std(axis=0) / np.sqrt(len(x_BD))
    assert (np.abs(probabilities_BT.mean(axis=0) - rates_T) < 5 * errors_T).all()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("many_tasks")
    write(folder, rows=4_000, seed=7)
    return pq.read_table(folder / "rows.parquet")


def _split(rows: pa.Table, name: str) -> pa.Table:
    return rows.filter(pc.equal(rows["split"].cast(pa.string()), name))


def test_each_split_is_drawn_afresh(rows: pa.Table) -> None:
    parts = {name: _split(rows, name) for name in ("train", "validation", "test")}
    assert {name: part.num_rows / 4_000 for name, part in parts.items()} == SPLITS
    values = [set(part["number_1"].to_pylist()) for part in parts.values()]
    assert len(set.union(*values)) > 0.999 * rows.num_rows, "no row of one split is in another"


def test_a_seed_gives_the_same_rows_and_another_seed_others(rows: pa.Table, tmp_path: Path) -> None:
    write(tmp_path, rows=4_000, seed=7)
    assert pq.read_table(tmp_path / "rows.parquet").equals(rows)
    assert not np.allclose(world(7).outcomes.weights_TD, world(8).outcomes.weights_TD)


def test_sizes_of_categories_are_zipfs(rows: pa.Table) -> None:
    for column, count in ((1, 16), (16, 128)):
        assert BUCKETS[column - 1] == count
        ids = rows[f"kind_{column}"].to_numpy()
        sizes = np.sort(np.bincount(ids, minlength=count))[::-1] / len(ids)
        shares = 1 / np.arange(1, count + 1) / (1 / np.arange(1, count + 1)).sum()
        assert len(sizes) == count
        np.testing.assert_allclose(sizes, shares, atol=5 * np.sqrt(0.25 / len(ids)))


def test_labels_are_drawn_with_the_kept_probability(rows: pa.Table) -> None:
    for task in TASKS:
        oracle, label = rows[f"oracle_{task}"].to_numpy(), rows[task].to_numpy(zero_copy_only=False)
        deviation = np.sqrt((oracle * (1 - oracle)).sum())
        assert abs(label.sum() - oracle.sum()) < 5 * deviation


def test_the_suite_names_what_is_written(rows: pa.Table) -> None:
    experiment = load_experiment(SUITE / "experiment.toml")
    schema = experiment.load_schema()
    assert schema.task_names == TASKS
    assert set(schema.columns) == set(rows.column_names)
    assert experiment.evaluation.reference == {task: f"oracle_{task}" for task in TASKS}
    assert [schema.tables[f"kind_{n}"].rows for n in range(1, 17)] == [n + 2 for n in BUCKETS]
