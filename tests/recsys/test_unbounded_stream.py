"""A stream of raw days with tables of unbounded ids: the maps, rows and weights of encoded days."""

import json
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from torch import Tensor

from recsys.batch import Batch, from_encoded
from recsys.days import Days, open_days, open_form
from recsys.feed import START, Feed, Position
from recsys.id_days import take_in
from recsys.idmap import empty_id_maps
from recsys.layout import training_columns
from recsys.raw_days import Raw
from recsys.run import load_run
from recsys.training.distributed.stream import Stream
from recsys.training.journal import read_records
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData
from tests.recsys.test_managed_ids import TABLES as MANAGED
from tests.recsys.test_skipped_steps import state_of
from tests.recsys.test_stream import by_key, chunks_of, local_ray, publish_raw, quiet
from tests.recsys.test_training import assert_bit_equal
from tests.recsys.test_unbounded import TABLES, columns_of, experiment_of, unbounded_data
from tests.recsys.test_workers import stopped_at

__all__ = ["local_ray"]
# Windows of one row group of two batches: there a stream cuts what the feed cuts, for any rows only about that.
ROWS = {"2026-01-01": 256, "2026-01-02": 128, "2026-01-03": 128}
TRAINED = ["2026-01-01", "2026-01-02"]
BATCH, WINDOW = 32, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return data_in(tmp_path_factory.mktemp("unbounded-stream"), TABLES)


def data_in(folder: Path, tables: dict[str, str]) -> SmallData:
    found = unbounded_data(folder, ROWS, tables=tables)
    publish_raw(found.root, {day: ROWS[day] for day in TRAINED})
    return found


def both(data: SmallData) -> tuple[Days, Days]:
    """The training days, encoded and raw, each read by the maps that it gives."""
    encoded = open_days(data.directory, TRAINED, encoder=data.encoder)
    raw = open_form(data.root / "raw", TRAINED, Raw(data.encoder))
    found = [
        days.with_id_maps(take_in(days, empty_id_maps(data.schema))[0]) for days in (encoded, raw)
    ]
    return found[0], found[1]


def test_raw_days_give_the_maps_of_encoded_days(data: SmallData) -> None:
    encoded, raw = both(data)
    assert encoded.id_maps is not None
    assert raw.id_maps is not None
    for table in ("user", "item"):
        assert columns_of(raw.id_maps[table]) == columns_of(encoded.id_maps[table])
    taken = [take_in(days, empty_id_maps(data.schema))[1] for days in (encoded, raw)]
    assert taken[0] == taken[1]


def test_a_stream_gives_each_row_with_the_ids_of_the_feed(data: SmallData) -> None:
    encoded, raw = both(data)
    expected = by_key([encoded.read(encoded.groups, training_columns(data.schema))])
    # Chunks of other sizes than batches, from windows of several row groups.
    stream = Stream(raw, batch_size=61, seed=3, window_rows=200)
    for epoch in range(2):
        assert by_key(chunks_of(stream, Position(epoch), 2)) == expected
    hashed = by_key([encoded.hashed(encoded.groups, training_columns(data.schema))])
    assert hashed != expected


def test_a_stream_of_one_process_gives_the_batches_of_the_feed(data: SmallData) -> None:
    encoded, raw = both(data)
    feed = Feed(encoded, batch_size=BATCH, seed=3, window_rows=WINDOW)
    stream = Stream(raw, batch_size=BATCH, seed=3, window_rows=WINDOW)
    with closing(feed.batches(Position(1))) as batches:
        expected = [item.batch for item in islice(batches, feed.batches_per_epoch)]
    found = [from_encoded(table, data.schema) for table in chunks_of(stream, Position(1), 1)]
    assert len(found) == len(expected) == 12
    assert not raw.unmapped
    for one, other in zip(found, expected, strict=True):
        assert_bit_equal(tensors_of(one), tensors_of(other))


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vars(batch).items() if tensor is not None}


def test_ids_that_steps_map_are_hashes_in_a_stream_as_in_the_feed(data: SmallData) -> None:
    encoded, raw = (days.with_id_maps({}) for days in both(data))
    assert raw.unmapped == {"user", "item"}
    with closing(Feed(encoded, batch_size=BATCH, seed=3, window_rows=WINDOW).batches()) as batches:
        expected = next(batches).batch
    stream = Stream(raw, batch_size=BATCH, seed=3, window_rows=WINDOW)
    found = from_encoded(chunks_of(stream, START, 1)[0], data.schema, unmapped=raw.unmapped)
    assert_bit_equal(tensors_of(found), tensors_of(expected))
    assert int(found.values_N.abs().max()) > 2**50


@pytest.mark.slow
@pytest.mark.ray
@quiet
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("tables", [TABLES, MANAGED], ids=["unbounded", "zch"])
def test_a_stream_trains_to_the_weights_and_maps_of_encoded_days(
    tables: dict[str, str], tmp_path: Path
) -> None:
    data = data_in(tmp_path, tables)
    settings = (f"data.batch_size={BATCH}", f"data.window_rows={WINDOW}", "train.epochs=2")
    stream = f"data.stream={json.dumps(str(data.root / 'raw'))}"
    train(experiment_of(data, *settings), tmp_path / "encoded")
    streamed = experiment_of(data, *settings, stream)
    train(streamed, tmp_path / "streamed")
    stopped = stopped_at(tmp_path / "streamed", 8, tmp_path / "stopped")
    train(streamed, stopped, resume=True)

    for run in (tmp_path / "streamed", stopped):
        assert_bit_equal(state_of(run), state_of(tmp_path / "encoded"))
        for table in ("user", "item"):
            maps = [load_run(path).id_maps[table] for path in (run, tmp_path / "encoded")]
            assert columns_of(maps[0]) == columns_of(maps[1])
    told = [
        [item for item in read_records(tmp_path / name / "metrics.jsonl") if item["kind"] == "ids"]
        for name in ("encoded", "streamed")
    ]
    assert told[0] == told[1] != []
