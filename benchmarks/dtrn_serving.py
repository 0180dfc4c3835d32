"""What a user's sequences cost a server under dtrn: encoded once a request, however many candidates it has.

    python benchmarks/dtrn_serving.py [--candidates 1 100 500] [--events 50] [--rounds 15]

Two bundles, one with bottom dtrn and one with flat, are exported and served by the ranker in this process, float32 on
one thread: 10 user-side and 10 candidate-side features of width 16, two sequences of items and categories, of which one
has a target, MMoE of 4 experts [64], two tasks. Three ways to the same scores: one request of N candidates, N rows in
one call of which each brings the same user anew, and N requests of one candidate. Below, the part of dtrn's program
that reads the sequences and no candidate, cut out of the exported graph, for one user and for N. All take turns in
every round; medians of process CPU time are printed, in milliseconds, and the ratios to the first way.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
from onnx.utils import Extractor

from recsys.bundle import Bundle
from recsys.export import write_bundle
from recsys.fitting import fit
from recsys.models import ModelConfig, build_model
from recsys.schema import Schema
from serving.config import Limits
from serving.ranker import Ranker
from serving.rows import request_tree

FEATURES_A_SIDE, WIDTH = 10, 16
SEQUENCES = ("seen", "bought")
TOKENS = ("item", "category")
CANDIDATE_INPUTS = frozenset({"candidate_NI", "user_of_row_N"})
# What is measured, and in which way.
Run = tuple[str, str]


def benchmark_schema(events: int) -> Schema:
    ids = [f"{side}_{n}" for side in ("user", "candidate") for n in range(FEATURES_A_SIDE)]
    lists = [f"{sequence}_{token}" for sequence in SEQUENCES for token in TOKENS]
    tokens = {token: {"table": token} for token in TOKENS}
    tree = {
        "columns": dict.fromkeys([*ids, *TOKENS], "int64")
        | dict.fromkeys(lists, "list<int64>")
        | {"clicked": "bool", "bought": "bool"},
        "tables": {name: {"rows": 10_000, "dim": WIDTH, "ids": "hash"} for name in ("id", *TOKENS)},
        "features": {
            name: {"kind": "categorical", "table": "id", "side": name.partition("_")[0]}
            for name in ids
        }
        | {token: {"kind": "categorical", "table": token} for token in TOKENS},
        "sequences": {name: {**tokens, "max_length": events} for name in SEQUENCES},
        "tasks": {"click": {"label": "clicked"}, "buy": {"label": "bought", "given": "click"}},
    }
    tree["sequences"]["seen"]["target"] = {token: token for token in TOKENS}
    return Schema.parse(tree, where="benchmark")


def rows_of_one_user(schema: Schema, count: int, events: int) -> pa.Table:
    """Raw rows that differ in the candidate's columns alone; sequences are full."""
    random = np.random.default_rng(0)
    columns = {}
    for field in schema.raw_arrow(labels=True):
        if pa.types.is_list(field.type):
            columns[field.name] = [random.integers(2**40, size=events).tolist()] * count
        elif pa.types.is_boolean(field.type):
            columns[field.name] = [True] * count
        elif field.name.startswith("user_"):
            columns[field.name] = [int(random.integers(2**40))] * count
        else:
            columns[field.name] = random.integers(2**40, size=count).tolist()
    return pa.table(columns, schema=schema.raw_arrow(labels=True))


def ranker_of(bottom: str, schema: Schema, rows: pa.Table, root: Path) -> Ranker:
    tree = {
        "embeddings": {"backend": "plain"},
        "bottom": {"kind": bottom},
        "mixing": {"kind": "mmoe", "experts": 4, "expert_hidden": [64]},
        "heads": {"kind": "towers", "hidden": [32]},
    }
    model = build_model(schema, ModelConfig.parse(tree, where="benchmark"), seed=0)
    write_bundle(model, fit(schema, [rows]), root)
    return Ranker.load(root, limits=Limits(max_candidates=rows.num_rows))


