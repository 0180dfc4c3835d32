"""Raw files as people have them: a log of impressions with users, items, times and outcomes, and ways to write it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2026, 10, 1, tzinfo=UTC)


def log(rows: int = 3_000, *, days: int = 10, seed: int = 0) -> dict[str, list[Any]]:
    """Columns of an impression log: 100 users and 60 items, clicks that follow the item, purchases among the clicks."""
    draw = np.random.default_rng(seed)
    user, item = draw.integers(0, 100, rows), draw.integers(0, 60, rows)
    clicked = draw.random(rows) < 0.1 + 0.5 * (item % 7) / 6
    seconds = np.sort(draw.integers(0, days * 86_400, rows))
    return {
        "user_id": [f"u{number}" for number in user],
        "item_id": (item + 1_000).tolist(),
        "shown_at": [START + timedelta(seconds=int(second)) for second in seconds],
        "country": [("DE", "FR", "AT")[number % 3] for number in user],
        "price": [round(float(number) * 1.7 + 2, 2) for number in item],
        "device": [("phone", "desktop", None)[number] for number in draw.integers(0, 3, rows)],
        "clicked": clicked.astype(int).tolist(),
        "purchased": (clicked & (draw.random(rows) < 0.3)).astype(int).tolist(),
    }


def parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    return path


def csv_text(
    columns: Mapping[str, Sequence[Any]], *, delimiter: str = ",", header: bool = True
) -> str:
    """Rows as text; None is an empty field, a time is written to the second with its zone."""
    lines = [delimiter.join(columns)] if header else []
    for row in zip(*columns.values(), strict=True):
        lines.append(delimiter.join("" if value is None else str(value) for value in row))
    return "\n".join(lines) + "\n"


def csv(
    path: Path, columns: Mapping[str, Sequence[Any]], *, delimiter: str = ",", header: bool = True
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(csv_text(columns, delimiter=delimiter, header=header), encoding="utf-8")
    return path
