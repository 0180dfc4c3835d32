"""A schema with every kind of feature, those of several columns over user and item alike, and raw rows for it."""

import tomllib
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.encode import Encoder
from recsys.fitting import fit
from recsys.schema import Schema
from tests.recsys import small_data

_MORE = {
    "columns": """
interests = "list<string>"
interest_weights = "list<float32>"
category_ctr = "map<string,float32>"
item_seconds = "map<int64,float32>"
taste = "list<float32>"
query = "string"
budget = "float32"
category = "string"
tag_scores = "list<float32>"
picture = "list<float32>"
title = "string"
listed_at = "timestamp"
clicks = "int32"
views = "int32"
""",
    "tables": """
pair = { rows = 200, dim = 4, ids = "hash" }
word = { rows = 150, dim = 4, ids = "hash" }
letter = { rows = 60, dim = 4 }
""",
    "features": """
interests = { kind = "multi_valued", weights = "interest_weights", table = "tag", side = "user" }
scored_tags = { kind = "multi_valued", column = "tags", weights = "tag_scores", table = "tag", pooling = "sum" }
taste = { kind = "vector", dim = 2, side = "user" }
picture = { kind = "vector", dim = 3, normalize = "l2" }
user_category = { kind = "cross", columns = ["user_id", "category"], table = "pair", user_columns = ["user_id"] }
category_ctr = { kind = "lookup", key = "category", user_columns = ["category_ctr"] }
item_seconds = { kind = "lookup", key = "item_id", transform = "log1p", user_columns = ["item_seconds"] }
common_tags = { kind = "overlap", columns = ["interests", "tags"], measure = "jaccard", user_columns = ["interests"] }
value = { kind = "expression", expression = "log1p(clicks) / (views + 1) - budget / price", user_columns = ["budget"] }
hour = { kind = "date_part", part = "hour" }
listed = { kind = "date_part", column = "listed_at", part = "weekday", side = "candidate" }
query = { kind = "text", table = "letter", unit = "character", ngrams = [2, 3], side = "user" }
title = { kind = "text", table = "word", max_ids = 8 }
price_level = { kind = "bucket", column = "price", edges = [0.5, 1.0, 2.0], dim = 4 }
""",
}
_WORDS = ("red", "Green", "blue", "shoe", "shirt", "cap", "wool", "größe")


def toml() -> str:
    """The small schema with the columns, tables and features above beside its own."""
    text = small_data.SCHEMA_TOML
    for section, more in _MORE.items():
        text = text.replace(f"[{section}]\n", f"[{section}]{more}", 1)
    return text


def tree() -> dict[str, Any]:
    return tomllib.loads(toml())


@cache
def schema() -> Schema:
    return Schema.parse(tree(), where="schema.toml")


def rows(count: int, *, seed: int) -> pa.Table:
    """Raw rows with labels: maps with and without the row's key, weights of 0, nulls, empty lists and texts."""
    small = small_data.raw_rows(count, seed=seed)
    random = np.random.default_rng([seed, 1])

    def maybe(value: Any) -> Any:
        return None if random.random() < 0.1 else value

    def tags(of: Any) -> Any:
        return [f"t{tag}" for tag in random.choice(10, of, replace=False)]

    def weights(ids: Any) -> Any:
        return None if ids is None else [float(random.choice([0.0, 0.5, 2.0])) for _ in ids]

    def words() -> str:
        return " ".join(random.choice(_WORDS, random.integers(0, 6)))

    columns: dict[str, list[Any]] = {name: [] for name in tomllib.loads(_MORE["columns"])}
    for row in small.to_pylist():
        interests = maybe(tags(random.integers(0, 5)))
        categories = random.choice(6, random.integers(0, 5), replace=False)
        items = random.choice(100, random.integers(0, 60), replace=False)
        made = {
            "interests": interests,
            "interest_weights": weights(interests),
            "category_ctr": maybe(
                [(f"c{key}", maybe(float(random.random()))) for key in categories]
            ),
            "item_seconds": maybe([(int(key), float(random.gamma(2.0, 9.0))) for key in items]),
            "taste": maybe(random.normal(size=2).tolist()),
            "query": maybe(words()),
            "budget": maybe(float(random.gamma(2.0))),
            "category": maybe(f"c{random.integers(0, 6)}"),
            "tag_scores": weights(row["tags"]),
            "picture": maybe(random.normal(size=3).tolist()),
            "title": maybe(words()),
            "listed_at": maybe(row["shown_at"] - timedelta(hours=int(random.integers(0, 900)))),
            "clicks": maybe(int(random.integers(0, 50))),
            "views": maybe(int(random.integers(-1, 500))),
        }
        for name, value in made.items():
            columns[name].append(value)
    types = schema().raw_arrow(labels=True)
    found = dict(zip(small.column_names, small.columns, strict=True))
    found |= {name: pa.array(values, types.field(name).type) for name, values in columns.items()}
    return pa.table({name: found[name] for name in types.names}, schema=types)


@cache
def encoder() -> Encoder:
    return fit(schema(), [rows(400, seed=1)])
