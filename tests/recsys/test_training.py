"""The loop against a plain one, resumption bit for bit, what is chosen and recorded, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.days import open_days
from recsys.errors import ArtifactError, ConfigError, DataError, TrainingError
from recsys.experiment import Experiment, load_experiment
from recsys.feed import Feed, in_order
from recsys.models import build_model
from recsys.publish import versions
from recsys.run import choose_threads, load_run, open_run
from recsys.training.journal import read_records
from recsys.training.selection import best_record, criterion_for
from recsys.training.trainer import Training, train
from tests.recsys.small_data import SmallData, small_data, small_schema

TOML = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
test = "2026-01-03"
batch_size = 64
window_rows = 200

[model]
embeddings = { backend = "plain", initial_accumulator = 0.1 }
mixing = { kind = "mmoe", experts = 2, expert_hidden = [8], expert_dropout = 0.1 }
heads = { kind = "towers", hidden = [4] }

[objective]
weights = { purchase = 2.0 }

[optimizer]
embedding_lr = 0.1
dense_lr = 0.01
warmup_steps = 3
decay = "cosine"

[train]
epochs = 2
threads = 1
log_every = 4
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("data"))
    (found.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return found


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    return load_experiment(data.root / "experiment.toml", overrides=overrides)


def weights_of(run: Path, checkpoint: str = "CURRENT") -> dict[str, Tensor]:
    model = load_run(run, checkpoint=checkpoint).model
    return model.program.state_dict() | model.embeddings.table_weights()


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def plain_loop(data: SmallData, experiment: Experiment) -> dict[str, Tensor]:
    """The same training as one reads it in a textbook: loss by task, torch's AdamW, a rate by formula."""
    schema, optim = data.schema, experiment.optimizer
    days = open_days(data.directory, experiment.data.train, encoder=data.encoder)
    feed = Feed(days, batch_size=64, seed=experiment.train.seed, window_rows=200)
    model = build_model(schema, experiment.model, seed=experiment.train.seed)
    model.program.initialize_output_bias(days.label_means())
    torch.manual_seed(experiment.train.seed)
    adamw = torch.optim.AdamW(model.program.parameters(), weight_decay=0.0)
    steps = experiment.train.epochs * feed.batches_per_epoch
    batches = feed.batches()
    for step, placed in enumerate(islice(batches, steps)):
        batch = placed.batch
        rate = (
            (step + 1) / 3
            if step < 3
            else 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - 3) / (steps - 4))))
        )
        model.embeddings.set_learning_rate(optim.embedding_lr * float(rate))
        logits = model(batch)
        loss = torch.zeros(())
        for t, task in enumerate(schema.tasks.values()):
            used = batch.observed_BT[:, t]
            if not used.any():
                continue
            x, y, w = logits[used, t], batch.labels_BT[used, t], batch.weights_B[used]
            if task.kind == "regression":
                term = (w * (x - y) ** 2).sum()
            else:
                term = F.binary_cross_entropy_with_logits(x, y, weight=w, reduction="sum")
            loss = loss + {"purchase": 2.0}.get(schema.task_names[t], 1.0) * term / w.sum().clamp(
                min=1
            )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.program.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = optim.dense_lr * float(rate)
        adamw.step()
        adamw.zero_grad()
    batches.close()
    return model.program.state_dict() | model.embeddings.table_weights()


def test_the_trainer_equals_a_plain_loop(data: SmallData, tmp_path: Path) -> None:
    experiment = experiment_of(data)
    train(experiment, tmp_path / "run")
    ours, expected = weights_of(tmp_path / "run"), plain_loop(data, experiment)
    assert ours.keys() == expected.keys()
    for name, weight in expected.items():
        close = torch.allclose(ours[name], weight, rtol=1e-4, atol=1e-5)
        assert close, f"{name}: differs by {(ours[name] - weight).abs().max()}"


