"""One schema with every kind of input, and raw rows for it with nulls, unseen ids, empty and long lists."""

import copy
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.schema import Schema

TOML = """
[columns]
user_id = "string"
item_id = "int64"
tags = "list<string>"
price = "float32"
shown_at = "timestamp"
position = "int32"
clicks_item = "list<int64>"
clicks_age = "list<timestamp>"
clicked = "bool"
purchased = "bool"
country = "string"
[keys]
user = "user_id"
item = "item_id"
time = "shown_at"
keep = ["country"]
[tables]
user = { rows = 100_000 }
item = { rows = 1_000_000, dim = 8 }
tag = { rows = 100, dim = 4 }
[features]
user_id = { kind = "categorical", table = "user", side = "user" }
item_id = { kind = "categorical", table = "item" }
tags = { kind = "multi_valued", table = "tag" }
price = { kind = "numeric", transform = "log1p" }
price_bucket = { kind = "bucket", column = "price", buckets = 8, dim = 4 }
position = { kind = "numeric", serve = "fixed", value = 1 }
[sequences.clicks]
item = { table = "item" }
age = { kind = "time_gap", buckets = 16 }
max_length = 50
target = { item = "item_id" }
[tasks]
click = { label = "clicked" }
purchase = { label = "purchased", given = "click" }
"""


def tree() -> dict[str, Any]:
    return tomllib.loads(TOML)


def edited(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A tree with the entry at a dotted path replaced in place, or removed if the value is None."""
    *parents, last = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = copy.deepcopy(value)
    return tree


def parse(change: dict[str, Any] | None = None) -> Schema:
    return Schema.parse(change or tree(), where="schema.toml")


START = datetime(2026, 10, 1, tzinfo=UTC)


def rows(count: int = 200, seed: int = 0, schema: Schema | None = None) -> pa.Table:
    """Raw rows with nulls, unseen ids, empty and long lists."""
    rng = np.random.default_rng(seed)

    def maybe(value: Any) -> Any:
        return None if rng.random() < 0.1 else value

    records = []
    for _ in range(count):
        events = int(rng.integers(0, 70))
        shown = START + timedelta(seconds=int(rng.integers(0, 86_400)))
        records.append(
            {
                "user_id": maybe(f"u{rng.integers(0, 20)}"),
                "item_id": maybe(int(rng.integers(-5, 2**40))),
                "tags": maybe([maybe(f"t{rng.integers(0, 9)}") for _ in range(rng.integers(0, 4))]),
                "price": maybe(float(rng.lognormal(1, 2))),
                "shown_at": shown,
                "position": int(rng.integers(1, 10)),
                "clicks_item": maybe([int(rng.integers(0, 30)) for _ in range(events)]),
                "clicked": bool(rng.random() < 0.3),
                "purchased": maybe(bool(rng.random() < 0.1)),
                "country": "de",
            }
        )
        listed = records[-1]["clicks_item"]
        records[-1]["clicks_age"] = (
            None
            if listed is None
            else [shown - timedelta(seconds=7 * i) for i, _ in enumerate(listed)]
        )
    return pa.Table.from_pylist(records, schema=(schema or parse()).raw_arrow(labels=True))
