"""One schema with every kind of feature there is, and raw rows for it with nulls, empty lists and odd texts."""

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
genre = "string"
tags = "list<string>"
liked = "list<string>"
tag_scores = "list<float32>"
affinity = "map<string,float32>"
visits = "map<int64,float32>"
price = "float32"
clicks = "int32"
title = "string"
picture = "list<float32>"
shown_at = "timestamp"
clicked = "bool"
[keys]
user = "user_id"
time = "shown_at"
[tables]
user = { rows = 1000 }
genre = { rows = 50, dim = 4 }
tag = { rows = 100, dim = 4 }
user_genre = { rows = 500, dim = 4 }
user_item = { rows = 1_000_000, dim = 4, ids = "hash", seed = 7 }
word = { rows = 200, dim = 4, min_count = 1 }
letter = { rows = 5000, dim = 4, ids = "hash" }
[features]
user_id = { kind = "categorical", table = "user", side = "user" }
genre = { kind = "categorical", table = "genre" }
tags = { kind = "multi_valued", table = "tag", weights = "tag_scores" }
liked = { kind = "multi_valued", table = "tag", side = "user" }
price = { kind = "numeric", transform = "log1p" }
price_band = { kind = "bucket", column = "price", edges = [1, 2.5, 10], dim = 4 }
price_bucket = { kind = "bucket", column = "price", buckets = 4, dim = 4 }
hour = { kind = "date_part", part = "hour", utc_offset_hours = 5.5 }
weekday = { kind = "date_part", part = "weekday", utc_offset_hours = -8 }
day = { kind = "date_part", part = "day_of_month" }
month = { kind = "date_part", part = "month" }
hour_of_week = { kind = "date_part", part = "hour_of_week", dim = 8 }
picture = { kind = "vector", dim = 3, normalize = "l2" }
outline = { kind = "vector", column = "picture", dim = 3 }
words = { kind = "text", column = "title", table = "word", max_ids = 5 }
affinity = { kind = "lookup", key = "genre", user_columns = ["affinity"] }
visits = { kind = "lookup", key = "item_id", normalize = "none", user_columns = ["visits"] }
common = { kind = "overlap", columns = ["liked", "tags"], normalize = "none", user_columns = ["liked"] }
share = { kind = "overlap", columns = ["tags", "liked"], measure = "share", user_columns = ["liked"] }
likes_it = { kind = "overlap", columns = ["genre", "liked"], normalize = "none", user_columns = ["liked"] }
rate = { kind = "expression", expression = "log1p(clicks) / (price - 2)", clip = 3 }
cheap = { kind = "expression", expression = "if(price < 2, 1, clip(clicks, 0, 5))", normalize = "none" }
[features.user_genre]
kind = "cross"
columns = ["user_id", "genre"]
table = "user_genre"
user_columns = ["user_id"]
[features.user_item]
kind = "cross"
columns = ["user_id", "item_id", "genre"]
table = "user_item"
user_columns = ["user_id"]
[features.letters]
kind = "text"
column = "title"
table = "letter"
ngrams = [2, 3]
unit = "character"
lowercase = false
pooling = "sum"
[features.alike]
kind = "overlap"
columns = ["liked", "tags"]
measure = "jaccard"
normalize = "none"
user_columns = ["liked"]
[tasks]
click = { label = "clicked" }
"""

START = datetime(2026, 1, 30, tzinfo=UTC)
WORDS = ("Kaffee", "süß", "50", "CAFÉ", "к чаю", "b-side", "...", "日本", "a", "")
SEPARATORS = (" ", " / ", "", "\t", "—")
LABELS = ("red", "green", "blue", "drama", "war")


def tree() -> dict[str, Any]:
    return tomllib.loads(TOML)


def parse(change: dict[str, Any] | None = None) -> Schema:
    return Schema.parse(change or tree(), where="schema.toml")


def rows(count: int = 120, seed: int = 0) -> pa.Table:
    """Raw rows with nulls in every column but the label."""
    rng = np.random.default_rng(seed)

    def maybe(value: Any) -> Any:
        return None if rng.random() < 0.12 else value

    def some(most: int) -> list[str | None]:
        return [maybe(str(rng.choice(LABELS))) for _ in range(rng.integers(0, most))]

    records = []
    for _ in range(count):
        tags = maybe(some(5))
        records.append(
            {
                "user_id": maybe(f"u{rng.integers(0, 12)}"),
                "item_id": maybe(int(rng.integers(-3, 9))),
                "genre": maybe(str(rng.choice(LABELS))),
                "tags": tags,
                "liked": maybe(some(6)),
                "tag_scores": tags and [float(rng.integers(0, 4)) for _ in tags],
                "affinity": maybe(
                    [(str(rng.choice(LABELS)), float(rng.normal())) for _ in range(4)]
                ),
                "visits": maybe(
                    [(int(rng.integers(-3, 9)), maybe(float(rng.normal()))) for _ in range(4)]
                ),
                "price": maybe(float(rng.choice([0.5, 1.0, 2.0, 2.5, 3.0, 40.0]))),
                "clicks": maybe(int(rng.integers(-3, 9))),
                "title": maybe(
                    "".join(
                        str(rng.choice(WORDS)) + str(rng.choice(SEPARATORS))
                        for _ in range(rng.integers(0, 6))
                    )
                ),
                "picture": maybe([float(x) for x in rng.integers(-1, 2, 3)]),
                "shown_at": maybe(START + timedelta(minutes=int(rng.integers(0, 60 * 24 * 90)))),
                "clicked": bool(rng.random() < 0.3),
            }
        )
    return pa.Table.from_pylist(records, schema=parse().raw_arrow(labels=True))
