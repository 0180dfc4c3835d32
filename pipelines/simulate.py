"""An impression log with a known truth: the probabilities that drew the labels are written beside them.

A request shows a page of items. Its user may click each of them, like it, and look at it for a while (a long view). A
click opens the item: it is watched (`watch_minutes`, null without a click) and sometimes purchased. `oracle_<task>`
holds the true probability of each label, `oracle_purchase` being p(click) * p(purchase | click), and
`oracle_watch_minutes` the expected minutes given a click.

A day is written window by window, each a row group of at most `WINDOW_ROWS` rows. Memory holds one window, the
catalogue and the population, however many rows are asked for. Equal arguments write equal rows.
"""

import dataclasses
import datetime
import logging
import os
import shutil
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.progress import tracked
from pipelines.simulate_traffic import DAY_SECONDS, MICROSECONDS, Impressions, Traffic, Window
from pipelines.simulate_truth import (
    AGE_BANDS,
    BRANDS,
    CATEGORIES,
    CLICK,
    COUNTRIES,
    DEVICES,
    HISTORY,
    LIKE,
    LONG_VIEW,
    PURCHASE,
    TIERS,
    WATCH,
    Floats,
    Ints,
    Users,
    World,
    make_world,
)
from recsys.errors import ArtifactError, ConfigError
from recsys.schema import RESERVED_ROWS, TIMESTAMP

logger = logging.getLogger(__name__)

WINDOW_ROWS = 131_072
LONG_VIEW_SECONDS = 10.0
SETTINGS = ("schema.toml", "pipeline.toml", "experiment.toml")
_LEAST = {"rows": 1_000, "users": 10, "items": 100, "days": 3, "seed": 0}


@dataclass(frozen=True)
class SimulatedLog:
    """Where a simulated log lies and what it holds."""

    directory: Path
    days: tuple[str, ...]
    seed: int
    users: int
    items: int
    rows: int
    clicks: int
    likes: int
    purchases: int

    @property
    def schema_file(self) -> Path:
        return self.directory / "schema.toml"

    @property
    def pipeline_file(self) -> Path:
        return self.directory / "pipeline.toml"

    @property
    def experiment_file(self) -> Path:
        return self.directory / "experiment.toml"

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dataclasses.asdict(self) | {
            "directory": str(self.directory),
            "days": list(self.days),
        }

    def render(self) -> str:
        """The same as a few lines of text."""
        return "\n".join(
            [
                f"{self.rows:,} impressions in {self.directory / 'impressions'}, {self.days[0]} to {self.days[-1]}",
                f"  {self.users:,} users, {self.items:,} items",
                f"  {self.clicks:,} clicks, {self.likes:,} likes, {self.purchases:,} purchases",
                f"  beside it: items.parquet, {', '.join(SETTINGS)}",
            ]
        )


def simulate(
    out: Path,
    *,
    rows: int = 480_000,
    users: int = 3_000,
    items: int = 600,
    days: int = 14,
    start: str = "2026-10-01",
    seed: int = 0,
) -> SimulatedLog:
    """Write a log of `rows` impressions over `days` days and the files that train on it; returns what was written.

    `out` receives `impressions/<day>.parquet`, `items.parquet`, `schema.toml`, `pipeline.toml` and `experiment.toml`.
    The last day is meant for testing, the one before for validation. An `out` that exists must be an empty folder.

    Raises:
        ConfigError: a size is too small, `start` is no date, or `out` holds something.
        ArtifactError: `out` cannot be written.
    """
    first = _first_day(start)
    _check_sizes({"rows": rows, "users": users, "items": items, "days": days, "seed": seed})
    dates = tuple((first + datetime.timedelta(days=day)).isoformat() for day in range(days))
    with _whole_folder(out) as partial:
        writer = _LogWriter(make_world(users, items, seed=seed), seed=seed)
        writer.write_items(partial / "items.parquet")
        for day, date in enumerate(tracked(dates, total=days, what="simulate")):
            day_rows = rows * (day + 1) // days - rows * day // days
            writer.write_day(
                partial / "impressions" / f"{date}.parquet", day=day, date=date, rows=day_rows
            )
        _write_settings(partial, dates=dates, items=items)
    logger.info("log simulated path=%s rows=%d days=%d seed=%d", out, rows, days, seed)
    return SimulatedLog(
        directory=out,
        days=dates,
        seed=seed,
        users=users,
        items=items,
        rows=writer.rows,
        clicks=writer.clicks,
        likes=writer.likes,
        purchases=writer.purchases,
    )


