"""Days to batches: order, positions, ranks, and what is refused."""

import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.days import open_days
from recsys.encode import Encoder
from recsys.errors import ArtifactError, DataError
from recsys.feed import Feed, PlacedBatch, Position, in_order, prefetched
from recsys.schema import Schema
from tests.recsys.small_data import SCHEMA_TOML, SmallData, raw_rows, small_data

DAYS = ("2026-01-01", "2026-01-02")
ROWS = 550


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return small_data(tmp_path_factory.mktemp("data"))


def feed_of(data: SmallData, **settings: int) -> Feed:
    days = open_days(data.directory, DAYS, encoder=data.encoder)
    return Feed(days, **({"batch_size": 100, "seed": 3, "window_rows": 200} | settings))


def epoch_of(feed: Feed, epoch: int = 0, batch: int = 0) -> list[PlacedBatch]:
    batches = feed.batches(Position(epoch, batch))
    found = list(islice(batches, feed.batches_per_epoch - batch))
    batches.close()
    return found


def keys_of(batches: list[PlacedBatch]) -> list[int]:
    return [key for item in batches for key in item.batch.row_key_B.tolist()]


def same(first: PlacedBatch, second: PlacedBatch) -> bool:
    pairs = [
        (getattr(first.batch, name), getattr(second.batch, name)) for name in vars(first.batch)
    ]
    return first.position == second.position and all(
        one is other is None or torch.equal(one, other) for one, other in pairs
    )


@pytest.mark.parametrize("window_rows", [1, 64, 200, 10_000])
def test_an_epoch_holds_every_row_once_in_full_batches(data: SmallData, window_rows: int) -> None:
    batches = epoch_of(feed_of(data, window_rows=window_rows))
    assert [item.batch.rows for item in batches] == [100] * 5 + [50]
    expected = {*range(300), *range(1_000_000, 1_000_250)}
    assert Counter(keys_of(batches)) == Counter(expected)


def test_epochs_and_seeds_have_orders_of_their_own_and_repeat_exactly(data: SmallData) -> None:
    first = epoch_of(feed_of(data))
    assert keys_of(first) == keys_of(epoch_of(feed_of(data)))
    assert keys_of(first) != keys_of(epoch_of(feed_of(data), epoch=1))
    assert keys_of(first) != keys_of(epoch_of(feed_of(data, seed=4)))


def test_small_data_is_shuffled_as_a_whole(data: SmallData) -> None:
    keys = keys_of(epoch_of(feed_of(data, window_rows=10_000)))[:100]
    assert 20 < sum(key >= 1_000_000 for key in keys) < 80


@pytest.mark.parametrize("window_rows", [64, 200, 10_000])
def test_a_feed_resumed_at_a_position_gives_the_batches_that_were_left(
    data: SmallData, window_rows: int
) -> None:
    feed = feed_of(data, window_rows=window_rows)
    whole = epoch_of(feed) + epoch_of(feed, 1)
    for start in range(len(whole)):
        position = whole[start].position
        batches = feed.batches(position)
        rest = list(islice(batches, len(whole) - start))
        batches.close()
        assert all(same(one, other) for one, other in zip(whole[start:], rest, strict=True))