def ways(ranker: Ranker, rows: pa.Table) -> dict[str, Callable[[], Any]]:
    """The three ways to the scores of one user's rows, after a check that they agree."""
    columns, wire = ranker.wire.columns, ranker.wire
    user, candidates = rows.select(columns.user), rows.select(columns.candidate)
    request = wire.convert(request_tree(rows, columns))
    alone = [
        wire.convert(request_tree(rows.slice(row, 1), columns)) for row in range(rows.num_rows)
    ]
    own_N = np.arange(rows.num_rows)
    found = {
        "one request": lambda: ranker.rank(request).ranked.score,
        "N users in one call": lambda: ranker.score(user, candidates, user_of_row_N=own_N).score,
        "N requests": lambda: np.concatenate([ranker.rank(one).ranked.score for one in alone]),
    }
    expected = found["one request"]()
    for way in found.values():
        np.testing.assert_allclose(way(), expected, rtol=1e-5, atol=1e-5)
    return found


@dataclass(frozen=True)
class SequenceEncoder:
    """What a bundle's program makes of sequences before any candidate comes in, as a program of its own."""

    session: onnxruntime.InferenceSession

    @classmethod
    def of(cls, bundle: Bundle) -> "SequenceEncoder":
        model = onnx.load(bundle.published.path / "program" / "program.onnx")
        inputs = [
            item.name for item in model.graph.input if item.name.startswith(("tokens.", "valid."))
        ]
        made, met = set(inputs), set(CANDIDATE_INPUTS)
        handed_on: dict[str, None] = {}
        for node in model.graph.node:
            if met & set(node.input):
                met |= set(node.output)
                handed_on |= dict.fromkeys(name for name in node.input if name in made)
            elif made & set(node.input):
                made |= set(node.output)
        outputs = [name for name in handed_on if name not in inputs]
        part = Extractor(model).extract_model(inputs, outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return cls(onnxruntime.InferenceSession(part.SerializeToString(), options))

    def run(self, bundle: Bundle, user: pa.Table) -> Callable[[], Any]:
        """The encoding of some users' sequences, embeddings looked up before."""
        blocks = bundle.blocks(user, side="user", rows=user.num_rows)
        feeds: dict[str, Any] = {f"tokens.{name}": item for name, item in blocks.tokens.items()}
        feeds |= {f"valid.{name}": item for name, item in blocks.valid.items()}
        return lambda: self.session.run(None, feeds)


def medians(runs: dict[Run, Callable[[], Any]], rounds: int) -> dict[Run, float]:
    """Median CPU milliseconds of each, taken in turns."""
    taken: dict[Run, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            run()
            taken[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(times) for name, times in taken.items()}


def measured(rankers: dict[str, Ranker], rows: pa.Table, rounds: int) -> dict[Run, float]:
    """Median CPU milliseconds of every way by what is measured; the first way of each is what others compare with."""
    bundle = rankers["dtrn"].bundle
    encoder = SequenceEncoder.of(bundle)
    user = rows.select(rankers["dtrn"].wire.columns.user)
    runs = {
        (bottom, name): way
        for bottom, ranker in rankers.items()
        for name, way in ways(ranker, rows).items()
    }
    runs["dtrn's sequences", "one user"] = encoder.run(bundle, user.slice(0, 1))
    runs["dtrn's sequences", "N users"] = encoder.run(bundle, user)
    return medians(runs, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 100, 500])
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    schema = benchmark_schema(arguments.events)
    most = rows_of_one_user(schema, max(arguments.candidates), arguments.events)
    with tempfile.TemporaryDirectory() as directory:
        rankers = {
            bottom: ranker_of(bottom, schema, most, Path(directory) / bottom)
            for bottom in ("flat", "dtrn")
        }
        found = [
            measured(rankers, most.slice(0, count), arguments.rounds)
            for count in arguments.candidates
        ]
    print(" " * 42 + "".join(f"{f'N = {count}':>20}" for count in arguments.candidates))
    first: dict[str, str] = {}
    for what, way in found[0]:
        base = first.setdefault(what, way)
        cells = [(times[what, way], times[what, way] / times[what, base]) for times in found]
        print(
            f"{what:18}{way:24}"
            + "".join(f"{time_:11.2f} ({ratio:5.1f}x)" for time_, ratio in cells)
        )


if __name__ == "__main__":
    main()