class _LogWriter:
    """Writes windows of traffic as rows, and counts them."""

    def __init__(self, world: World, *, seed: int) -> None:
        self.rows = self.clicks = self.likes = self.purchases = 0
        self._world = world
        self._traffic = Traffic(world, seed=seed)
        self._user_id_U = pa.array([f"u{user:07d}" for user in range(len(world.users.activity_U))])

    def write_items(self, path: Path) -> None:
        """Write the catalogue, one row an item."""
        items = self._world.items
        columns = {
            "item_id": pa.array(items.item_id_V),
            "category": _names(CATEGORIES, items.category_V),
            "brand": _names(BRANDS, items.brand_V),
            # Not a number means unknown here, and null in the file.
            "price": pa.array(items.price_V, pa.float32(), from_pandas=True),
            "duration_seconds": pa.array(items.duration_seconds_V, pa.float32()),
        }
        pq.write_table(pa.table(columns), path, compression="zstd")

    def write_day(self, path: Path, *, day: int, date: str, rows: int) -> None:
        """Write a day, a row group a window."""
        midnight = int(np.datetime64(date, "us").astype(np.int64))
        windows = -(-rows // WINDOW_ROWS)
        writer: pq.ParquetWriter | None = None
        try:
            for index in range(windows):
                count = rows * (index + 1) // windows - rows * index // windows
                played = self._traffic.play(Window(day, index, windows, count))
                table = self._table(played, midnight)
                if writer is None:
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=WINDOW_ROWS)
        finally:
            if writer is not None:
                writer.close()
        logger.debug("day simulated path=%s rows=%d", path, rows)

    def _table(self, played: Impressions, midnight: int) -> pa.Table:
        rows = len(played.user_B)
        request = {
            "impression_id": pa.array(np.arange(self.rows, self.rows + rows)),
            "session_id": pa.array(played.session_B),
            "request_id": pa.array(played.request_B),
            "shown_at": pa.array(midnight + played.microsecond_B, TIMESTAMP),
            "hour": pa.array(played.microsecond_B * 24 // (DAY_SECONDS * MICROSECONDS), pa.int8()),
            "device": _names((*DEVICES, None), played.device_B),
            "user_id": self._user_id_U.take(pa.array(played.user_B)),
            "item_id": pa.array(self._world.items.item_id_V[played.item_B]),
            "position": pa.array(played.position_B, pa.int8()),
        }
        outcomes = _outcomes(played, self._world.items.duration_seconds_V[played.item_B] / 60.0)
        self.rows += rows
        self.clicks += outcomes["clicked"].true_count
        self.likes += outcomes["liked"].true_count
        self.purchases += outcomes["purchased"].true_count
        return pa.table(request | _profile(self._world.users, played.user_B) | outcomes)


def _profile(users: Users, user_B: Ints) -> dict[str, pa.Array]:
    """What the log says about each row's user."""
    named = _names(CATEGORIES, users.interests_U2[user_B].ravel())
    offsets = pa.array(np.arange(0, len(named) + 1, 2, dtype=np.int32))
    return {
        "country": _names(COUNTRIES, users.country_U[user_B]),
        "age_band": _names(AGE_BANDS, users.age_U[user_B]),
        "tier": _names(TIERS, users.tier_U[user_B]),
        "interests": pa.ListArray.from_arrays(offsets, named),
    }


def _outcomes(played: Impressions, duration_minutes_B: Floats) -> dict[str, pa.Array]:
    """What happened and what was to be expected."""
    chance_BT, drawn_BT = played.chance_BT, played.drawn_BT
    happened_BT = drawn_BT < chance_BT
    clicked_B = happened_BT[:, CLICK]
    expected_minutes_B = duration_minutes_B * chance_BT[:, WATCH]
    return {
        "clicked": pa.array(clicked_B),
        "liked": pa.array(happened_BT[:, LIKE]),
        "preview_seconds": pa.array(_preview_seconds(played), pa.float32()),
        "purchased": pa.array(clicked_B & happened_BT[:, PURCHASE]),
        "watch_minutes": pa.array(
            expected_minutes_B * played.watch_noise_B, pa.float32(), mask=~clicked_B
        ),
        "oracle_click": pa.array(chance_BT[:, CLICK]),
        "oracle_like": pa.array(chance_BT[:, LIKE]),
        "oracle_long_view": pa.array(chance_BT[:, LONG_VIEW]),
        "oracle_purchase": pa.array(chance_BT[:, CLICK] * chance_BT[:, PURCHASE]),
        "oracle_watch_minutes": pa.array(expected_minutes_B),
    }


def _preview_seconds(played: Impressions) -> Floats:
    """Seconds an item stayed in view: at least `LONG_VIEW_SECONDS` exactly where a long view was drawn.

    Below them the time is uniform, beyond them it has an exponential tail; both are read off the one draw.
    """
    chance_B, drawn_B = played.chance_BT[:, LONG_VIEW], played.drawn_BT[:, LONG_VIEW]
    # Never the logarithm of 0: the bound on the ratio matters only where the other branch is taken.
    long_B = LONG_VIEW_SECONDS * (1.0 - np.log1p(-np.minimum(drawn_B / chance_B, 1.0 - 1e-12)))
    short_B = LONG_VIEW_SECONDS * 0.999 * (1.0 - drawn_B) / (1.0 - chance_B)
    return np.where(drawn_B < chance_B, long_B, short_B)


def _names(names: tuple[str | None, ...], number_B: Ints) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(number_B))


def _first_day(start: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(start)
    except ValueError as error:
        raise ConfigError(
            f"simulate: start is {start!r}; write a date such as 2026-10-01"
        ) from error


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < _LEAST[name]:
            raise ConfigError(f"simulate: {name} is {size}; give at least {_LEAST[name]}")
    if sizes["rows"] < 100 * sizes["days"]:
        raise ConfigError(
            f"simulate: {sizes['rows']} rows are few for {sizes['days']} days; give at least 100 a day"
        )


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, so that what is called `out` is whole."""
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and no empty folder; remove it or name another")
    partial = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        (partial / "impressions").mkdir(parents=True)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise ArtifactError(
            f"{out}: cannot be written ({error.strerror}); check path, rights and free space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_settings(directory: Path, *, dates: tuple[str, ...], items: int) -> None:
    values = {
        "first_day": dates[0],
        "last_train_day": dates[-3],
        "validation_day": dates[-2],
        "test_day": dates[-1],
        "item_rows": items + RESERVED_ROWS,
        "category_rows": len(CATEGORIES) + RESERVED_ROWS,
        "brand_rows": len(BRANDS) + RESERVED_ROWS,
        "history": HISTORY,
        "long_view_seconds": LONG_VIEW_SECONDS,
    }
    templates = resources.files("pipelines") / "simulated"
    for name in SETTINGS:
        text = (templates / name).read_text(encoding="utf-8")
        (directory / name).write_text(string.Template(text).substitute(values), encoding="utf-8")
