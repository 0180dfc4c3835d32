"""Tables larger than memory: scored and exported from the checkpoint's file, row by row and block by block."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys import tensor_files
from recsys.bundle import load_bundle
from recsys.days import open_days
from recsys.evaluation.evaluate import outcomes_of
from recsys.experiment import load_experiment
from recsys.export import export
from recsys.run import TrainedRun, load_run, map_run
from recsys.training.trainer import train
from tests.recsys import small_data

EXPERIMENT = """
[data]
train = ["2026-01-01"]
validation = "2026-01-03"
batch_size = 64
[model]
embeddings = { backend = "plain" }
mixing = { kind = "shared_bottom", hidden = [4] }
heads = { kind = "towers", hidden = [4] }
[train]
steps = 4
threads = 1
"""
MIB = 2**20
ITEMS, WIDTH = 12_000_000, 32
TABLE_BYTES = 4 * ITEMS * WIDTH


def trained(root: Path) -> Path:
    small_data.small_data(root)
    (root / "experiment.toml").write_text(EXPERIMENT, encoding="utf-8")
    train(load_experiment(root / "experiment.toml"), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("large_tables"))


def logits_of(run: TrainedRun) -> Tensor:
    data = run.experiment.data
    days = open_days(data.directory, data.validation, encoder=run.encoder)
    return torch.from_numpy(outcomes_of(run.model, days, batch_size=50).logits_BT)


def test_tables_in_a_file_give_the_scores_of_tables_in_memory(run: Path) -> None:
    assert torch.equal(logits_of(map_run(run)), logits_of(load_run(run)))


def test_a_table_is_loaded_and_exported_by_blocks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_run(run).model.embeddings.table_weights()
    read: list[tuple[int, ...]] = []
    part = tensor_files.StoredTensor.__getitem__

    def watched(stored: tensor_files.StoredTensor, index: slice) -> Tensor:
        found = part(stored, index)
        read.append(tuple(found.shape))
        return found

    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 5 * 4 * 4)
    monkeypatch.setattr(tensor_files.StoredTensor, "__getitem__", watched)
    loaded = load_run(run).model.embeddings.table_weights()
    export(run, tmp_path / "bundle")

    assert set(read) <= {(rows, 4) for rows in range(1, 6)}
    found = load_bundle(tmp_path / "bundle").tables
    for name, weight in whole.items():
        assert torch.equal(loaded[name], weight)
        assert torch.equal(torch.from_numpy(found[name].copy()), weight)


@pytest.mark.slow
def test_neither_export_nor_evaluation_holds_a_table_more_often_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of 1.5 GB: an export grows by less than 600 MB of its own, a loaded model by less than half above it."""
    large = f'item = {{ rows = {ITEMS}, dim = {WIDTH}, ids = "hash" }}'
    monkeypatch.setattr(
        small_data,
        "SCHEMA_TOML",
        small_data.SCHEMA_TOML.replace("item = { rows = 128, dim = 4 }", large),
    )
    run = trained(tmp_path)

    exported, loaded = (measured(what, run) for what in ("export", "load"))

    assert exported["private"] < 600 * MIB < TABLE_BYTES
    assert exported["grown"] < TABLE_BYTES
    assert loaded["grown"] < 1.5 * TABLE_BYTES


def measured(what: str, run: Path) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.recsys.memory_alone", what, run, run.parent / what]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, check=True
    )
    found: dict[str, int] = json.loads(ended.stdout)
    return found
