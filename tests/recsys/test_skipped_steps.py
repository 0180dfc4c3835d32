"""A step that is not finite leaves no trace, is written down, survives a kill, and ends the training past a budget."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recsys.days import open_days
from recsys.errors import TrainingError
from recsys.experiment import Experiment, load_experiment
from recsys.feed import Feed, in_order
from recsys.new_run import new_run
from recsys.publish import versions
from recsys.run import open_run
from recsys.tensor_files import read_tensors
from recsys.training.soundness import Soundness
from recsys.training.trainer import FinishedRun, train
from recsys.training.training import Training
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import TOML, assert_bit_equal, killed_after, records_of

# What a training row may hold. Of an infinite input no gradient is finite: none reaches the tables. Of the label the
# square overflows, but not the gradient: by the time the loss is looked at, the tables have learned from it.
Cells = dict[str, float]
AT_THE_GATE: Cells = {"dense:price": np.inf}
BEHIND_IT: Cells = {"label:watch": 2.5e19, "observed:watch": 1}
SOUND: Cells = {"label:watch": 10.0, "observed:watch": 1}
HOME = 'model.mixing={ kind = "home", experts = 2, meta_hidden = [8], task_hidden = [8] }'
FUSED = [HOME, "model.embeddings.backend=torchrec"]
ROW_KEY = 1_000_007


@dataclass(frozen=True)
class Found:
    """Data with a row that cannot be learned from, and a run that has met it."""

    data: SmallData
    run: Path
    finished: FinishedRun


def data_with(cells: Cells, folder: Path) -> SmallData:
    """The small data with these cells in one training row."""
    folder.mkdir(exist_ok=True)
    data = small_data(folder)
    (folder / "experiment.toml").write_text(TOML, encoding="utf-8")
    days = open_days(data.directory, ["2026-01-02"], encoder=data.encoder)
    encoded = pa.concat_tables([batch.encoded for batch in in_order(days, batch_size=10_000)])
    row = encoded.column("row_key").to_numpy() == ROW_KEY
    for name, value in cells.items():
        position, field = encoded.column_names.index(name), encoded.field(name)
        column = np.where(row, value, encoded.column(name).to_numpy())
        encoded = encoded.set_column(position, field, pa.array(column).cast(field.type))
    data.publish("2026-01-02", encoded)
    return data


@pytest.fixture(scope="module", params=[AT_THE_GATE, BEHIND_IT], ids=["at the gate", "behind it"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("found")
    data = data_with(request.param, folder)
    return Found(data, folder / "run", train(experiment_of(data), folder / "run"))


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    every = ("train.checkpoint_every=4", "train.evaluate_every=8")
    return load_experiment(data.root / "experiment.toml", overrides=[*every, *overrides])


def steps_with_row(data: SmallData) -> list[int]:
    """The steps whose batches hold the row, of two epochs."""
    days = open_days(data.directory, ["2026-01-01", "2026-01-02"], encoder=data.encoder)
    batches = Feed(days, batch_size=64, seed=0, window_rows=200).batches()
    return [step for step in range(18) if ROW_KEY in next(batches).batch.row_key_B]


def state_of(run: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint, generators included."""
    newest = run / "checkpoints" / versions(run / "checkpoints")[-1]
    return {
        f"{file.stem}/{name}": tensor
        for file in newest.glob("*.safetensors")
        for name, tensor in read_tensors(file).items()
    }


