"""A stream of raw days gives the rows of the feed of encoded days, encoded alike, each once an epoch."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.days import Days, open_days, open_form
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.experiment import load_experiment
from recsys.feed import Position
from recsys.layout import training_columns
from recsys.publish import publication
from recsys.raw import RAW_DAY_KIND, RAW_ROW_KEY
from recsys.raw_days import Raw
from recsys.training.distributed.pieces import messages, table_of
from recsys.training.distributed.stream import Stream
from recsys.training.distributed.workers import check_stream
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, raw_rows, small_data
from tests.recsys.test_workers import EXPERIMENT, losses_of, state_of, stopped_at

DAYS = ["2026-01-01", "2026-01-02"]
ROWS = {"2026-01-01": 300, "2026-01-02": 250}


def publish_raw(folder: Path, rows: dict[str, int] = ROWS) -> Path:
    """The raw rows of `small_data`, published beside its encoded days."""
    for number, (day, count) in enumerate(rows.items()):
        raw = raw_rows(count, seed=number)
        keys = pa.array(np.arange(1_000_000 * number, 1_000_000 * number + count))
        metadata = {"rows": count, "rules_digest": "rules", "labels_digest": "labels"}
        root = folder / "raw" / day
        with publication(root, kind=RAW_DAY_KIND, metadata=metadata) as draft:
            table = raw.append_column(RAW_ROW_KEY, keys)
            pq.write_table(
                table,
                draft.path / "part-00000.parquet",
                row_group_size=64,
                write_page_checksum=True,
            )
    return folder / "raw"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("stream"))
    publish_raw(found.root)
    (found.root / "experiment.toml").write_text(EXPERIMENT, encoding="utf-8")
    return found


def raw_days(data: SmallData) -> Days:
    return open_form(data.root / "raw", DAYS, Raw(data.encoder))


def stream_of(data: SmallData, **settings: int) -> Stream:
    return Stream(raw_days(data), **({"batch_size": 61, "seed": 3, "window_rows": 200} | settings))


def rows_of_feed(data: SmallData) -> dict[int, dict[str, Any]]:
    """Every encoded value by row key, as the feed of encoded days reads them."""
    days = open_days(data.directory, DAYS, encoder=data.encoder)
    return by_key([days.read(days.groups, training_columns(data.schema))])


def by_key(tables: list[pa.Table]) -> dict[int, dict[str, Any]]:
    rows = [row for table in tables for row in table.to_pylist()]
    found = {row["row_key"]: row for row in rows}
    assert len(found) == len(rows), "a row came twice"
    return found


def chunks_of(stream: Stream, position: Position, ranks: int) -> list[pa.Table]:
    """What the tasks give, through the messages that carry it, in this process."""
    return [
        table_of(message)
        for piece in stream.pieces(position, ranks)
        for message in messages(piece, stream.days)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_each_row_is_in_one_chunk_and_each_rank_has_one_a_step(data: SmallData, seed: int) -> None:
    random = np.random.default_rng(seed)
    ranks = int(random.integers(1, 5))
    stream = stream_of(
        data,
        seed=seed,
        batch_size=int(random.integers(1, 300)) + ranks,
        window_rows=int(random.choice([1, 64, 100, 300, 10_000])),
    )
    for epoch in range(2):
        chunks = chunks_of(stream, Position(epoch), ranks)
        assert len(chunks) == ranks * stream.batches_per_epoch
        assert by_key(chunks) == rows_of_feed(data)


def test_rows_come_in_another_order_each_epoch(data: SmallData) -> None:
    stream = stream_of(data)
    first, again, second = (
        [key for table in chunks_of(stream, Position(epoch), 2) for key in table["row_key"]]
        for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != second


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_a_stream_goes_on_at_its_place_in_the_order_of_chunks(data: SmallData, batch: int) -> None:
    stream = stream_of(data)
    whole = chunks_of(stream, Position(0), 2)
    assert chunks_of(stream, Position(0, batch), 2) == whole[2 * batch :]


def test_a_batch_has_about_the_rows_of_the_others_and_an_epoch_all(data: SmallData) -> None:
    stream = stream_of(data, batch_size=100)
    counts = [stream.rows(Position(0, batch)) for batch in range(stream.batches_per_epoch)]
    assert sum(counts) == 550
    assert max(counts) - min(counts) <= 1


def test_a_row_that_cannot_be_encoded_is_named_by_whom_it_reaches(
    data: SmallData, tmp_path: Path
) -> None:
    raw = raw_rows(100, seed=0)
    price = raw.column("price").to_pylist()
    price[70] = float("nan")
    raw = raw.set_column(
        raw.schema.get_field_index("price"), "price", pa.array(price, pa.float32())
    )
    metadata = {"rows": 100, "rules_digest": "rules", "labels_digest": "labels"}
    with publication(tmp_path / "2026-01-01", kind=RAW_DAY_KIND, metadata=metadata) as draft:
        keyed = raw.append_column(RAW_ROW_KEY, pa.array(range(100)))
        pq.write_table(keyed, draft.path / "part-0.parquet", row_group_size=64)
    days = open_form(tmp_path, ["2026-01-01"], Raw(data.encoder))
    stream = Stream(days, batch_size=50, seed=0, window_rows=1000)
    found = [message for piece in stream.pieces(Position(), 2) for message in messages(piece, days)]
    assert len(found) == 4
    for message in found:
        with pytest.raises(DataError, match=r"part-0.parquet, row group 1: row 6: .*'price'.*nan"):
            table_of(message)


def test_encoded_days_are_no_raw_ones(data: SmallData) -> None:
    with pytest.raises(ArtifactError, match="raw day"):
        open_form(data.directory, DAYS, Raw(data.encoder))


def test_workers_without_ray_cannot_share_a_stream() -> None:
    check_stream(None)
    with pytest.raises(ConfigError, match=r"data\.stream: workers share a stream by Ray"):
        check_stream(Path("raw"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=256 << 20)
        yield
        ray.shutdown()


quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
@pytest.mark.ray
@quiet
@pytest.mark.usefixtures("local_ray")
def test_ray_gives_each_rank_as_many_chunks_and_each_row_once(
    data: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    import recsys.training.distributed.stream as module

    monkeypatch.setattr(module, "world_size", lambda: 2)
    stream = stream_of(data)
    for epoch in range(2):
        parts = stream._started(stream.pieces(Position(epoch), 2))
        with ThreadPoolExecutor(2) as threads:
            taken = list(
                threads.map(lambda part: list(stream._chunks(cloudpickle.loads(part))), parts)
            )
        assert [len(tables) for tables in taken] == [10, 10]
        assert by_key([table for tables in taken for table in tables]) == rows_of_feed(data)


@pytest.mark.slow
@pytest.mark.ray
@quiet
@pytest.mark.usefixtures("local_ray")
def test_one_process_streams_and_goes_on_within_an_epoch(
    data: SmallData, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [f"data.stream={json.dumps(str(data.root / 'raw'))}"]
    experiment = load_experiment(data.root / "experiment.toml", overrides=overrides)
    whole = train(experiment, data.root / "whole").path
    stopped = stopped_at(whole, 4, data.root / "stopped")
    train(experiment, stopped, resume=True)
    assert "stream.resumed epoch=0 batch=4" in caplog.text
    # One process takes the chunks in their order, so it finds its place.
    assert losses_of(stopped) == losses_of(whole)
    assert all(
        torch.equal(state_of(stopped)[name], found) for name, found in state_of(whole).items()
    )
