"""Rows of twenty binary tasks in four categories, positive rates from .3 down to .003: where shared models differ.

After MultiTab-Bench's generator, with a truth that is kept beside the labels:

    W W^T = P                              P: the tasks' correlations, .6 within a category and .1 across
    z_t = w_t x,  x ~ N(0, I)              unit variance
    s_t = z_t + ... + z_t^degree_t         degrees 1 to 3
    p_t = sigmoid(b_t + 2.5 (s_t - mean) / deviation)      b_t gives the task its positive rate

W belongs to the seed; x and labels are drawn afresh for each split. A model sees some of x as numbers, and the rest
only as categories: buckets of random projections, of Zipf-distributed sizes. It cannot reach the oracle, which sees x.

    python benchmarks/many_tasks.py FOLDER [--rows 60000] [--seed 0]

Axes: **B** rows, **T** tasks, **D** latent inputs, **G** categories, **C** categorical columns, **Q** points.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CATEGORIES = {group: tuple(f"{group}{n}" for n in range(1, 6)) for group in "abcd"}
TASKS = tuple(task for tasks in CATEGORIES.values() for task in tasks)
WITHIN, ACROSS = 0.6, 0.1
HIGHEST_RATE, LOWEST_RATE = 0.3, 0.003
DEVIATION = 2.5  # of a task's logit

LATENT = 32
NUMBERS = 20
# Ids of each categorical column.
BUCKETS = (16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 128)
# Rows of each split, as shares of the training rows.
SPLITS = {"train": 1.0, "validation": 0.2, "test": 0.75}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How latent inputs become probabilities: `weights_TD`, and each task's degree and intercept."""

    weights_TD: Floats
    degrees_T: Integers
    intercepts_T: Floats

    def logits(self, x_BD: Floats) -> Floats:
        """[B, T]."""
        scores_BT = polynomials(x_BD @ self.weights_TD.T, self.degrees_T)
        return self.intercepts_T + DEVIATION * standardized(scores_BT, self.degrees_T)


@dataclass(frozen=True, eq=False)
class Buckets:
    """One categorical column: a direction among the hidden inputs, and the cuts and ids along it."""

    direction_D: Floats
    cuts: Floats
    ids: Integers

    def of(self, hidden_BD: Floats) -> Integers:
        """Each row's id."""
        return self.ids[np.searchsorted(self.cuts, hidden_BD @ self.direction_D)]


@dataclass(frozen=True, eq=False)
class World:
    """All that belongs to a seed."""

    outcomes: Outcomes
    buckets: tuple[Buckets, ...]


def write(folder: Path, *, rows: int = 60_000, seed: int = 0) -> None:
    """Write `rows.parquet`: `rows` training rows, and as many of the other splits as `SPLITS` says."""
    made = world(seed)
    tables = [
        _rows(made, name, round(share * rows), np.random.default_rng([seed, 1 + number]))
        for number, (name, share) in enumerate(SPLITS.items())
    ]
    pq.write_table(pa.concat_tables(tables), folder / "rows.parquet")


def world(seed: int) -> World:
    """What a seed draws before any row."""
    rng = np.random.default_rng([seed, 0])
    rates_T, degrees_T = rates(), degrees()
    outcomes = Outcomes(
        weights_TD=task_weights(correlations(), LATENT, rng=rng),
        degrees_T=degrees_T,
        intercepts_T=np.array(
            [intercept(rate, int(degree)) for rate, degree in zip(rates_T, degrees_T, strict=True)]
        ),
    )
    return World(outcomes, tuple(_buckets(count, rng) for count in BUCKETS))


def rates() -> Floats:
    """Positive rates [T], evenly spaced in their logarithms and dealt out so that every category spans them."""
    spread = np.geomspace(HIGHEST_RATE, LOWEST_RATE, len(TASKS))
    return spread.reshape(-1, len(CATEGORIES)).T.ravel()


def degrees() -> Integers:
    """Degrees [T], 1 to 3 in turn from the most frequent task to the rarest."""
    return (np.arange(len(TASKS)) % 3 + 1).reshape(-1, len(CATEGORIES)).T.ravel()


