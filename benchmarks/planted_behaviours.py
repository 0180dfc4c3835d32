"""Rows of four tasks whose users show themselves only in what they did: which behaviour informs which task is planted.

A user's taste has one part a behaviour, -1 or 1, and items lie between -1 and 1:

    behaviour s shows item j with probability ~ exp(u_s v_j / temperature)
    logit of task t = b_t + scale * sum over its planted s of u_s v_candidate / sqrt(their number)

The parts are independent, so that a behaviour that is not planted for a task says nothing of it. Every row is a user of
its own: only the sequences carry the taste. Because most users have the taste 1, an item alone says a little of every
label; without that, embeddings would have to be found from products of two unknowns, which some architectures never
begin to do within a budget of few steps.

    python benchmarks/planted_behaviours.py FOLDER [--rows 60000] [--seed 0]

Axes: **B** rows, **T** tasks, **S** behaviours, **L** events, **J** items, **Q** points.
"""

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TASKS = ("click", "cart", "purchase", "follow")
BEHAVIOURS = ("clicks", "searches", "carts", "follows")
# [T, S]: 1 where the task depends on the part of the taste that the behaviour shows.
INFORMATIVE = (
    (1, 1, 0, 0),
    (0, 1, 1, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
)
RATES = (0.5, 0.4, 0.3, 0.4)

ITEMS = 100
TEMPERATURE = 0.3
SCALE = 3.0
MAJORITY = 0.7  # share of users with the taste 1, in each part
SHORTEST, LONGEST = 2, 4
EMPTY = 0.05  # share of sequences without an event
# Rows of each split, as shares of the training rows.
SPLITS = {"train": 1.0, "validation": 0.2, "test": 0.5}


@dataclass(frozen=True, eq=False)
class Users:
    """What one split draws: tastes, each behaviour's events (the first `lengths_BS` count), and the candidates."""

    tastes_BS: Floats
    events_BSL: Integers
    lengths_BS: Integers
    candidates_B: Integers


def write(folder: Path, *, rows: int = 60_000, seed: int = 0) -> None:
    """Write `rows.parquet`: `rows` training rows, and as many of the other splits as `SPLITS` says."""
    items_J = items(seed)
    tables = [
        _rows(items_J, name, round(share * rows), np.random.default_rng([seed, 1 + number]))
        for number, (name, share) in enumerate(SPLITS.items())
    ]
    pq.write_table(pa.concat_tables(tables), folder / "rows.parquet")


def items(seed: int) -> Floats:
    """The items' places [J], evenly spaced; which item is where belongs to the seed."""
    return np.random.default_rng([seed, 0]).permutation(np.linspace(-1.0, 1.0, ITEMS))


def draw(items_J: Floats, rows: int, rng: np.random.Generator) -> Users:
    """Users, their behaviours and one candidate each."""
    tastes_BS = rng.choice([-1.0, 1.0], (rows, len(BEHAVIOURS)), p=[1 - MAJORITY, MAJORITY])
    lengths_BS = rng.integers(SHORTEST, LONGEST + 1, tastes_BS.shape)
    lengths_BS[rng.random(lengths_BS.shape) < EMPTY] = 0
    return Users(
        tastes_BS, events(tastes_BS, items_J, rng), lengths_BS, rng.integers(0, len(items_J), rows)
    )


def events(tastes_BS: Floats, items_J: Floats, rng: np.random.Generator) -> Integers:
    """`LONGEST` items a row and behaviour [B, S, L], drawn with replacement by exp(taste * item / temperature)."""
    found_BSL = np.empty((*tastes_BS.shape, LONGEST), dtype=np.int64)
    for taste in (-1.0, 1.0):
        weights_J = np.exp(taste * items_J / TEMPERATURE)
        of_taste_BS = tastes_BS == taste
        shape = (int(of_taste_BS.sum()), LONGEST)
        found_BSL[of_taste_BS] = rng.choice(len(items_J), shape, p=weights_J / weights_J.sum())
    return found_BSL


def logits(tastes_BS: Floats, places_B: Floats) -> Floats:
    """Each task's true logit [B, T] of candidates at these places."""
    planted_TS = np.array(INFORMATIVE)
    sums_BT = tastes_BS @ (planted_TS / np.sqrt(planted_TS.sum(axis=1, keepdims=True))).T
    return intercepts() + SCALE * np.asarray(sums_BT) * places_B[:, None]


def intercepts() -> Floats:
    """[T]: what gives each task its positive rate."""
    return np.array(
        [intercept(rate, sum(planted)) for rate, planted in zip(RATES, INFORMATIVE, strict=True)]
    )


def intercept(rate: float, planted: int) -> float:
    """The logit's intercept under which a task of that many planted behaviours has this positive rate."""
    places_Q = np.linspace(-1.0, 1.0, ITEMS)
    tastes = np.array(list(itertools.product((-1.0, 1.0), repeat=planted)))
    shares = np.prod(np.where(tastes > 0, MAJORITY, 1 - MAJORITY), axis=1)
    matches = np.multiply.outer(tastes.sum(axis=1) / np.sqrt(planted), places_Q)

    def excess(shift: float) -> float:
        return float(shares @ sigmoid(SCALE * matches + shift).mean(axis=1)) - rate

    return float(brentq(excess, -60.0, 60.0))


def sigmoid(logits: Floats) -> Floats:
    """Probabilities, without overflow."""
    return np.asarray((1.0 + np.tanh(logits / 2.0)) / 2.0)


def _rows(items_J: Floats, split: str, rows: int, rng: np.random.Generator) -> pa.Table:
    users = draw(items_J, rows, rng)
    probabilities_BT = sigmoid(logits(users.tastes_BS, items_J[users.candidates_B]))
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
    parser.add_argument("--rows", type=int, default=60_000, help="training rows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, rows=options.rows, seed=options.seed)


if __name__ == "__main__":
    main()