def test_the_plain_loop_notices_another_rate(data: SmallData, tmp_path: Path) -> None:
    train(experiment_of(data, "optimizer.warmup_steps=2"), tmp_path / "run")
    ours, expected = weights_of(tmp_path / "run"), plain_loop(data, experiment_of(data))
    assert any(
        not torch.allclose(ours[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected
    )


class _KilledError(Exception):
    pass


@contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[None]:
    """Let training die in this block, as seen from the disk, right after that many steps."""
    advance = Training.advance

    def dying(self: Training, batch: Any) -> Any:
        if self.step == steps:
            raise _KilledError
        return advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", dying)
        with pytest.raises(_KilledError):
            yield


@pytest.mark.parametrize("backend", ["plain", "torchrec"])
@pytest.mark.parametrize("steps", [3, 7, 11])
def test_a_killed_run_continues_to_equal_weights_and_records(
    data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    backend: str,
) -> None:
    experiment = experiment_of(
        data,
        "train.checkpoint_every=5",
        "train.evaluate_every=10",
        f"model.embeddings.backend={backend}",
    )
    whole = train(experiment, tmp_path / "whole")
    with killed_after(monkeypatch, steps):
        train(experiment, tmp_path / "resumed")
    resumed = train(experiment, tmp_path / "resumed", resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed"))
    assert_bit_equal(
        weights_of(tmp_path / "whole", "BEST"), weights_of(tmp_path / "resumed", "BEST")
    )
    assert (whole.best_step, whole.score) == (resumed.best_step, resumed.score)
    assert records_of(tmp_path / "whole") == records_of(tmp_path / "resumed")


def records_of(run: Path) -> list[dict[str, Any]]:
    """Records without what the clock decides."""
    found = read_records(run / "metrics.jsonl")
    return [
        {name: value for name, value in record.items() if name != "rows_per_second"}
        for record in found
    ]


def test_a_process_killed_by_the_system_resumes(data: SmallData, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom recsys.experiment import load_experiment\n"
        "from recsys.training import trainer\nadvance = trainer.Training.advance\n"
        "def dying(self, batch):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if self.step == 8 else None\n"
        "    return advance(self, batch)\n"
        "trainer.Training.advance = dying\n"
        "trainer.train(load_experiment(Path(sys.argv[1]), overrides=['train.checkpoint_every=3']), Path(sys.argv[2]))\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(data.root / "experiment.toml"),
        str(tmp_path / "run"),
    ]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    experiment = experiment_of(data, "train.checkpoint_every=3")
    train(experiment, tmp_path / "run", resume=True)
    train(experiment, tmp_path / "whole")
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


def test_resuming_reads_the_builds_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data(tmp_path)
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    experiment = experiment_of(data, "train.checkpoint_every=5")
    train(experiment, tmp_path / "whole")
    with killed_after(monkeypatch, 7):
        train(experiment, tmp_path / "run")
    day = open_days(data.directory, ["2026-01-03"], encoder=data.encoder)
    for batch in in_order(day, batch_size=10_000):
        data.publish("2026-01-01", batch.encoded)
    train(experiment, tmp_path / "run", resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


def test_a_second_training_does_not_overwrite_a_run(data: SmallData, tmp_path: Path) -> None:
    first = train(experiment_of(data, "train.steps=2"), tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds a run already; resume it"):
        train(experiment_of(data, "train.steps=2"), tmp_path / "run")
    again = train(experiment_of(data, "train.steps=2"), tmp_path / "run", resume=True)
    assert (again.best_version, again.steps) == (first.best_version, 2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="holds other files"):
        train(experiment_of(data), tmp_path / "notes")


def test_resuming_with_another_experiment_schema_or_without_a_run_is_refused(
    tmp_path: Path,
) -> None:
    data = small_data(tmp_path)
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds no run"):
        train(experiment_of(data), tmp_path / "run", resume=True)
    train(experiment_of(data, "train.steps=2"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another experiment \(train.seed: 0, not 5\)"):
        train(experiment_of(data, "train.steps=2", "train.seed=5"), tmp_path / "run", resume=True)
    schema = (tmp_path / "schema.toml").read_text()
    (tmp_path / "schema.toml").write_text(
        schema.replace("tag = { rows = 16, dim = 4 }", "tag = { rows = 16, dim = 8 }")
    )
    with pytest.raises(ConfigError, match="is not the schema"):
        train(experiment_of(data, "train.steps=2"), tmp_path / "run", resume=True)


def test_a_run_that_never_began_does_not_stand_in_the_way(data: SmallData, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="2027-01-01"):
        train(experiment_of(data, "data.train=2027-01-01"), tmp_path / "run")
    assert train(experiment_of(data, "train.steps=2"), tmp_path / "run").steps == 2


def test_the_best_checkpoint_is_read_from_the_records(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first is of the untrained model, which is no candidate.
    scores = iter([1.0, 0.6, 0.8, 0.7, 0.8])
    evaluate = Training.evaluate
    monkeypatch.setattr(Training, "evaluate", lambda self: evaluate(self) | {"score": next(scores)})
    finished = train(
        experiment_of(data, "train.steps=8", "train.evaluate_every=2", "train.keep_checkpoints=1"),
        tmp_path / "run",
    )
    assert (finished.best_step, finished.score) == (4, 0.8)
    assert load_run(tmp_path / "run").step == 4
    assert load_run(tmp_path / "run", checkpoint="CURRENT").step == 8
    assert len(versions(tmp_path / "run" / "checkpoints")) == 2


def test_training_stops_when_patience_ends(
    data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="recsys")
    # The first is of the untrained model, which is no candidate.
    scores = iter([1.0, 0.6, 0.8, 0.7, 0.75, 0.9])
    evaluate = Training.evaluate
    monkeypatch.setattr(Training, "evaluate", lambda self: evaluate(self) | {"score": next(scores)})
    overrides = ("train.steps=10", "train.evaluate_every=2", "train.patience=2")
    finished = train(experiment_of(data, *overrides), tmp_path / "run")
    assert (finished.steps, finished.best_step) == (8, 4)
    assert "train stopped step=8/10 evaluations_without_a_better=2 (train.patience)" in caplog.text
    assert train(experiment_of(data, *overrides), tmp_path / "run", resume=True).steps == 8


def test_records_say_losses_rates_and_metrics(data: SmallData, tmp_path: Path) -> None:
    train(experiment_of(data), tmp_path / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "training"] == [
        4,
        8,
        9,
        12,
        16,
        18,
    ]
    first = records[0]
    assert first["loss_by_task"].keys() == {"click", "purchase", "watch"}
    assert first["dense_lr"] == pytest.approx(0.01)
    assert first["embedding_lr"] == pytest.approx(0.1)
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [9, 18]
    assert validation[0]["entries"].keys() == {"click", "purchase", "purchase|click", "watch"}
    mean = (
        validation[0]["entries"]["click"]["auc"] + validation[0]["entries"]["purchase"]["auc"]
    ) / 2
    assert validation[0]["score"] == pytest.approx(mean)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_training_learns_the_planted_truth(data: SmallData, tmp_path: Path) -> None:
    overrides = (
        "train.epochs=30",
        "optimizer.dense_lr=0.03",
        "optimizer.embedding_lr=0.2",
        "train.patience=30",
    )
    finished = train(experiment_of(data, *overrides), tmp_path / "run")
    first = read_records(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
    last = [
        item
        for item in read_records(tmp_path / "run" / "metrics.jsonl")
        if item["kind"] == "training"
    ][-1]["loss"]
    assert last < 0.6 * first
    assert finished.validation["click"]["auc"] is not None
    assert finished.validation["click"]["auc"] > 0.62


def test_bf16_trains_to_weights_of_its_own(data: SmallData, tmp_path: Path) -> None:
    train(experiment_of(data, "train.steps=3"), tmp_path / "float32")
    train(experiment_of(data, "train.steps=3", "train.precision=bf16"), tmp_path / "bf16")
    exact, rounded = weights_of(tmp_path / "float32"), weights_of(tmp_path / "bf16")
    assert all(torch.isfinite(weight).all() for weight in rounded.values())
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)
    assert all(weight.dtype == torch.float32 for weight in rounded.values())


def test_validation_rows_that_decide_nothing_are_told_before_the_first_step(
    tmp_path: Path,
) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 120, "2026-01-02": 60, "2026-01-03": 60})
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    days = open_days(data.directory, ["2026-01-03"], encoder=data.encoder)
    encoded = next(in_order(days, batch_size=10_000)).encoded
    for task in ("click", "purchase"):
        position = encoded.column_names.index(f"label:{task}")
        none = np.zeros(len(encoded), np.float32)
        encoded = encoded.set_column(position, encoded.schema.field(position), [none])
    data.publish("2026-01-03", encoded)
    with pytest.raises(DataError, match="validation: mean_auc is undefined"):
        train(experiment_of(data), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    # Nothing stands in the way of a training that can choose.
    train(experiment_of(data, "train.metric='click.log_loss'", "train.steps=1"), tmp_path / "run")


def test_a_loss_that_is_no_number_names_step_task_and_rows(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 120, "2026-01-02": 60, "2026-01-03": 60})
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    days = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    encoded = next(in_order(days, batch_size=10_000)).encoded
    label = encoded.column("label:watch").to_numpy().copy()
    # Finite, but its square is not.
    label[:] = np.where(np.arange(len(label)) % 2, 1e30, -1e30)
    position = encoded.column_names.index("label:watch")
    data.publish(
        "2026-01-01", encoded.set_column(position, encoded.schema.field(position), [label])
    )
    with pytest.raises(TrainingError, match=r"(?s)step 0.*watch (inf|nan).*row keys \d+"):
        train(experiment_of(data, "train.max_skipped_steps=0"), tmp_path / "run")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    data: SmallData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    experiment = experiment_of(data, "train.evaluate_every=6")
    train(experiment, run)
    whole = weights_of(run)
    newest = run / "checkpoints" / versions(run / "checkpoints")[-1] / "tables.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    train(experiment, run, resume=True)
    assert "publish.fell_back" in caplog.text
    assert_bit_equal(weights_of(run), whole)


def test_a_checkpoint_of_another_run_is_refused(data: SmallData, tmp_path: Path) -> None:
    train(experiment_of(data, "train.steps=2"), tmp_path / "run")
    schema = json.loads((tmp_path / "run" / "schema.json").read_text())
    schema["tables"]["tag"]["dim"] = 8
    (tmp_path / "run" / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(ArtifactError, match="model digest"):
        load_run(tmp_path / "run")


def test_a_run_keeps_its_encoder_and_reads_without_the_originals(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    train(experiment_of(data, "train.steps=2"), tmp_path / "run")
    for name in ("schema.toml", "encoder"):
        os.rename(tmp_path / name, tmp_path / f"{name}.gone")
    trained = load_run(tmp_path / "run")
    assert trained.encoder.digest == data.encoder.digest
    assert trained.schema == data.schema
    assert not trained.model.training


def test_no_file_of_a_run_is_a_pickle(data: SmallData, tmp_path: Path) -> None:
    train(experiment_of(data, "train.steps=2"), tmp_path / "run")
    suffixes = {
        path.suffix for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()
    }
    assert suffixes == {".json", ".safetensors", ""}
    assert {
        path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_file()
    } == {"BEST", "CURRENT"}


def test_the_criterion_is_named_and_checked() -> None:
    schema = small_schema()
    assert criterion_for(schema, None).metric == "mean_auc"
    assert criterion_for(schema, "purchase|click.normalized_entropy").metric
    with pytest.raises(ConfigError, match=r"did you mean 'purchase\.auc'"):
        criterion_for(schema, "purchas.auc")
    only_watch = schema.model_copy(update={"tasks": {"watch": schema.tasks["watch"]}})
    assert criterion_for(only_watch, None).metric == "mean_negative_mse"


def test_the_best_record_is_the_earliest_of_equals() -> None:
    records = [{"step": step, "score": score} for step, score in ((1, 0.5), (2, 0.7), (3, 0.7))]
    best = best_record(records)
    assert best is not None
    assert best["step"] == 2


def test_a_run_directory_opens_to_what_was_asked_for(data: SmallData, tmp_path: Path) -> None:
    experiment = experiment_of(data, "train.steps=2")
    train(experiment, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.experiment.differences(experiment) == (
        f"schema_file: {tmp_path / 'run' / 'schema.json'}, not {data.root / 'schema.toml'}",
    )


def test_threads_are_half_the_cores_unless_asked_for() -> None:
    assert 1 <= choose_threads(None) <= max(1, len(os.sched_getaffinity(0)) // 2)
    assert choose_threads(3) == 3
