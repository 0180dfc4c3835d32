"""A small published data set with a planted truth, for tests of the feed, training and evaluation."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.encode import Encoder
from recsys.fitting import fit
from recsys.publish import Published, publication
from recsys.schema import Schema

SCHEMA_TOML = """
[columns]
user_id = "string"
item_id = "int64"
tags = "list<string>"
price = "float32"
shown_at = "timestamp"
seen_item = "list<int64>"
seen_age = "list<timestamp>"
clicked = "int8"
purchased = "int8"
seconds = "float32"
clicked_oracle = "float32"
purchased_oracle = "float32"
importance = "float32"

[keys]
user = "user_id"
item = "item_id"
time = "shown_at"
sample_weight = "importance"
keep = ["clicked_oracle", "purchased_oracle"]

[tables]
user = { rows = 64, dim = 4 }
item = { rows = 128, dim = 4 }
tag = { rows = 16, dim = 4 }

[features]
user_id = { kind = "categorical", table = "user", side = "user" }
item_id = { kind = "categorical", table = "item" }
tags = { kind = "multi_valued", table = "tag" }
price = { kind = "numeric", transform = "log1p" }
price_bucket = { kind = "bucket", column = "price", buckets = 4, dim = 4 }

[sequences.seen]
item = { table = "item" }
age = { kind = "time_gap", buckets = 8, dim = 4 }
max_length = 5
target = { item = "item_id" }

[tasks]
click = { label = "clicked" }
purchase = { label = "purchased", given = "click" }
watch = { label = "seconds", kind = "regression", mask = "clicked" }
"""

START = datetime(2026, 1, 1, tzinfo=UTC)


def raw_rows(count: int, *, seed: int) -> pa.Table:
    """Rows whose click depends on user, item and price, and whose purchase depends on the item."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(7)
    user_taste, item_appeal = truth.normal(size=40), truth.normal(size=100)
    user, item = random.integers(0, 40, count), random.integers(0, 100, count)
    price = np.exp(random.normal(size=count)).astype(np.float32)
    p_click = _sigmoid(user_taste[user] + 1.5 * item_appeal[item] - 0.5 * np.log(price))
    p_purchase = _sigmoid(item_appeal[item] - 0.5)
    clicked = random.random(count) < p_click
    purchased = clicked & (random.random(count) < p_purchase)
    shown = [
        START + timedelta(minutes=int(minute))
        for minute in np.sort(random.integers(0, 10_000, count))
    ]
    lengths = random.integers(0, 8, count)
    tags = [
        None if row % 17 == 0 else [f"t{tag}" for tag in random.integers(0, 10, row % 4)]
        for row in range(count)
    ]
    columns = {
        "user_id": [f"u{number}" for number in user],
        "item_id": item,
        "tags": tags,
        "price": price,
        "shown_at": shown,
        "seen_item": [random.integers(0, 100, length).tolist() for length in lengths],
        "seen_age": [
            [at - timedelta(hours=float(hours)) for hours in random.random(length) * 100]
            for at, length in zip(shown, lengths, strict=True)
        ],
        "clicked": clicked.astype(np.int8),
        "purchased": purchased.astype(np.int8),
        "seconds": (5.0 + item_appeal[item] + 0.1 * random.normal(size=count)).astype(np.float32),
        "clicked_oracle": p_click.astype(np.float32),
        "purchased_oracle": (p_click * p_purchase).astype(np.float32),
        "importance": random.choice([0.5, 1.0, 2.0], count).astype(np.float32),
    }
    schema = small_schema().raw_arrow(labels=True)
    return pa.table(
        {name: pa.array(columns[name], schema.field(name).type) for name in schema.names}
    )


def small_schema() -> Schema:
    return Schema.parse(tomllib.loads(SCHEMA_TOML), where="schema.toml")


@dataclass(frozen=True)
class SmallData:
    """Where the data set lies: `<root>/schema.toml`, `<root>/encoder`, `<root>/data/<day>`."""

    root: Path
    encoder: Encoder

    @property
    def directory(self) -> Path:
        return self.root / "data"

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    def build(self, day: str, raw: pa.Table, *, first_key: int, row_group: int = 64) -> Published:
        """Encode and publish a day in two files."""
        encoded = self.encoder.encode(raw, row_key=np.arange(first_key, first_key + raw.num_rows))
        return self.publish(day, encoded, row_group=row_group)

    def publish(
        self,
        day: str,
        encoded: pa.Table,
        *,
        row_group: int = 64,
        claimed_rows: int | None = None,
        rules_digest: str = "rules",
        labels_digest: str = "labels",
    ) -> Published:
        metadata = {
            "day": day,
            "rows": encoded.num_rows if claimed_rows is None else claimed_rows,
            "data_digest": self.schema.data_digest,
            "encoder_digest": self.encoder.digest,
            "rules_digest": rules_digest,
            "labels_digest": labels_digest,
        }
        half = encoded.num_rows // 2
        with publication(self.directory / day, kind="day", metadata=metadata) as draft:
            for part, table in enumerate((encoded.slice(0, half), encoded.slice(half))):
                pq.write_table(
                    table,
                    draft.path / f"part-{part:05}.parquet",
                    row_group_size=row_group,
                    compression="zstd",
                    write_page_checksum=True,
                )
        assert draft.published is not None
        return draft.published


def small_data(root: Path, *, rows: dict[str, int] | None = None) -> SmallData:
    """Three days of rows by default, published under a directory with their schema and encoder."""
    rows = rows or {"2026-01-01": 300, "2026-01-02": 250, "2026-01-03": 200}
    raw = {day: raw_rows(count, seed=seed) for seed, (day, count) in enumerate(rows.items())}
    (root / "schema.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    encoder = fit(small_schema(), _first(raw))
    encoder.save(root / "encoder")
    data = SmallData(root, encoder)
    for number, (day, table) in enumerate(raw.items()):
        data.build(day, table, first_key=1_000_000 * number)
    return data


def _first(raw: dict[str, pa.Table]) -> Iterator[pa.Table]:
    yield next(iter(raw.values()))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
