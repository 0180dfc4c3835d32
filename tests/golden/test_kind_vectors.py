"""Golden ids of every kind of feature. A change here breaks every trained table, as in `test_encoding_vectors`."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from recsys.encode import Encoder, Moments
from recsys.hashing import combined, splitmix64
from recsys.schema import Schema
from recsys.vocabulary import Vocabulary

SCHEMA = {
    "columns": {
        "user": "string",
        "item": "int64",
        "tags": "list<string>",
        "scores": "list<float32>",
        "taste": "map<string,float32>",
        "price": "float32",
        "title": "string",
        "picture": "list<float32>",
        "at": "timestamp",
        "clicked": "bool",
    },
    "keys": {"time": "at"},
    "tables": {
        "tag": {"rows": 10},
        "pair": {"rows": 1_000_000, "seed": 3},
        "fitted_pair": {"rows": 10},
        "word": {"rows": 1_000_000},
        "letter": {"rows": 1_000_000},
    },
    "features": {
        "tags": {"kind": "multi_valued", "table": "tag", "weights": "scores"},
        "band": {"kind": "bucket", "column": "price", "edges": (1.0, 2.5)},
        "hour": {"kind": "date_part", "part": "hour", "utc_offset_hours": 5.5},
        "weekday": {"kind": "date_part", "part": "weekday"},
        "day": {"kind": "date_part", "part": "day_of_month", "utc_offset_hours": 5.5},
        "month": {"kind": "date_part", "part": "month", "utc_offset_hours": 5.5},
        "week_hour": {"kind": "date_part", "part": "hour_of_week"},
        "picture": {"kind": "vector", "dim": 2, "normalize": "l2"},
        "pair": {"kind": "cross", "columns": ("user", "item"), "table": "pair"},
        "known": {"kind": "cross", "columns": ("item", "user"), "table": "fitted_pair"},
        "words": {"kind": "text", "column": "title", "table": "word"},
        "letters": {
            "kind": "text",
            "column": "title",
            "table": "letter",
            "unit": "character",
            "ngrams": (3,),
        },
        "taste": {"kind": "lookup", "key": "user"},
        "liked": {"kind": "overlap", "columns": ("tags", "user"), "measure": "share"},
        "value": {"kind": "expression", "expression": "log(price) * max(item, 2)"},
    },
    "tasks": {"click": {"label": "clicked"}},
}
RAW_ROWS = [
    {
        "user": "ann",
        "item": 7,
        "tags": ["new", "ann", None],
        "scores": [0.5, 2.0, 0.0],
        "taste": [("bob", 1.0), ("ann", 3.0)],
        "price": 2.5,
        "title": "Süße Kirschen / 2 kg",
        "picture": [3.0, -4.0],
        "at": datetime(2026, 1, 31, 20, 15, tzinfo=UTC),
    },
    {
        "user": "bob",
        "item": -1,
        "tags": [],
        "scores": [],
        "taste": [],
        "price": -1.0,
        "title": "?",
        "picture": [0.0, 0.0],
        "at": datetime(1969, 12, 31, 23, 59, tzinfo=UTC),
    },
    dict.fromkeys(("user", "item", "tags", "scores", "taste", "price", "title", "picture", "at")),
]


def encoder() -> Encoder:
    (pair,) = combined([splitmix64(np.array([7])), np.array([0x482C89484CBD62C8], np.uint64)]).view(
        np.int64
    )
    return Encoder(
        Schema.parse(SCHEMA, where="schema.toml"),
        {"taste": Moments(1.0, 4.0), "liked": Moments(0.5, 0.5), "value": Moments(0.0, 2.0)},
        {"band": np.array([1.0, 2.5])},
        {
            "tag": Vocabulary(pa.array(["ann", "red"])),
            "fitted_pair": Vocabulary(pa.array([5, int(pair)])),
        },
    )


def test_encoded_rows_of_every_kind_are_pinned() -> None:
    made = encoder()
    raw = pa.Table.from_pylist(RAW_ROWS, schema=made.schema.raw_arrow(labels=False))

    assert made.encode_inputs(raw).to_pylist() == GOLDEN_ROWS
    assert made.digest == GOLDEN_DIGEST


GOLDEN_ROWS: list[dict[str, object]] = [
    {
        "tags": [1, 2, 0],
        "weights:tags": [0.5, 2.0, 0.0],
        "band": 4,
        "hour": 3,
        "weekday": 7,
        "day": 2,
        "month": 3,
        "week_hour": 142,
        "pair": 465418,
        "known": 3,
        "words": [637463, 614129, 931265, 819094, 742513, 812032, 61271],
        "letters": [
            982763,
            229944,
            822578,
            698418,
            115974,
            20371,
            825201,
            963569,
            27490,
            643748,
            437697,
            19037,
            427229,
            6133,
            964352,
            985399,
        ],
        "dense:picture": [0.6000000238418579, -0.800000011920929],
        "dense:taste": 0.5,
        "dense:liked": 0.0,
        "dense:value": 3.207017660140991,
    },
    {
        "tags": [],
        "weights:tags": [],
        "band": 2,
        "hour": 7,
        "weekday": 4,
        "day": 2,
        "month": 2,
        "week_hour": 73,
        "pair": 946098,
        "known": 1,
        "words": [],
        "letters": [],
        "dense:picture": [0.0, 0.0],
        "dense:taste": 0.0,
        "dense:liked": 0.0,
        "dense:value": 0.0,
    },
    {
        "tags": [],
        "weights:tags": [],
        "band": 0,
        "hour": 0,
        "weekday": 0,
        "day": 0,
        "month": 0,
        "week_hour": 0,
        "pair": 0,
        "known": 0,
        "words": [],
        "letters": [],
        "dense:picture": [0.0, 0.0],
        "dense:taste": 0.0,
        "dense:liked": 0.0,
        "dense:value": 0.0,
    },
]
GOLDEN_DIGEST = "badf5b008ddf40a1a3e5469071b1c3f0bee51ef8a17831a0657829c913da3398"
