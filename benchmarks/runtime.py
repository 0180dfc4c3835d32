"""Which runtime a bundle's program should have: CPU time of one request of 500 candidates, one thread.

    python benchmarks/runtime.py [--candidates 500] [--rounds 15] [--json]

The model is MMoE with 8 experts [256, 128], two tasks with towers [64], 20 user-side and 20 candidate-side features of
width 16, random weights. Compared: the exported program in ONNX Runtime, and the same modules in torch eager with its
default float32 products and through oneDNN (`medium`), each in float32 on one thread. Every round runs each of them
in turn, so that a busy neighbour disturbs all alike; medians of process CPU time are printed, and ratios to ONNX
Runtime. Below, the same request from JSON to JSON through the ranker, by stage.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recsys.bundle import load_bundle, signature
from recsys.export import write_bundle
from recsys.fitting import fit
from recsys.models import ModelConfig, NamedProgram, RankingModel, build_model
from recsys.schema import Schema
from serving.ranker import Ranker

FEATURES_A_SIDE = 20
MODEL = {
    "embeddings": {"backend": "plain"},
    "mixing": {"kind": "mmoe", "experts": 8, "expert_hidden": [256, 128]},
    "heads": {"kind": "towers", "hidden": [64]},
}


def benchmark_schema() -> Schema:
    features = {
        f"{side}_{index}": {"kind": "categorical", "table": "ids", "side": side}
        for side in ("user", "candidate")
        for index in range(FEATURES_A_SIDE)
    }
    tree = {
        "columns": dict.fromkeys(features, "int64") | {"clicked": "bool", "bought": "bool"},
        "tables": {"ids": {"rows": 100_000, "dim": 16, "ids": "hash"}},
        "features": features,
        "tasks": {"click": {"label": "clicked"}, "buy": {"label": "bought", "given": "click"}},
    }
    return Schema.parse(tree, where="benchmark")


def benchmark_bundle(root: Path) -> RankingModel:
    schema = benchmark_schema()
    row = {name: [0] if dtype == "int64" else [True] for name, dtype in schema.columns.items()}
    encoder = fit(schema, [pa.table(row, schema=schema.raw_arrow(labels=True))])
    model = build_model(schema, ModelConfig.parse(MODEL, where="benchmark"), seed=0).eval()
    write_bundle(model, encoder, root)
    return model


def contenders(root: Path, model: RankingModel, candidates: int) -> dict[str, Callable[[], object]]:
    """The dense part of one request in each runtime."""
    bundle = load_bundle(root)
    sizes = {"U": 1, "N": candidates, "L": 1}
    random = np.random.default_rng(0)
    feeds = {}
    for name, entry in signature(bundle.schema)["inputs"].items():
        shape = [sizes.get(axis, axis) for axis in entry["axes"]]
        is_index = entry["dtype"] == "int64"
        feeds[name] = (
            np.zeros(shape, np.int64) if is_index else random.normal(size=shape).astype(np.float32)
        )
    tensors = [torch.from_numpy(array) for array in feeds.values()]
    named = NamedProgram(model.program).eval()

    def eager(precision: str) -> Callable[[], object]:
        def run() -> object:
            torch.set_float32_matmul_precision(precision)
            with torch.inference_mode():
                return named(*tensors)

        return run

    return {
        "onnxruntime float32": lambda: bundle.program.session.run(["logits_NT"], feeds),
        "torch eager, default": eager("highest"),
        "torch eager, oneDNN (medium)": eager("medium"),
    }


def cpu_milliseconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return 1000 * (time.process_time() - started)


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(cpu_milliseconds(run))
    return {name: statistics.median(times) for name, times in taken.items()}


def stages(root: Path, candidates: int, rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of one request from JSON to JSON, by stage."""
    ranker = Ranker.load(root)
    random = np.random.default_rng(0)
    columns = ranker.wire.columns
    body = json.dumps(
        {
            "user": {"features": {name: int(random.integers(2**40)) for name in columns.user}},
            "candidates": {
                "ids": [f"item-{index}" for index in range(candidates)],
                "features": {
                    name: random.integers(2**40, size=candidates).tolist()
                    for name in columns.candidate
                },
            },
        }
    ).encode()
    request = ranker.wire.decode(body)
    answer = ranker.rank(request)
    golden = ranker.bundle.golden
    user = golden.user.slice(0, 1)
    raw = golden.candidates.take(pa.array(np.arange(candidates) % golden.candidates.num_rows))
    return medians(
        {
            "decode JSON": lambda: ranker.wire.decode(body),
            "encode, gather": lambda: (
                ranker.bundle.blocks(user, side="user", rows=1),
                ranker.bundle.blocks(raw, side="candidate", rows=candidates),
            ),
            "rank (read, encode, gather, program, calibrate)": lambda: ranker.rank(request),
            "encode JSON": answer.json,
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = benchmark_bundle(root)
        runtimes = medians(contenders(root, model, arguments.candidates), arguments.rounds)
        by_stage = stages(root, arguments.candidates, arguments.rounds)
    if arguments.json:
        print(json.dumps({"program_ms": runtimes, "stages_ms": by_stage}))
        return
    base = runtimes["onnxruntime float32"]
    print(
        f"program, {arguments.candidates} candidates, CPU ms (median of {arguments.rounds} rounds), one thread"
    )
    for name, milliseconds in runtimes.items():
        print(f"  {name:32}{milliseconds:8.2f}   {milliseconds / base:5.2f} x")
    print("request from JSON to JSON, CPU ms")
    for name, milliseconds in by_stage.items():
        print(f"  {name:48}{milliseconds:8.2f}")


if __name__ == "__main__":
    main()