def listed(run: Path) -> list[dict[str, Any]]:
    lines = (run / "skipped_steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def told_before(experiment: Experiment, run: Path, *, by: Path) -> None:
    """A run that knows from its first step on which ones another skipped: it never looks at their batches."""
    with new_run(run, experiment):
        (run / "skipped_steps.jsonl").write_bytes((by / "skipped_steps.jsonl").read_bytes())
    train(experiment, run, resume=True)


def test_a_balancing_method_whose_state_overflows_ends_the_training(tmp_path: Path) -> None:
    data = data_with({"label:watch": 1e19, "observed:watch": 1}, tmp_path)
    balanced = 'objective.balance={ kind = "uncertainty" }'
    with pytest.raises(TrainingError, match="the balancing method's 'exp_avg_sq' is not finite"):
        train(experiment_of(data, balanced), tmp_path / "run")


def test_a_skipped_step_leaves_no_trace(found: Found, tmp_path: Path) -> None:
    told_before(experiment_of(found.data), tmp_path / "told", by=found.run)

    assert found.finished.skipped_steps == 2
    assert_bit_equal(state_of(found.run), state_of(tmp_path / "told"))
    assert records_of(found.run) == records_of(tmp_path / "told")


@pytest.mark.parametrize(
    ("cells", "overrides"),
    [
        (AT_THE_GATE, FUSED),
        pytest.param(BEHIND_IT, FUSED, marks=pytest.mark.slow),
        pytest.param(AT_THE_GATE, ["optimizer.embeddings=adam"], marks=pytest.mark.slow),
        pytest.param(AT_THE_GATE, ["train.accumulate=2", "train.ema=0.9"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_statistics_fused_tables_moments_and_averages_keep_no_trace_either(
    tmp_path: Path, cells: Cells, overrides: list[str]
) -> None:
    data = data_with(cells, tmp_path / "data")
    experiment = experiment_of(data, *overrides, "train.steps=15")
    assert train(experiment, tmp_path / "run").skipped_steps == 2
    told_before(experiment, tmp_path / "told", by=tmp_path / "run")
    assert_bit_equal(state_of(tmp_path / "run"), state_of(tmp_path / "told"))
    assert all(tensor.float().isfinite().all() for tensor in state_of(tmp_path / "run").values())


def test_the_run_lists_the_rows_of_skipped_steps(found: Found) -> None:
    lines = listed(found.run)
    assert [line["step"] for line in lines] == steps_with_row(found.data)
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert ROW_KEY in line["row_keys"]
        assert line["loss_by_task"]["watch"] in ("inf", "nan")
    assert "skipped 2 steps whose loss or gradient was not finite" in found.finished.render()


def test_a_run_killed_after_a_skipped_step_goes_on_to_equal_state(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(found.data)
    with killed_after(monkeypatch, steps_with_row(found.data)[0] + 1):
        train(experiment, tmp_path / "killed")
    train(experiment, tmp_path / "killed", resume=True)

    assert_bit_equal(state_of(found.run), state_of(tmp_path / "killed"))
    assert records_of(found.run) == records_of(tmp_path / "killed")


def test_tables_that_learned_from_a_skipped_step_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(data_with(BEHIND_IT, tmp_path / "data"), "train.steps=7")
    monkeypatch.setattr(Soundness, "tables_are_touched", lambda self: False)
    train(experiment, tmp_path / "run")
    sums = [tensor for name, tensor in state_of(tmp_path / "run").items() if "table_opt" in name]
    assert max(float(item.max()) for item in sums) > 1e20


def test_a_row_without_a_gradient_that_overflows_is_not_skipped(tmp_path: Path) -> None:
    data = data_with(SOUND, tmp_path / "data")
    assert train(experiment_of(data), tmp_path / "run").skipped_steps == 0
    assert not (tmp_path / "run" / "skipped_steps.jsonl").exists()


def test_one_step_too_many_ends_the_training_every_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = data_with(AT_THE_GATE, tmp_path / "data")
    experiment = experiment_of(data, "train.max_skipped_steps=1")
    first, second = steps_with_row(data)
    for resume in (False, True):
        with pytest.raises(TrainingError, match=rf"^step {second}: .*; 1 steps were skipped"):
            train(experiment, tmp_path / "run", resume=resume)
        assert [(item["step"], item["skipped"]) for item in listed(tmp_path / "run")] == [
            (first, True),
            (second, False),
        ]
    (warning,) = [item.getMessage() for item in caplog.records if item.levelname == "WARNING"]
    assert warning.startswith(f"train.skipped_step because='step {first}: the loss or its gradient")
    assert warning.endswith(f"' file={tmp_path / 'run' / 'skipped_steps.jsonl'}")


@pytest.mark.parametrize("table", [True, False])
def test_a_checkpoint_holds_finite_numbers_alone(tmp_path: Path, table: bool) -> None:
    data = data_with(SOUND, tmp_path / "data")
    train(experiment_of(data, "train.steps=4"), tmp_path / "run")
    training = Training(open_run(tmp_path / "run"))
    before = versions(tmp_path / "run" / "checkpoints")
    weights = training.model.embeddings.table_weights()["user"]
    broken = weights if table else next(training.model.program.parameters()).detach()
    broken[0] = torch.inf

    name = "table 'user'" if table else "parameter 'mixing.*'"
    with pytest.raises(TrainingError, match=rf"step 4: {name} is not finite in places, so no"):
        training.save()
    assert versions(tmp_path / "run" / "checkpoints") == before