def test_position_after_walks_through_epochs(data: SmallData) -> None:
    feed = feed_of(data)
    assert feed.after(Position(0, 4)) == Position(0, 5)
    assert feed.after(Position(0, 5)) == Position(1, 0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows_of_every_batch(data: SmallData, world_size: int) -> None:
    alone = epoch_of(feed_of(data))
    shared = [
        epoch_of(feed_of(data, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    for number, batch in enumerate(alone):
        parts = [ranked[number].batch.row_key_B.tolist() for ranked in shared]
        assert sorted(key for part in parts for key in part) == sorted(
            batch.batch.row_key_B.tolist()
        )
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_in_order_gives_all_rows_as_stored_with_their_kept_columns(data: SmallData) -> None:
    days = open_days(data.directory, DAYS, encoder=data.encoder)
    batches = list(in_order(days, batch_size=40))
    keys = [key for item in batches for key in item.batch.row_key_B.tolist()]
    assert keys == [*range(300), *range(1_000_000, 1_000_250)]
    oracle = [
        value
        for item in batches
        for value in item.encoded.column("keep:clicked_oracle").to_pylist()
    ]
    raw = [raw_rows(300, seed=0), raw_rows(250, seed=1)]
    assert oracle == [
        value for table in raw for value in table.column("clicked_oracle").to_pylist()
    ]


# 18 batches: no rank is left without, some are, most are.
@pytest.mark.parametrize("world_size", [2, 4, 35])
def test_in_order_ranks_take_as_many_turns(data: SmallData, world_size: int) -> None:
    days = open_days(data.directory, DAYS, encoder=data.encoder)
    alone = [item.batch.row_key_B.tolist() for item in in_order(days, batch_size=40)]
    ranked = [
        list(in_order(days, batch_size=40, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    turns = [item.batch.row_key_B.tolist() for turn in zip(*ranked, strict=True) for item in turn]
    assert turns == alone + [[]] * (-len(alone) % world_size)


def test_a_batch_tells_its_rows_over_all_ranks(data: SmallData) -> None:
    feed = feed_of(data, rank=1, world_size=3)
    with closing(feed.batches()) as batches:
        for placed in islice(batches, feed.batches_per_epoch + 1):
            rows = feed.rows(placed.position)
            assert placed.batch.rows == len(range(rows)[1::3])
    assert sum(feed.rows(Position(0, b)) for b in range(feed.batches_per_epoch)) == ROWS


def test_builds_name_the_versions_read_and_can_be_pinned(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 120})
    before = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    data.build("2026-01-01", raw_rows(90, seed=9), first_key=0)
    after = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    assert (before.builds[0].rows, after.builds[0].rows) == (120, 90)
    versions = {build.day: build.version for build in before.builds}
    pinned = open_days(data.directory, ["2026-01-01"], encoder=data.encoder, versions=versions)
    assert pinned.builds == before.builds


def test_a_day_of_another_schema_or_encoder_is_refused(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 60})
    other_schema = Schema.parse(
        tomllib.loads(SCHEMA_TOML.replace("rows = 16", "rows = 17")), where="other"
    )
    with pytest.raises(ArtifactError, match="encoded for another schema"):
        open_days(
            data.directory, ["2026-01-01"], encoder=replace(data.encoder, schema=other_schema)
        )
    stranger = Encoder(
        data.schema,
        data.encoder.moments,
        {"price_bucket": data.encoder.edges["price_bucket"] + 1},
        {},
    )
    with pytest.raises(ArtifactError, match="does not extend"):
        open_days(data.directory, ["2026-01-01"], encoder=stranger)


def test_days_built_by_different_rules_are_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 20, "2026-01-02": 20, "2026-01-03": 20})
    names = ["2026-01-01", "2026-01-02", "2026-01-03"]
    open_days(data.directory, names, encoder=data.encoder)
    assert not caplog.records
    encoded = data.encoder.encode(raw_rows(10, seed=9))
    data.publish("2026-01-02", encoded, rules_digest="other rules")

    assert open_days(data.directory, names, encoder=data.encoder).rows == 50
    assert "rules_differ" in caplog.text
    assert "days=2026-01-01,2026-01-02 " in caplog.text


def test_days_labelled_by_different_rules_do_not_mix(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 20, "2026-01-02": 20})
    data.publish("2026-01-02", data.encoder.encode(raw_rows(10, seed=9)), labels_digest="other")

    with pytest.raises(
        ArtifactError, match=r"2026-01-02.*labelled by other rules.*than 2026-01-01 was"
    ):
        open_days(data.directory, ["2026-01-01", "2026-01-02"], encoder=data.encoder)
    with pytest.raises(ArtifactError, match="than the days trained on were"):
        open_days(data.directory, ["2026-01-02"], encoder=data.encoder, labels_digest="labels")


def test_a_missing_day_is_refused_by_name(data: SmallData) -> None:
    with pytest.raises(ArtifactError, match=r"no day or split '2026-02-01'.*it holds .* to "):
        open_days(data.directory, ["2026-02-01"], encoder=data.encoder)
    with pytest.raises(ArtifactError, match="no such day; check the path"):
        open_days(data.directory / "nowhere", ["2026-02-01"], encoder=data.encoder)


def test_days_without_rows_are_refused(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 60})
    data.build("empty", raw_rows(60, seed=1).slice(0, 0), first_key=0)
    with pytest.raises(DataError, match="empty hold no rows"):
        open_days(data.directory, ["empty"], encoder=data.encoder)
    assert open_days(data.directory, ["empty", "2026-01-01"], encoder=data.encoder).rows == 60


def test_a_flipped_byte_is_a_data_error_that_names_the_file(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 300})
    days = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    file = sorted(data.directory.rglob("part-*.parquet"))[0]
    content = bytearray(file.read_bytes())
    content[200] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"part-00000\.parquet: cannot be read"):
        list(in_order(days, batch_size=50))
    with pytest.raises(DataError, match=r"part-00000\.parquet: cannot be read"):
        epoch_of(Feed(days, batch_size=50, seed=0))


