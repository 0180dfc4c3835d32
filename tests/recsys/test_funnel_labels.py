"""Labels that break a funnel are counted and named when training starts."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.days import open_days
from recsys.experiment import load_experiment
from recsys.training.funnel_labels import FunnelBreak, funnel_breaks
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, raw_rows, small_data

DAYS = ("2026-01-01", "2026-01-02")
EXPERIMENT = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
batch_size = 64
[model]
embeddings = { backend = "plain" }
mixing = { kind = "shared_bottom", hidden = [8] }
[train]
threads = 1
steps = 1
"""


def broken(data: SmallData, rows: tuple[int, ...]) -> SmallData:
    """The data with purchases on some unclicked rows of the second day, counted from 0 among them."""
    raw = raw_rows(250, seed=1)
    unclicked = np.flatnonzero(raw.column("clicked").to_numpy() == 0)[list(rows)]
    purchased = raw.column("purchased").to_numpy().copy()
    purchased[unclicked] = 1
    at = raw.column_names.index("purchased")
    data.build(DAYS[1], raw.set_column(at, raw.field(at), pa.array(purchased)), first_key=1_000_000)
    return data


def breaks(data: SmallData, *, up_to_rows: int = 1_000_000) -> tuple[FunnelBreak, ...]:
    return funnel_breaks(
        open_days(data.directory, DAYS, encoder=data.encoder), up_to_rows=up_to_rows
    )


def test_labels_in_order_break_nothing(tmp_path: Path) -> None:
    assert breaks(small_data(tmp_path)) == ()


def test_a_purchase_without_its_click_is_counted_with_the_first_rows_key(tmp_path: Path) -> None:
    data = broken(small_data(tmp_path), (3, 100))
    raw = [raw_rows(300, seed=0), raw_rows(250, seed=1)]
    purchases = sum(int(table.column("purchased").to_numpy().sum()) for table in raw)
    unclicked = np.flatnonzero(raw[1].column("clicked").to_numpy() == 0)
    expected = FunnelBreak("purchase", "click", 2, purchases + 2, 1_000_000 + int(unclicked[3]))
    assert breaks(data) == (expected,)
    assert breaks(data, up_to_rows=300) == ()


def test_training_begins_with_one_warning_a_step_of_a_broken_funnel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken(small_data(tmp_path), (3, 100))
    file = tmp_path / "experiment.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        train(load_experiment(file), tmp_path / "run")
    (message,) = (text for text in caplog.messages if text.startswith("labels."))
    assert message.startswith(
        "labels.outside_funnel task=purchase given=click rows=2 of_positives="
    )
    assert "purchase = 1 where click = 0" in message
