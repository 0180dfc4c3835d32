"""Golden ids. A change here breaks every trained table: bump the encoder's format version before touching them."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from recsys.encode import Encoder, Moments
from recsys.hashing import splitmix64, xxh3
from recsys.vocabulary import Vocabulary
from tests.samples import parse


def test_splitmix64_of_a_seeded_stream_matches_the_published_sequence() -> None:
    # The reference generator's first outputs for seed 0 (its state before output k is k * gamma).
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = (np.arange(3, dtype=np.uint64) * gamma).view(np.int64)

    assert [hex(value) for value in splitmix64(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_xxh3_of_known_strings() -> None:
    assert [hex(value) for value in xxh3(pa.array(["", "a", "ü"]))] == [
        "0x2d06800538d394c2",
        "0xe6c632b61e964e1f",
        "0x5da81d070ce09f6e",
    ]
    assert xxh3(pa.array(["a"]), seed=1)[0] != xxh3(pa.array(["a"]))[0]


def test_encoded_rows_are_pinned() -> None:
    encoder = Encoder(
        parse(),
        {"price": Moments(1.5, 0.5), "position": Moments(5.0, 2.0)},
        {"price_bucket": np.array([1.0, 2.0, 8.0])},
        {"user": Vocabulary(pa.array(["u3", "u1"])), "tag": Vocabulary(pa.array(["t0", "t5"]))},
    )
    raw = pa.Table.from_pylist(RAW_ROWS, schema=parse().raw_arrow(labels=False))
    raw = raw.append_column("position", pa.array([1, 2, 3], pa.int32()))

    assert encoder.encode_inputs(raw).to_pylist() == GOLDEN_ROWS
    assert encoder.digest == GOLDEN_DIGEST


SHOWN = datetime(2026, 10, 3, 12, tzinfo=UTC)
RAW_ROWS = [
    {
        "user_id": "u1",
        "item_id": 7,
        "tags": ["t5", None, "new"],
        "price": 2.0,
        "shown_at": SHOWN,
        "clicks_item": [1, 2**40, -3],
        "clicks_age": [SHOWN - timedelta(days=400), SHOWN - timedelta(seconds=90), SHOWN],
    },
    {
        "user_id": "new",
        "item_id": 2**62,
        "tags": [],
        "price": 1e6,
        "shown_at": SHOWN,
        "clicks_item": [],
        "clicks_age": [],
    },
    {"user_id": None, "item_id": None, "tags": None, "price": None, "shown_at": SHOWN},
]
GOLDEN_ROWS: list[dict[str, object]] = [
    {
        "user_id": 3,
        "item_id": 340689,
        "tags": [3, 0, 1],
        "price_bucket": 4,
        "clicks.item": [385817, 209563, 399817],
        "clicks.age": [17, 8, 2],
        "dense:price": -0.8027754426002502,
        "dense:position": -2.0,
    },
    {
        "user_id": 1,
        "item_id": 392589,
        "tags": [],
        "price_bucket": 5,
        "clicks.item": [],
        "clicks.age": [],
        "dense:price": 5.0,
        "dense:position": -1.5,
    },
    {
        "user_id": 0,
        "item_id": 0,
        "tags": [],
        "price_bucket": 0,
        "clicks.item": [],
        "clicks.age": [],
        "dense:price": 0.0,
        "dense:position": -1.0,
    },
]
GOLDEN_DIGEST = "a770610f90f3c2720ad4f6f9216341f53e3b2e7373c94f42012b7f8511655f70"