def test_a_file_that_is_no_parquet_is_a_data_error(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 60})
    file = sorted(data.directory.rglob("part-*.parquet"))[0]
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(DataError, match=r"part-00000\.parquet: not a readable Parquet file"):
        open_days(data.directory, ["2026-01-01"], encoder=data.encoder)


def test_rows_other_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 60})
    data.publish("more", data.encoder.encode(raw_rows(60, seed=0)), claimed_rows=61)
    with pytest.raises(DataError, match="holds 60 rows, its manifest says 61"):
        open_days(data.directory, ["more"], encoder=data.encoder)


def test_a_day_without_a_column_or_with_another_type_is_refused(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 60})
    encoded = data.encoder.encode(raw_rows(60, seed=0))
    data.publish("bare", encoded.drop_columns(["label:click"]))
    with pytest.raises(DataError, match="column 'label:click' is missing"):
        open_days(data.directory, ["bare"], encoder=data.encoder)
    position = encoded.column_names.index("weight")
    data.publish(
        "odd", encoded.set_column(position, "weight", encoded.column("weight").cast(pa.float64()))
    )
    with pytest.raises(DataError, match="column 'weight' is double, the schema says float"):
        open_days(data.directory, ["odd"], encoder=data.encoder)


def test_label_means_are_weighted_and_over_observed_rows(data: SmallData) -> None:
    raw = raw_rows(300, seed=0)
    weights, clicked = raw.column("importance").to_numpy(), raw.column("clicked").to_numpy()
    seconds = raw.column("seconds").to_numpy()
    means = open_days(data.directory, DAYS[:1], encoder=data.encoder).label_means()
    assert means["click"] == pytest.approx(np.average(clicked, weights=weights))
    assert means["watch"] == pytest.approx(np.average(seconds, weights=weights * clicked))


def test_closing_an_iterator_ends_its_thread(data: SmallData) -> None:
    batches = feed_of(data).batches()
    next(batches)
    assert feed_threads() == 1
    batches.close()
    assert feed_threads() == 0


def test_an_error_in_the_thread_reaches_the_consumer_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise DataError("broken")

    items = prefetched(failing())
    assert next(items) == 1
    with pytest.raises(DataError, match="broken"):
        next(items)
    assert feed_threads() == 0


def feed_threads() -> int:
    return sum(thread.name == "recsys-feed" for thread in threading.enumerate())
