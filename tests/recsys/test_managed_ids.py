"""Tables whose id maps TorchRec changes after every step, from steps to scores."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.baseline.inputs import read_tree_rows
from recsys.batch import Batch
from recsys.days import open_days
from recsys.errors import ConfigError
from recsys.evaluation.doctor import examine
from recsys.evaluation.evaluate import evaluate, outcomes_of
from recsys.evaluation.metrics import evaluate_tasks
from recsys.experiment import Experiment, load_experiment
from recsys.feed import Feed
from recsys.id_days import take_in
from recsys.idmap import IdMap, empty_id_maps, read_id_maps
from recsys.layout import slots
from recsys.new_run import new_run
from recsys.publish import CURRENT, versions
from recsys.run import load_run, open_run
from recsys.tensor_files import read_tensors
from recsys.training.journal import read_records
from recsys.training.selection import numbers_of
from recsys.training.trainer import train
from recsys.training.training import Training
from recsys.training.warm_start import choose_parent
from tests.recsys.small_data import SmallData
from tests.recsys.table_state import optimizer_state
from tests.recsys.test_managed_collision import ByHand
from tests.recsys.test_training import assert_bit_equal, killed_after, records_of
from tests.recsys.test_unbounded import bundle_that_scores_as, columns_of, unbounded_data

# Of 100 items and 40 users few have a row at once.
TABLES = {
    "user = { rows = 64, dim = 4 }": (
        'user = { rows = 20, dim = 4, ids = "zch", eviction = "lfu" }'
    ),
    "item = { rows = 128, dim = 4 }": 'item = { rows = 62, dim = 4, ids = "zch" }',
}
BACKENDS = ("plain", "torchrec")
NAMES = ("user", "item")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return unbounded_data(tmp_path_factory.mktemp("managed"), tables=TABLES)


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    return load_experiment(data.root / "experiment.toml", overrides=overrides)


@pytest.fixture(scope="module")
def run(data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(experiment_of(data, "train.epochs=2"), path)
    return path


@contextmanager
def begun(experiment: Experiment, path: Path, *, parent: Path | None = None) -> Iterator[Training]:
    chosen = None if parent is None else choose_parent(parent)
    with new_run(path, experiment, parent=chosen):
        yield Training(open_run(path))


def batches_of(data: SmallData, experiment: Experiment, count: int) -> list[Batch]:
    """Training batches whose ids of both tables are hashes."""
    days = open_days(data.directory, experiment.data.train, encoder=data.encoder).with_id_maps({})
    feed = Feed(days, batch_size=64, seed=experiment.train.seed, window_rows=200)
    with closing(feed.batches()) as batches:
        return [next(batches).batch for _ in range(count)]


def hashes_of(data: SmallData, batch: Batch) -> dict[str, list[int]]:
    """A batch's hashes by table."""
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    ids = torch.split(batch.values_N, batch.lengths_FB.sum(dim=1).tolist())
    for slot, values in zip(slots(data.schema), ids, strict=True):
        if slot.table in found:
            found[slot.table] += values.numpy().view(np.uint64).tolist()
    return found


