"""Bundles of untrained models for tests, exported once a process.

`feed` has every side and sequence, `people` no user, `kinds` every kind of feature.
"""

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys.encode import Encoder
from recsys.export import write_bundle
from recsys.fitting import fit
from recsys.models import ModelConfig, RankingModel, build_model
from recsys.schema import Schema
from tests import kinds, samples

MODEL = ModelConfig.parse(
    {
        "embeddings": {"backend": "plain"},
        "mixing": {"kind": "mmoe", "experts": 2, "expert_hidden": [8]},
        "heads": {"kind": "towers", "hidden": [4]},
    },
    where="tests",
)
COLUMNLESS_USER = """
[columns]
age = "int32"
job = "string"
hours = "float64"
member = "bool"
rich = "int8"
[tables]
job = { rows = 20, dim = 4, ids = "hash" }
member = { rows = 5, dim = 4 }
[features]
age = { kind = "numeric" }
job = { kind = "categorical", table = "job" }
hours = { kind = "bucket", buckets = 4, dim = 4 }
member = { kind = "categorical", table = "member" }
[tasks]
rich = { label = "rich" }
"""


def full_schema() -> Schema:
    """Every kind of feature on every side, a fixed one, a sequence with time gaps, a funnel and a regression."""
    tree: dict[str, Any] = samples.tree()
    tree["columns"] |= {
        "hour": "int8",
        "likes": "list<int64>",
        "member": "bool",
        "watched": "float32",
    }
    tree["tables"]["user"]["rows"] = 500
    tree["tables"]["item"]["rows"] = 3000
    tree["tables"]["flag"] = {"rows": 4, "dim": 4}
    tree["features"] |= {
        "hour": {"kind": "numeric", "side": "context"},
        "likes": {"kind": "multi_valued", "table": "item", "side": "user", "pooling": "sum"},
        "member": {"kind": "categorical", "table": "flag", "side": "user"},
    }
    tree["tasks"]["watch"] = {"label": "watched", "kind": "regression"}
    return samples.parse(tree)


def full_rows(count: int, *, seed: int) -> pa.Table:
    """Raw rows of `full_schema`, labels included."""
    random = np.random.default_rng(seed)
    rows = samples.rows(count, seed)
    likes = [random.integers(0, 50, random.integers(0, 4)).tolist() for _ in range(count)]
    likes[0] = None
    columns = {name: rows.column(name) for name in rows.column_names} | {
        "hour": random.integers(0, 24, count).astype(np.int8),
        "likes": pa.array(likes, pa.list_(pa.int64())),
        "member": pa.array(random.random(count) < 0.5, mask=random.random(count) < 0.2),
        "watched": random.gamma(2.0, 30.0, count).astype(np.float32),
    }
    return pa.table(columns)


def trembling(model: RankingModel, *, seed: int, deviation: float = 0.5) -> RankingModel:
    """The model with large random weights, so that a wrong input shows in its scores.

    Under dtrn a deviation of 0.5 makes attention so sharp that float32 itself is off by more than 1e-5; at 0.35, by
    less than 1e-6.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (*model.program.parameters(), *model.embeddings.table_weights().values()):
            weight.normal_(std=deviation, generator=generator)
    return model


@cache
def full_encoder() -> Encoder:
    return fit(full_schema(), [full_rows(400, seed=1)])


@cache
def full_model() -> RankingModel:
    return trembling(build_model(full_schema(), MODEL, seed=0), seed=0)


@cache
def full_bundle() -> Path:
    """Root of a published bundle named `feed`."""
    encoder, rows = full_encoder(), full_rows(300, seed=2)
    validation = encoder.encode(rows)
    root = _directory() / "feed"
    write_bundle(
        full_model(), encoder, root, name="feed", rows=rows.slice(0, 32), validation=validation
    )
    return root


@cache
def columnless_user_bundle() -> Path:
    """Root of a published bundle named `people`: all features are the candidates', one task."""
    import tomllib

    schema = Schema.parse(tomllib.loads(COLUMNLESS_USER), where="schema.toml")
    random = np.random.default_rng(0)
    rows = pa.table(
        {
            "age": random.integers(18, 90, 200).astype(np.int32),
            "job": random.choice(["clerk", "farmer", "nurse"], 200),
            "hours": random.random(200) * 60,
            "member": random.random(200) < 0.5,
            "rich": (random.random(200) < 0.3).astype(np.int8),
        }
    )
    model = trembling(build_model(schema, MODEL, seed=0), seed=1)
    root = _directory() / "people"
    write_bundle(model, fit(schema, [rows]), root, name="people")
    return root


@cache
def kinds_model() -> RankingModel:
    return trembling(build_model(kinds.schema(), MODEL, seed=0), seed=2)


@cache
def kinds_bundle() -> Path:
    """Root of a published bundle named `kinds`."""
    encoder, rows = kinds.encoder(), kinds.rows(200, seed=2)
    root, validation = _directory() / "kinds", encoder.encode(rows)
    write_bundle(
        kinds_model(), encoder, root, name="kinds", rows=rows.slice(0, 32), validation=validation
    )
    return root


@cache
def _directory() -> Path:
    directory = tempfile.TemporaryDirectory(prefix="recsys-test-bundles-")
    atexit.register(directory.cleanup)
    return Path(directory.name)
