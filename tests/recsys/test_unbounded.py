"""Tables of unbounded ids from days to scores: one map for training, evaluation, export and server, kept to the bit."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.baseline.inputs import read_tree_rows
from recsys.bundle import Bundle, load_bundle
from recsys.collate import collate
from recsys.days import open_days
from recsys.evaluation.doctor import examine
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import Experiment, load_experiment
from recsys.export import eager_logits, export
from recsys.fitting import fit
from recsys.hashing import hash_ids
from recsys.id_days import take_in
from recsys.idmap import ID_MAPS, IdMap, empty_id_maps, table_rows
from recsys.new_run import new_run
from recsys.run import load_run, new_model, open_run
from recsys.schema import Schema
from recsys.tensor_files import read_tensors
from recsys.training.journal import read_records
from recsys.training.trainer import train
from recsys.training.training import Training
from recsys.training.warm_start import choose_parent
from tests.recsys.small_data import SCHEMA_TOML, SmallData, raw_rows
from tests.recsys.table_state import optimizer_state

DAYS = {"2026-01-01": 300, "2026-01-02": 250, "2026-01-03": 200}
# 100 items and 40 users ask for 60 and 28 rows.
TABLES = {
    "user = { rows = 64, dim = 4 }": 'user = { rows = 30, dim = 4, ids = "unbounded" }',
    "item = { rows = 128, dim = 4 }": (
        'item = { rows = 62, dim = 4, ids = "unbounded", min_count = 8, eviction = "lfu" }'
    ),
}
EXPERIMENT = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
test = "2026-01-03"
batch_size = 64
window_rows = 200

[model]
embeddings = { backend = "plain", initial_accumulator = 0.1 }
mixing = { kind = "mmoe", experts = 2, expert_hidden = [8] }
heads = { kind = "towers", hidden = [4] }

[optimizer]
embedding_lr = 0.1
dense_lr = 0.01

[train]
epochs = 1
threads = 1
log_every = 4
checkpoint_every = 4
keep_checkpoints = 100
"""


def schema_toml(tables: dict[str, str] = TABLES) -> str:
    text = SCHEMA_TOML
    for bounded, unbounded in tables.items():
        assert bounded in text
        text = text.replace(bounded, unbounded)
    return text


def unbounded_data(
    root: Path, rows: dict[str, int] = DAYS, *, tables: dict[str, str] = TABLES
) -> SmallData:
    text = schema_toml(tables)
    (root / "schema.toml").write_text(text, encoding="utf-8")
    (root / "experiment.toml").write_text(EXPERIMENT, encoding="utf-8")
    raw = {day: raw_rows(count, seed=seed) for seed, (day, count) in enumerate(rows.items())}
    schema = Schema.parse(tomllib.loads(text), where="schema.toml")
    data = SmallData(root, fit(schema, [next(iter(raw.values()))]))
    data.encoder.save(root / "encoder")
    for number, (day, rows) in enumerate(raw.items()):
        data.build(day, rows, first_key=1_000_000 * number)
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return unbounded_data(tmp_path_factory.mktemp("unbounded"))


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    return load_experiment(data.root / "experiment.toml", overrides=overrides)


