"""What a lookup in a user's map costs a request: CPU time of encoding 500 candidates, one thread.

    python benchmarks/lookup.py [--candidates 500] [--entries 200] [--rounds 51]

Encoded are candidates with one number of their own; the same with a lookup of their key in the user's map; and, as a
server without shared columns would have it, with a copy of the map in each candidate's row. Every round runs each of
them in turn; medians of process CPU time are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from recsys.fitting import fit
from recsys.request_rows import RequestColumns, RequestEncoder
from recsys.schema import Schema

TREE = {
    "columns": {"price": "float32", "key": "string", "held": "map<string,float32>", "y": "bool"},
    "features": {
        "price": {"kind": "numeric"},
        "found": {"kind": "lookup", "column": "held", "key": "key", "user_columns": ["held"]},
    },
    "tasks": {"y": {"label": "y"}},
}
WITHOUT = TREE | {"features": {"price": {"kind": "numeric"}}}


def contenders(candidates: int, entries: int) -> dict[str, Callable[[], pa.Table]]:
    random = np.random.default_rng(0)
    keys = [f"category-{number}" for number in range(2 * entries)]
    held = [(key, float(random.random())) for key in keys[:entries]]
    user = pa.table({"held": pa.array([held], pa.map_(pa.string(), pa.float32()))})
    of = {
        "price": pa.array(random.random(candidates), pa.float32()),
        "key": pa.array(random.choice(keys, candidates).tolist()),
    }
    user_of_row_N = np.zeros(candidates, np.int64)
    with_lookup, without = (
        Schema.parse(tree, where="benchmark")
        for tree in (TREE, WITHOUT | {"columns": {"price": "float32", "y": "bool"}})
    )
    labelled = pa.table(of | {"held": user["held"].take(user_of_row_N), "y": [True] * candidates})
    encoder, plain = (
        RequestEncoder.of(fit(schema, [labelled.select(list(schema.columns))]))
        for schema in (with_lookup, without)
    )
    columns, rows = RequestColumns.of(with_lookup), pa.table(of)

    def shared() -> pa.Table:
        joined = columns.joined(rows, user=user, user_of_row_N=user_of_row_N)
        return encoder.encode(joined, rows=candidates, side="candidate")

    def copied() -> pa.Table:
        joined = rows.append_column("held", user["held"].take(user_of_row_N))
        return encoder.encode(joined, rows=candidates, side="candidate")

    assert shared().equals(copied())
    return {
        "without a lookup": lambda: plain.encode(rows, rows=candidates, side="candidate"),
        "the user's map shared": shared,
        "the user's map copied": copied,
    }


def medians(tried: dict[str, Callable[[], pa.Table]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, all run in turn in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(rounds):
        for name, run in tried.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: 1000 * statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--entries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=51)
    arguments = parser.parse_args()
    tried = contenders(arguments.candidates, arguments.entries)
    for name, milliseconds in medians(tried, arguments.rounds).items():
        print(f"{name:24}{milliseconds:8.3f} ms")


if __name__ == "__main__":
    main()
