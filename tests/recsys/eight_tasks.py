"""A published data set of eight tasks, from four labels in ten rows to three in a thousand, with a planted truth."""

import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.fitting import fit
from recsys.schema import Schema
from tests.recsys.small_data import SmallData

TASKS = ("click", "long_view", "like", "follow", "comment", "share", "save", "report")
# Each rate is half of the one before.
RATES = {task: 0.4 * 0.5**number for number, task in enumerate(TASKS)}
NUMBERS = ("price", "age", "freshness", "quality", "length", "distance")

_COLUMNS = "\n".join(
    [
        'user_id = "int64"',
        'item_id = "int64"',
        *(f'{name} = "float32"' for name in NUMBERS),
        *(f'{task}_label = "int8"' for task in TASKS),
    ]
)
_FEATURES = "\n".join(f'{name} = {{ kind = "numeric" }}' for name in NUMBERS)
_TASKS = "\n".join(f'{task} = {{ label = "{task}_label" }}' for task in TASKS)
SCHEMA_TOML = f"""
[columns]
{_COLUMNS}

[keys]
user = "user_id"
item = "item_id"

[tables]
user = {{ rows = 512, dim = 8 }}
item = {{ rows = 512, dim = 8 }}

[features]
user_id = {{ kind = "categorical", table = "user", side = "user" }}
item_id = {{ kind = "categorical", table = "item" }}
{_FEATURES}

[tasks]
{_TASKS}
"""


def eight_tasks(root: Path, *, train: int, test: int) -> SmallData:
    """Days of rows under `root` with their schema and encoder: `train`, and `test` of another draw."""
    schema = Schema.parse(tomllib.loads(SCHEMA_TOML), where="schema.toml")
    (root / "schema.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    days = {"train": _rows(train, schema, seed=1), "test": _rows(test, schema, seed=2)}
    encoder = fit(schema, iter([days["train"]]))
    encoder.save(root / "encoder")
    data = SmallData(root, encoder)
    for number, (day, rows) in enumerate(days.items()):
        data.build(day, rows, first_key=1_000_000 * number, row_group=4_096)
    return data


def _rows(count: int, schema: Schema, *, seed: int) -> pa.Table:
    """Rows whose labels share what users, items and numbers say, each task with a taste of its own."""
    random, truth = np.random.default_rng(seed), np.random.default_rng(7)
    user_taste, item_appeal = truth.normal(size=(300, 4)), truth.normal(size=(300, 4))
    user, item = random.integers(0, 300, (2, count))
    numbers = random.normal(size=(count, len(NUMBERS)))
    common = (user_taste[user] * item_appeal[item]).sum(axis=1) / 2 + np.abs(numbers[:, 0])
    columns: dict[str, object] = {"user_id": user, "item_id": item}
    columns |= {name: numbers[:, n].astype(np.float32) for n, name in enumerate(NUMBERS)}
    for task, rate in RATES.items():
        own = numbers @ truth.normal(size=len(NUMBERS)) / 2
        own += item_appeal[item] @ truth.normal(size=4) / 2
        score = common + own + random.logistic(size=count)
        columns[f"{task}_label"] = score > np.quantile(score, 1 - rate)
    raw = schema.raw_arrow(labels=True)
    return pa.table(
        {name: pa.array(columns[name]).cast(raw.field(name).type) for name in raw.names}
    )