@pytest.fixture(scope="module")
def run(data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(experiment_of(data), path)
    return path


def columns_of(found: IdMap) -> list[list[int]]:
    return [item.tolist() for item in (found.hash_E, found.row_E, found.count_E, found.seen_E)]


def seen_by_hand(day: int) -> dict[int, int]:
    """How often each item is in a day's rows: as the candidate, and among the newest five of the history."""
    rows = raw_rows(list(DAYS.values())[day], seed=day)
    items = rows.column("item_id").to_pylist()
    items += [item for seen in rows.column("seen_item").to_pylist() for item in seen[-5:]]
    return {item: items.count(item) for item in set(items)}


def test_every_training_day_is_one_update_and_told_so(run: Path) -> None:
    records = [item for item in read_records(run / "metrics.jsonl") if item["kind"] == "ids"]

    assert [(item["day"], item["step"]) for item in records] == [
        ("2026-01-01", 0),
        ("2026-01-02", 0),
    ]
    first, second = (item["tables"]["item"] for item in records)
    seen, both = seen_by_hand(0), seen_by_hand(0)
    often = {item for item, count in seen.items() if count >= 8}
    assert (first["ids"], first["new"]) == (sum(seen.values()), min(60, len(often)))
    for item, count in seen_by_hand(1).items():
        both[item] = both.get(item, 0) + count
    assert second["ids"] == sum(seen_by_hand(1).values())
    assert second["kept"] + second["new"] == 60
    assert second["evicted"] > 0
    # Integers: none can share a hash.
    assert second["collisions"] == 0 < records[0]["tables"]["user"]["collisions"]
    # What has a row are those seen most often.
    found = load_run(run).id_maps["item"]
    rows = dict(zip(both, found.rows(hash_ids(pa.array(list(both)))).tolist(), strict=True))
    fewest = min(both[item] for item, row in rows.items() if row > 1)
    assert all(both[item] <= fewest for item, row in rows.items() if row == 1)


def test_the_map_is_a_function_of_the_days_alone(
    data: SmallData, run: Path, tmp_path: Path
) -> None:
    experiment = experiment_of(data, "train.seed=3", "data.batch_size=50", "train.steps=1")
    train(experiment, tmp_path / "other")
    days = open_days(data.directory, experiment.data.train, encoder=data.encoder)
    expected, _ = take_in(days, empty_id_maps(data.schema))

    for name in ("user", "item"):
        for trained in (run, tmp_path / "other"):
            assert columns_of(load_run(trained).id_maps[name]) == columns_of(expected[name])


def test_a_resumed_training_reads_the_map_of_its_checkpoint(
    data: SmallData, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(data)
    advance = Training.advance

    def stopping(training: Training, batch: Any) -> Any:
        if training.step == 6:
            raise KeyboardInterrupt
        return advance(training, batch)

    monkeypatch.setattr(Training, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "run")
    monkeypatch.setattr(Training, "advance", advance)
    monkeypatch.setattr("recsys.training.ids.take_in", None)
    train(experiment, tmp_path / "run", resume=True)

    once, resumed = load_run(run), load_run(tmp_path / "run")
    for name, weights in once.model.embeddings.table_weights().items():
        assert torch.equal(weights, resumed.model.embeddings.table_weights()[name])
    assert columns_of(once.id_maps["item"]) == columns_of(resumed.id_maps["item"])
    kinds = [item["kind"] for item in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert kinds == [item["kind"] for item in read_records(run / "metrics.jsonl")]


def test_a_training_that_begins_again_tells_its_ids_once(data: SmallData, tmp_path: Path) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            train(experiment_of(data), tmp_path / "run")
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == 2
    train(experiment_of(data), tmp_path / "run", resume=True)

    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [item["kind"] for item in records[:3]] == ["ids", "ids", "training"]


def bundle_that_scores_as(run: Path, data: SmallData, folder: Path) -> Bundle:
    """A run's bundle, which gave known, unknown and missing ids the logits of the run's model."""
    trained = load_run(run)
    rows = raw_rows(50, seed=9)
    strangers = pa.array([None, 10**15, *range(48)], pa.int64())
    place = rows.column_names.index("item_id")
    rows = rows.set_column(place, rows.schema.field("item_id"), strangers)
    inputs = data.encoder.encode_inputs(rows)
    packed = collate(table_rows(inputs, data.schema, trained.id_maps), data.schema)

    bundle = load_bundle(export(run, folder, rows=rows).path)
    columns = bundle.request_columns
    served = bundle.logits(
        rows.select([*columns.user, *columns.context]),
        rows.select(columns.candidate),
        user_of_row_N=np.arange(50),
    )

    np.testing.assert_allclose(
        served, eager_logits(trained.model, data.schema, packed), rtol=0, atol=1e-5
    )
    has_row = trained.id_maps["item"].rows(hash_ids(pa.array(range(48)))) > 1
    assert has_row.any()
    assert not has_row.all()
    return bundle


def test_a_row_is_what_its_raw_id_learned_in_training_as_in_the_server(
    data: SmallData, run: Path, tmp_path: Path
) -> None:
    bundle = bundle_that_scores_as(run, data, tmp_path / "bundle")
    # What a server does not need stays behind: ids that wait for a row.
    assert len(bundle.id_maps["item"]) == 60 < len(load_run(run).id_maps["item"])
    assert bundle.id_maps["item"].hash_E.flags.writeable is False


def test_reports_doctor_and_trees_read_the_rows_that_the_map_gives(
    data: SmallData, run: Path, tmp_path: Path
) -> None:
    trained = load_run(run)
    report = evaluate(run, tmp_path / "report").report
    assert report.rows == 200
    assert examine(run).diagnosis.rows == 200
    days = open_days(data.directory, ["2026-01-03"], encoder=data.encoder)
    found = read_tree_rows(days.with_id_maps(trained.id_maps), up_to_rows=10_000, seed=0)
    column = [item.name for item in found.inputs].index("item_id")
    expected = trained.id_maps["item"].rows(hash_ids(raw_rows(200, seed=2).column("item_id")))
    assert found.inputs_BI[:, column].tolist() == expected.tolist()


def test_hashes_reach_no_model(data: SmallData) -> None:
    days = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    table = days.read(days.groups[:1], ["item_id"])
    assert table.column("item_id").type == pa.uint64()
    with pytest.raises(AssertionError, match="are hashes still"):
        collate(data.encoder.encode_inputs(raw_rows(3, seed=1)), data.schema)


def test_a_named_split_is_one_update(data: SmallData, tmp_path: Path) -> None:
    split = SmallData(tmp_path, data.encoder)
    split.build("train", raw_rows(100, seed=4), first_key=0)
    split.build("more", raw_rows(100, seed=5), first_key=1000)
    days = open_days(split.directory, ["train", "more"], encoder=data.encoder)

    maps, taken = take_in(days, empty_id_maps(data.schema))
    assert [(item.day, item.table) for item in taken] == [
        (day, table) for day in ("train", "more") for table in ("user", "item")
    ]
    assert (maps["item"].updates, maps["item"].last_day) == (2, "more")


def test_later_days_go_into_the_map_that_is_there(data: SmallData) -> None:
    def opened(*names: str) -> Any:
        return open_days(data.directory, names, encoder=data.encoder)

    at_once, _ = take_in(opened(*DAYS), empty_id_maps(data.schema))
    found = empty_id_maps(data.schema)
    for day in DAYS:
        found, _ = take_in(opened(day), found)

    for name in ("user", "item"):
        assert columns_of(found[name]) == columns_of(at_once[name])


@pytest.mark.parametrize("backend", ["plain", "torchrec"])
def test_a_warm_start_goes_on_with_the_map_and_begins_evicted_rows_anew(
    backend: str, data: SmallData, run: Path, tmp_path: Path
) -> None:
    parent = load_run(run)
    # The days of the parent are not counted again.
    overrides = (
        'data.train=["2026-01-02", "2026-01-03"]',
        "data.validation=2026-01-01",
        "data.test=2026-01-01",
        f"model.embeddings.backend={backend}",
    )
    with new_run(tmp_path / "next", experiment_of(data, *overrides), parent=choose_parent(run)):
        going_on = Training(open_run(tmp_path / "next"))

    newest = open_days(data.directory, ["2026-01-03"], encoder=data.encoder)
    expected_maps, taken = take_in(newest, parent.id_maps)
    assert going_on.taken == taken
    embeddings, before = going_on.model.embeddings, parent.model.embeddings
    fresh = new_model(open_run(tmp_path / "next"), "cpu").embeddings
    begun = read_tensors(parent.checkpoint.path / "table_optimizer.safetensors")
    for name in ("user", "item"):
        old, new = parent.id_maps[name].admitted, embeddings.id_maps[name].admitted
        assert columns_of(embeddings.id_maps[name]) == columns_of(expected_maps[name])
        kept = np.isin(new.hash_E, old.hash_E)
        rows = np.concatenate([[0, 1], new.row_E[kept]])
        assert np.array_equal(new.row_E[kept], old.row_E[np.isin(old.hash_E, new.hash_E)])
        others = np.setdiff1d(np.arange(len(fresh.table_weights()[name])), rows)
        weights, sums = embeddings.table_weights()[name], optimizer_state(embeddings)[name]
        assert torch.equal(weights[rows], before.table_weights()[name][rows])
        assert torch.equal(weights[others], fresh.table_weights()[name][others])
        assert torch.equal(sums[rows], begun[name][rows])
        assert torch.equal(sums[others], torch.full((len(others),), 0.1))
    report = json.loads((tmp_path / "next" / "warm_start.json").read_text())["tables"]
    (of_items,) = [item for item in taken if item.table == "item"]
    assert of_items.evicted
    assert report["item"] == {
        "kept": of_items.kept, "new": of_items.new, "evicted": of_items.evicted, "anew": None,
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "goes_on"), [(80, True), (40, False)])
def test_a_table_with_other_rows_keeps_the_ids_that_it_has_room_for(
    rows: int, goes_on: bool, data: SmallData, run: Path, tmp_path: Path
) -> None:
    item = TABLES["item = { rows = 128, dim = 4 }"]
    resized = schema_toml().replace(item, item.replace("62", str(rows)))
    (tmp_path / "schema.toml").write_text(resized, encoding="utf-8")
    settings = f'[data]\ndirectory = "{data.directory}"\nencoder = "encoder"\n'
    text = EXPERIMENT.replace("[data]\n", settings, 1)
    (tmp_path / "experiment.toml").write_text(text, encoding="utf-8")
    schema = Schema.parse(tomllib.loads(resized), where="schema.toml")
    fit(schema, [raw_rows(300, seed=0)]).save(tmp_path / "encoder")
    experiment = load_experiment(
        tmp_path / "experiment.toml",
        overrides=("data.train=2026-01-03", "data.validation=2026-01-02", "data.test=2026-01-02"),
    )
    with new_run(tmp_path / "next", experiment, parent=choose_parent(run)):
        found = Training(open_run(tmp_path / "next")).model.embeddings

    parent = load_run(run)
    old, new = parent.id_maps["item"].admitted, found.id_maps["item"].admitted
    assert (found.id_maps["item"].updates == parent.id_maps["item"].updates + 1) is goes_on
    place = dict(zip(old.hash_E.tolist(), old.row_E.tolist(), strict=True))
    common = [
        (row, place[hash])
        for hash, row in zip(new.hash_E.tolist(), new.row_E.tolist(), strict=True)
        if hash in place
    ]
    assert common
    now, was = (list(numbers) for numbers in zip(*common, strict=True))
    assert torch.equal(
        found.table_weights()["item"][now], parent.model.embeddings.table_weights()["item"][was]
    )


@pytest.mark.slow
def test_two_workers_read_days_by_the_map_of_one_process(
    data: SmallData, run: Path, tmp_path: Path
) -> None:
    overrides = ["--set", 'model.embeddings.backend="torchrec"']
    command = [sys.executable, "-m", "recsys", "train", str(data.root / "experiment.toml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "--workers", "2", *overrides],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    train(experiment_of(data, 'model.embeddings.backend="torchrec"'), tmp_path / "one")

    one, two = load_run(tmp_path / "one"), load_run(tmp_path / "two")
    for name in ("user", "item"):
        assert columns_of(two.id_maps[name]) == columns_of(one.id_maps[name])
        torch.testing.assert_close(
            two.model.embeddings.table_weights()[name],
            one.model.embeddings.table_weights()[name],
            rtol=0,
            atol=1e-5,  # sums over rows in another order
        )
    told = [
        [item for item in read_records(path / "metrics.jsonl") if item["kind"] == "ids"]
        for path in (run, tmp_path / "two")
    ]
    assert told[0] == told[1]


def test_checkpoints_hold_the_map_beside_the_weights(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.is_dir():
            assert (checkpoint / ID_MAPS / "item.arrow").is_file()
            files = json.loads((checkpoint / "MANIFEST.json").read_text())["files"]
            assert {f"{ID_MAPS}/item.arrow", f"{ID_MAPS}/user.arrow"} <= files.keys()