def correlations() -> Floats:
    """P [T, T]: 1 for a task with itself, `WITHIN` in a category, `ACROSS` between two."""
    category_T = np.repeat(np.arange(len(CATEGORIES)), [len(item) for item in CATEGORIES.values()])
    found_TT: Floats = np.where(category_T[:, None] == category_T, WITHIN, ACROSS)
    np.fill_diagonal(found_TT, 1.0)
    return found_TT


def task_weights(correlations_TT: Floats, width: int, *, rng: np.random.Generator) -> Floats:
    """W [T, width] with W W^T = P: Q sqrt(Lambda) U, P's eigenvectors and values, and orthonormal random rows U."""
    tasks = len(correlations_TT)
    values_T, vectors_TT = np.linalg.eigh(correlations_TT)
    assert tasks <= width
    assert values_T.min() > 0, "correlations are positive definite"
    orthonormal_TD = np.linalg.qr(rng.standard_normal((width, tasks)))[0].T
    return np.asarray((vectors_TT * np.sqrt(values_T)) @ orthonormal_TD)


def polynomials(z_BT: Floats, degrees_T: Integers) -> Floats:
    """z + ... + z^degree for each task, [B, T]."""
    total = np.zeros_like(z_BT)
    for power in range(1, int(degrees_T.max()) + 1):
        total += np.where(degrees_T >= power, z_BT**power, 0.0)
    return total


def standardized(scores_BT: Floats, degrees_T: Integers) -> Floats:
    """Polynomials of a unit normal less their mean, in units of their deviation."""
    # E z^2 = 1; var(z), var(z + z^2) and var(z + z^2 + z^3) are 1, 3 and 24.
    variances_T = np.array([1.0, 3.0, 24.0])[degrees_T - 1]
    return np.asarray((scores_BT - (degrees_T > 1)) / np.sqrt(variances_T))


def intercept(rate: float, degree: int) -> float:
    """The logit's intercept under which a task of this degree has this positive rate."""
    z_Q = np.linspace(-9.0, 9.0, 20_001)
    weights_Q = np.exp(-(z_Q**2) / 2)
    weights_Q /= weights_Q.sum()
    degree_1 = np.array([degree])
    logits_Q = DEVIATION * standardized(polynomials(z_Q[:, None], degree_1), degree_1)[:, 0]

    def excess(shift: float) -> float:
        return float(weights_Q @ sigmoid(logits_Q + shift)) - rate

    return float(brentq(excess, -60.0, 60.0))


def sigmoid(logits: Floats) -> Floats:
    """Probabilities, without overflow."""
    return np.asarray((1.0 + np.tanh(logits / 2.0)) / 2.0)


def _buckets(count: int, rng: np.random.Generator) -> Buckets:
    """A direction cut into `count` pieces; a piece's share is 1 / rank, and neither ranks nor ids follow its place."""
    direction_D = rng.standard_normal(LATENT - NUMBERS)
    direction_D /= np.linalg.norm(direction_D)
    shares = rng.permutation(1.0 / np.arange(1, count + 1))
    inner = np.cumsum(shares)[:-1] / shares.sum()
    return Buckets(direction_D, ndtri(inner), rng.permutation(count))


def _rows(made: World, split: str, rows: int, rng: np.random.Generator) -> pa.Table:
    x_BD = rng.standard_normal((rows, LATENT))
    probabilities_BT = sigmoid(made.outcomes.logits(x_BD))
    labels_BT = rng.random(probabilities_BT.shape) < probabilities_BT
    hidden_BD = x_BD[:, NUMBERS:]
    columns: dict[str, object] = {"split": pa.array([split] * rows).dictionary_encode()}
    columns |= {f"number_{n + 1}": x_BD[:, n].astype(np.float32) for n in range(NUMBERS)}
    columns |= {f"kind_{n + 1}": item.of(hidden_BD) for n, item in enumerate(made.buckets)}
    columns |= {task: labels_BT[:, t] for t, task in enumerate(TASKS)}
    columns |= {f"oracle_{task}": probabilities_BT[:, t] for t, task in enumerate(TASKS)}
    return pa.table(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=60_000, help="training rows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, rows=options.rows, seed=options.seed)


if __name__ == "__main__":
    main()