def all_of(run: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint, and its id maps."""
    newest = run / "checkpoints" / versions(run / "checkpoints")[-1]
    found = {
        f"{file.stem}/{name}": tensor
        for file in newest.glob("*.safetensors")
        for name, tensor in read_tensors(file).items()
    }
    for name, item in read_id_maps(newest / "id_maps", open_run(run).schema).items():
        found[f"map/{name}"] = torch.tensor([item.updates])
        for number, column in enumerate((item.hash_E, item.row_E, item.count_E, item.seen_E)):
            found[f"map/{name}/{number}"] = torch.from_numpy(column.view(np.int64).copy())
    return found


def test_the_map_is_what_the_steps_ids_make_of_it_by_the_rules(data: SmallData, run: Path) -> None:
    by_hand = {"user": ByHand(True, rows=20), "item": ByHand(False, rows=62)}
    batches = batches_of(data, experiment_of(data), 18)
    told = [item for item in read_records(run / "metrics.jsonl") if item["kind"] == "ids"]
    assert [(item["step"], item["steps"]) for item in told] == [
        (4, 4), (8, 4), (9, 1), (12, 3), (16, 4), (18, 2),
    ]  # fmt: skip
    done = 0
    for record in told:
        counts = {name: {"ids": 0, "unknown": 0} for name in NAMES}
        before = {name: set(by_hand[name].row) for name in NAMES}
        for batch in batches[done : record["step"]]:
            for name, hashes in hashes_of(data, batch).items():
                counts[name]["ids"] += sum(item != 0 for item in hashes)
                counts[name]["unknown"] += sum(
                    item != 0 and item not in by_hand[name].row for item in hashes
                )
                by_hand[name].update(hashes)
        for name in NAMES:
            now = set(by_hand[name].row)
            counts[name] |= {
                "kept": len(now & before[name]),
                "new": len(now - before[name]),
                "evicted": len(before[name] - now),
            }
            assert counts[name].items() <= record["tables"][name].items()
        done = record["step"]
    assert all(item["tables"]["item"]["evicted"] for item in told[1:])
    for name, found in load_run(run, checkpoint=CURRENT).id_maps.items():
        assert columns_of(found) == by_hand[name].columns()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_was_killed_goes_on_to_the_same_bits(
    backend: str, data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(data, "train.epochs=2", f"model.embeddings.backend={backend}")
    train(experiment, tmp_path / "once")
    for steps in (6, 13):
        with killed_after(monkeypatch, steps):
            train(experiment, tmp_path / "again", resume=steps > 6)
    train(experiment, tmp_path / "again", resume=True)

    assert_bit_equal(all_of(tmp_path / "again"), all_of(tmp_path / "once"))
    assert records_of(tmp_path / "again") == records_of(tmp_path / "once")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_a_row_begins_anew_for_the_id_that_gets_it(
    backend: str, optimizer: str, data: SmallData, tmp_path: Path
) -> None:
    settings = (f"model.embeddings.backend={backend}", f"optimizer.embeddings={optimizer}")
    experiment = experiment_of(data, *settings, "train.seed=5")
    batches = batches_of(data, experiment, 9)
    evictions = 0
    with begun(experiment, tmp_path / "run") as training:
        embeddings = training.model.embeddings
        for step, batch in enumerate(batches):
            was = {name: item.clone() for name, item in embeddings.table_weights().items()}
            before = training.managed_ids.id_maps()
            training.advance(batch)
            after, weights = training.managed_ids.id_maps(), embeddings.table_weights()
            for name in NAMES:
                changed = changed_rows(before[name], after[name])
                sums = optimizer_state(embeddings)[name].view(len(weights[name]), -1)
                assert (sums[changed] == 0.1).all()
                # Drawn in the order in which TorchRec gives rows away: here only as a set.
                drawn = drawn_rows(name, len(changed), seed=5, updates=step + 1)
                assert sorted(weights[name][changed].tolist()) == sorted(drawn.tolist())
                evictions += int(np.isin(changed, before[name].row_E).sum())
                learned = sorted(set(before[name].row_E) - set(changed))
                moved = (weights[name][learned] != was[name][learned]).any(dim=1)
                met = np.isin(sorted_hashes(before[name], learned), hashes_of(data, batch)[name])
                assert moved.numpy()[~met].sum() == 0
                assert (sums[learned] > 0.1)[moved].any(dim=1).all()
    assert evictions > 30


def changed_rows(before: IdMap, after: IdMap) -> list[int]:
    """Rows that another id has than before."""
    had = dict(zip(before.row_E.tolist(), before.hash_E.tolist(), strict=True))
    has = dict(zip(after.row_E.tolist(), after.hash_E.tolist(), strict=True))
    return sorted(row for row, item in has.items() if had.get(row) != item)


def sorted_hashes(found: IdMap, rows: list[int]) -> np.ndarray:
    of = dict(zip(found.row_E.tolist(), found.hash_E, strict=True))
    return np.array([of[row] for row in rows], np.uint64)


def drawn_rows(name: str, count: int, *, seed: int, updates: int) -> Tensor:
    text = f"{name} {updates}".encode()
    generator = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(text))
    return torch.randn(count, 4, generator=generator) * 0.01


def test_a_skipped_step_leaves_the_maps_and_the_rows_as_they_were(
    data: SmallData, tmp_path: Path
) -> None:
    experiment = experiment_of(data)
    first, second, third, *_ = batches_of(data, experiment, 3)
    unsound = replace(second, dense_BD=torch.full_like(second.dense_BD, torch.inf))
    with begun(experiment, tmp_path / "run") as training:
        training.advance(first)
        before = training.managed_ids.id_maps()
        weights = {k: v.clone() for k, v in training.model.embeddings.table_weights().items()}
        assert training.advance(unsound) is None
        after = training.managed_ids.id_maps()
        for name in NAMES:
            assert columns_of(after[name]) == columns_of(before[name])
            assert after[name].updates == 1
        assert_bit_equal(training.model.embeddings.table_weights(), weights)
        assert training.advance(third) is not None
        assert training.managed_ids.id_maps()["item"].updates == 2
        (record,) = training.id_records()
        assert record["steps"] == 2


def test_evaluations_read_the_map_of_their_step(data: SmallData, run: Path) -> None:
    trained = load_run(run, checkpoint=CURRENT)
    days = open_days(data.directory, ["2026-01-03"], encoder=data.encoder)
    outcomes = outcomes_of(trained.model, days.with_id_maps(trained.id_maps), batch_size=64)
    found = {item.name: numbers_of(item) for item in evaluate_tasks(outcomes, data.schema.tasks)}
    *_, last = (
        item for item in read_records(run / "metrics.jsonl") if item["kind"] == "validation"
    )
    assert last["step"] == trained.step
    assert last["entries"] == {name: pytest.approx(item) for name, item in found.items()}


def test_a_bundle_scores_known_and_unknown_ids_as_the_model_does(
    data: SmallData, run: Path, tmp_path: Path
) -> None:
    bundle = bundle_that_scores_as(run, data, tmp_path / "bundle")
    assert len(bundle.id_maps["item"]) == 60


def test_reports_doctor_and_trees_read_such_tables(
    data: SmallData, run: Path, tmp_path: Path
) -> None:
    assert evaluate(run, tmp_path / "report").report.rows == 200
    assert examine(run).diagnosis.rows == 200
    # Trees make no steps: they read ids as if the days had updated the maps.
    days = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    by_day, taken = take_in(days, empty_id_maps(data.schema))
    assert [item.table for item in taken] == list(NAMES)
    found = read_tree_rows(days.with_id_maps(by_day), up_to_rows=10_000, seed=0)
    assert len(found.inputs_BI) == 300


@pytest.mark.parametrize("kind", ["zch", "unbounded"])
def test_a_warm_start_goes_on_with_the_parents_map(
    kind: str, data: SmallData, run: Path, tmp_path: Path
) -> None:
    experiment = experiment_of(data)
    if kind == "unbounded":
        # The same hashes, so the same days and encoder do.
        tables = {old: new.replace('"zch"', '"unbounded"') for old, new in TABLES.items()}
        day_by_day = unbounded_data(tmp_path, tables=tables)
        run = tmp_path / "parent"
        train(experiment_of(day_by_day), run)
        schema_file = json.dumps(str(data.root / "schema.toml"))
        experiment = experiment_of(day_by_day, f"schema_file={schema_file}")
    parent = load_run(run)
    with begun(experiment, tmp_path / "next", parent=run) as training:
        embeddings, before = training.model.embeddings, parent.model.embeddings
        for name, found in training.managed_ids.id_maps().items():
            old = parent.id_maps[name].admitted
            assert found.hash_E.tolist() == old.hash_E.tolist()
            assert found.row_E.tolist() == old.row_E.tolist()
            assert found.updates == old.updates
            rows = [0, 1, *old.row_E]
            assert torch.equal(
                embeddings.table_weights()[name][rows], before.table_weights()[name][rows]
            )
        assert training.advance(batches_of(data, experiment_of(data), 1)[0]) is not None
        assert training.managed_ids.id_maps()["item"].updates == old.updates + 1


def test_a_warm_start_by_days_goes_on_with_what_ids_learned_by_steps(
    run: Path, tmp_path: Path
) -> None:
    tables = {old: new.replace('"zch"', '"unbounded"') for old, new in TABLES.items()}
    day_by_day, parent = unbounded_data(tmp_path, tables=tables), load_run(run)
    with begun(experiment_of(day_by_day), tmp_path / "next", parent=run) as training:
        embeddings, before = training.model.embeddings, parent.model.embeddings
        for name in NAMES:
            old, now = parent.id_maps[name].admitted, embeddings.id_maps[name].admitted
            _, was, here = np.intersect1d(old.hash_E, now.hash_E, return_indices=True)
            assert len(was) > 10
            found = embeddings.table_weights()[name][now.row_E[here]]
            assert torch.equal(found, before.table_weights()[name][old.row_E[was]])
            assert now.updates > old.updates
        with closing(training.batches()) as batches:
            assert training.advance(next(batches).batch) is not None


def test_without_torchrec_a_training_says_what_to_install(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.training.managed_ids.torchrec_imports", lambda: False)
    with pytest.raises(ConfigError, match=r'tables.user: ids = "zch" is TorchRec.s, and torchrec'):
        train(experiment_of(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [[], ["train.accumulate=2", "optimizer.embeddings=adagrad"]], ids=str
)
def test_two_workers_keep_the_maps_of_one_process(
    overrides: list[str], data: SmallData, tmp_path: Path
) -> None:
    kinds = 'sharding.constraints={ item={ kinds=["row_wise"] }, user={ kinds=["data_parallel"] } }'
    settings = ["train.epochs=3", "model.embeddings.backend=torchrec", kinds, *overrides]
    command = [sys.executable, "-m", "recsys", "train", str(data.root / "experiment.toml")]
    command += [str(tmp_path / "two"), "--workers", "2"]
    done = subprocess.run(
        command + [part for setting in settings for part in ("--set", setting)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    train(experiment_of(data, *settings), tmp_path / "one")

    two, one = (all_of(tmp_path / name) for name in ("two", "one"))
    for name, tensor in one.items():
        if name.startswith("map/"):
            assert torch.equal(two[name], tensor)
        elif not name.startswith("random/"):
            # Sums over rows in another order.
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    told: list[list[Any]] = [
        [item for item in read_records(tmp_path / name / "metrics.jsonl") if item["kind"] == "ids"]
        for name in ("one", "two")
    ]
    assert told[0] == told[1]
    assert told[0][-1]["tables"]["item"]["evicted"]
