"""Training speed of every row of a suite, as a ratio to Shared-Bottom: whole steps on one batch, rows taking turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch
from measured import versions, write_record
from steps import training_step
from towers_rows import ROWS, Suite, sized
from towers_runs import RECORDS, Place

from recsys.days import open_days
from recsys.feed import START, Feed
from recsys.models import ModelConfig
from recsys.models.precision import use_fast_float32
from recsys.run import fitted_encoder

BASE = "shared_bottom"
_ROUNDS = 9


def speed_record(suite: str) -> Path:
    """Where a suite's speeds are kept."""
    return RECORDS / "speed" / f"{suite}.json"


def measure_speed(place: Place, rows: Sequence[str]) -> None:
    """Write samples a CPU second of each row, and the median over rounds of its ratio to Shared-Bottom."""
    torch.set_num_threads(1)
    use_fast_float32(torch.device("cpu"))
    steps, batch_rows = _steps(place, rows)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(_ROUNDS + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            # The first round allocates.
            if number:
                seconds[name].append(time.process_time() - began)
    found = {
        name: {
            "samples_per_second": round(batch_rows / statistics.median(values)),
            "ratio": round(
                statistics.median(
                    base / own for base, own in zip(seconds[BASE], values, strict=True)
                ),
                3,
            ),
        }
        for name, values in seconds.items()
    }
    record = {"suite": place.suite.name, "batch_size": batch_rows, "versions": versions()}
    write_record(speed_record(place.suite.name), record | {"rows": found})


def _steps(place: Place, rows: Sequence[str]) -> tuple[dict[str, Callable[[], None]], int]:
    base = place.experiment()
    schema = base.load_schema()
    days = open_days(base.data.directory, base.data.train, encoder=fitted_encoder(base))
    feed = Feed(days, batch_size=base.data.batch_size, seed=0, window_rows=base.data.window_rows)
    with closing(feed.batches(START)) as batches:
        batch = next(batches).batch
    models = {name: _model(place.suite, name, place) for name in (BASE, *rows)}
    return {
        name: training_step(schema, batch, model, base.objective) for name, model in models.items()
    }, batch.rows


def _model(suite: Suite, name: str, place: Place) -> ModelConfig:
    base = place.experiment()
    item = sized(suite, "equal_parameters", ROWS[name], base, base.load_schema())
    return place.experiment(model=item.model).model
