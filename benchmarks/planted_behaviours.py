"""Rows of five tasks whose users show themselves only in what they did: which behaviour informs which task is planted.

A user's taste has one part a behaviour, items have a place; both are directions in three dimensions:

    behaviour s shows item j with probability ~ exp(u_s v_j / temperature)
    logit of task t = b_t + scale * sum over its planted s of u_s v_candidate / sqrt(their number)

A taste's part is independent of the others, so that a behaviour that is not planted for a task says nothing of it, and
an item alone says nothing of any label. Every row is a user of its own: only the sequences carry the taste.

    python benchmarks/planted_behaviours.py FOLDER [--rows 100000] [--seed 0]

Axes: **B** rows, **T** tasks, **S** behaviours, **L** events, **J** items, **K** dimensions, **Q** points.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TASKS = ("click", "cart", "purchase", "follow", "share")
BEHAVIOURS = ("clicks", "searches", "carts", "follows")
# [T, S]: 1 where the task depends on the part of the taste that the behaviour shows.
INFORMATIVE = (
    (1, 1, 0, 0),
    (0, 1, 1, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
    (1, 0, 0, 1),
)
RATES = (0.3, 0.15, 0.1, 0.2, 0.1)

ITEMS = 300
DIMENSIONS = 3
TEMPERATURE = 0.1
SCALE = 2.5
SHORTEST, LONGEST = 3, 5
EMPTY = 0.05  # share of sequences without an event
# Rows of each split, as shares of the training rows.
SPLITS = {"train": 1.0, "validation": 0.2, "test": 0.4}


@dataclass(frozen=True, eq=False)
class Users:
    """What one split draws: tastes, each behaviour's events (the first `lengths_BS` count), and the candidates."""

    tastes_BSK: Floats
    events_BSL: Integers
    lengths_BS: Integers
    candidates_B: Integers


def write(folder: Path, *, rows: int = 100_000, seed: int = 0) -> None:
    """Write `rows.parquet` of `rows` training rows and .2 and .4 times as many of validation and test."""
    items_JK = items(seed)
    tables = [
        _rows(items_JK, name, round(share * rows), np.random.default_rng([seed, 1 + number]))
        for number, (name, share) in enumerate(SPLITS.items())
    ]
    pq.write_table(pa.concat_tables(tables), folder / "rows.parquet")


def items(seed: int) -> Floats:
    """The items' places [J, K], which belong to the seed."""
    return directions((ITEMS,), np.random.default_rng([seed, 0]))


def directions(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Uniform directions [..., K] of length 1."""
    found = rng.standard_normal((*shape, DIMENSIONS))
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def draw(items_JK: Floats, rows: int, rng: np.random.Generator) -> Users:
    """Users, their behaviours and one candidate each."""
    tastes_BSK = directions((rows, len(BEHAVIOURS)), rng)
    lengths_BS = rng.integers(SHORTEST, LONGEST + 1, tastes_BSK.shape[:2])
    lengths_BS[rng.random(lengths_BS.shape) < EMPTY] = 0
    events_BSL = np.stack(
        [events(tastes_BSK[:, s], items_JK, rng) for s in range(len(BEHAVIOURS))], axis=1
    )
    return Users(tastes_BSK, events_BSL, lengths_BS, rng.integers(0, len(items_JK), rows))


def events(tastes_BK: Floats, items_JK: Floats, rng: np.random.Generator) -> Integers:
    """`LONGEST` items a row [B, L], drawn with replacement by exp(taste . item / temperature)."""
    weights_BJ = np.exp(tastes_BK @ items_JK.T / TEMPERATURE)
    sums_BJ = np.cumsum(weights_BJ, axis=1)
    drawn_BL = rng.random((len(tastes_BK), LONGEST)) * sums_BJ[:, -1:]
    # One search for all rows: each row's sums lie between its number and the next.
    row_B1 = np.arange(len(tastes_BK))[:, None]
    places = np.searchsorted(
        (row_B1 + sums_BJ / sums_BJ[:, -1:]).ravel(), row_B1 + drawn_BL / sums_BJ[:, -1:]
    )
    return np.asarray(np.clip(places - row_B1 * len(items_JK), 0, len(items_JK) - 1))


def logits(tastes_BSK: Floats, places_BK: Floats) -> Floats:
    """Each task's true logit [B, T] of candidates at these places."""
    matches_BS = np.einsum("bsk,bk->bs", tastes_BSK, places_BK)
    planted_TS = np.array(INFORMATIVE)
    means_BT = matches_BS @ (planted_TS / np.sqrt(planted_TS.sum(axis=1, keepdims=True))).T
    return intercepts() + SCALE * np.asarray(means_BT)


def intercepts() -> Floats:
    """[T]: what gives each task its positive rate."""
    return np.array(
        [intercept(rate, sum(planted)) for rate, planted in zip(RATES, INFORMATIVE, strict=True)]
    )


def intercept(rate: float, planted: int) -> float:
    """The logit's intercept under which a task of one or two planted behaviours has this positive rate."""
    assert planted in (1, 2)
    # In three dimensions the product of a uniform direction with any fixed one is uniform on [-1, 1] (Archimedes).
    nodes_Q, weights_Q = np.polynomial.legendre.leggauss(64)
    sums, shares = nodes_Q, weights_Q / 2
    if planted == 2:
        sums = np.add.outer(nodes_Q, nodes_Q).ravel() / np.sqrt(2)
        shares = np.multiply.outer(weights_Q, weights_Q).ravel() / 4

    def excess(shift: float) -> float:
        return float(shares @ sigmoid(SCALE * sums + shift)) - rate

    return float(brentq(excess, -60.0, 60.0))


def sigmoid(logits: Floats) -> Floats:
    """Probabilities, without overflow."""
    return np.asarray((1.0 + np.tanh(logits / 2.0)) / 2.0)


def _rows(items_JK: Floats, split: str, rows: int, rng: np.random.Generator) -> pa.Table:
    users = draw(items_JK, rows, rng)
    probabilities_BT = sigmoid(logits(users.tastes_BSK, items_JK[users.candidates_B]))
    labels_BT = rng.random(probabilities_BT.shape) < probabilities_BT
    columns: dict[str, object] = {"split": pa.array([split] * rows), "item_id": users.candidates_B}
    for s, name in enumerate(BEHAVIOURS):
        columns[f"{name}_item"] = _lists(users.events_BSL[:, s], users.lengths_BS[:, s])
    columns |= {task: labels_BT[:, t] for t, task in enumerate(TASKS)}
    columns |= {f"oracle_{task}": probabilities_BT[:, t] for t, task in enumerate(TASKS)}
    return pa.table(columns)


def _lists(events_BL: Integers, lengths_B: Integers) -> pa.Array:
    """The first events of every row as an Arrow list."""
    kept_BL = np.arange(events_BL.shape[1]) < lengths_B[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(events_BL[kept_BL]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="training rows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, rows=options.rows, seed=options.seed)


if __name__ == "__main__":
    main()
