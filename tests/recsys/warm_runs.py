"""A small project with a trained run to begin from, the state that a run begins with, and what its files hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recsys.experiment import load_experiment
from recsys.run import load_run
from recsys.tensor_files import read_tensors
from recsys.training.trainer import Training, train
from tests.recsys import small_data as small_data_module
from tests.recsys.small_data import SmallData, raw_rows, small_data
from tests.recsys.table_state import optimizer_state

TOML = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
batch_size = 64

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
"""

State = dict[str, dict[str, Tensor]]


class Project:
    """A folder with data, an experiment and the runs that tests make."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.data: SmallData = small_data(root)
        (root / "experiment.toml").write_text(TOML, encoding="utf-8")

    def train(self, name: str, *overrides: str, **how: Any) -> Path:
        """The run of a name, of one step unless told otherwise."""
        steps = ("train.steps=1", *overrides)
        experiment = load_experiment(self.root / "experiment.toml", overrides=steps)
        train(experiment, self.root / name, **how)
        return self.root / name


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project(tmp_path_factory.mktemp("warm") / "old")
    found.train("run", "train.steps=9")
    return found


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """Makes a project of another schema, or of rows that make other vocabularies."""

    def make(*changes: tuple[str, str], raw: Callable[..., pa.Table] = raw_rows) -> Project:
        text = small_data_module.SCHEMA_TOML
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        monkeypatch.setattr(small_data_module, "SCHEMA_TOML", text)
        monkeypatch.setattr(small_data_module, "raw_rows", raw)
        return Project(tmp_path / "new")

    return make


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> State:
    """The state of the last training before its first step."""
    found: State = {}
    evaluate = Training.evaluate

    def watched(training: Training) -> Any:
        if training.step == 0:
            model = training.model
            found["program"] = {k: v.clone() for k, v in model.program.state_dict().items()}
            found["dense"] = {k: v.clone() for k, v in training.optimizer.dense.state().items()}
            tables = model.embeddings
            found["tables"] = {k: v.clone() for k, v in tables.table_weights().items()}
            found["sums"] = {k: v.clone() for k, v in optimizer_state(tables).items()}
        return evaluate(training)

    monkeypatch.setattr(Training, "evaluate", watched)
    return found


def state_of(run: Path) -> State:
    """What a run's best checkpoint holds."""
    path = load_run(run).checkpoint.path
    files = {
        "program": "program",
        "dense": "dense_optimizer",
        "tables": "tables",
        "sums": "table_optimizer",
    }
    return {name: read_tensors(path / f"{file}.safetensors") for name, file in files.items()}


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "warm_start.json").read_text())
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
