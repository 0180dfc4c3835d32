"""Several workers from the command line: other numbers of them, methods that look at gradients, and their ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from recsys.errors import ConfigError
from recsys.evaluation.evaluate import evaluate
from recsys.export import export
from recsys.hold import is_held
from recsys.publish import resolve
from recsys.training.distributed.launcher import launch
from recsys.training.journal import read_records
from recsys.training.trainer import train
from tests.recsys.test_skipped_steps import AT_THE_GATE, BEHIND_IT, Cells, data_with, listed
from tests.recsys.test_workers import (
    AHEAD,
    BATCHES,
    CASES,
    EXPERIMENT,
    ROOT,
    Trained,
    assert_close,
    data_in,
    losses_of,
    start,
    state_of,
    stopped_at,
)

WIDE = 'sharding.constraints={ item = { kinds = ["column_wise"], min_partition = 4 } }'
SLOW_CASES: dict[str, dict[str, Any]] = {
    **{
        kind: {"overrides": [f'objective.balance={{ kind = "{kind}" }}']}
        for kind in ("uncertainty", "gradnorm", "pcgrad", "famo")
    },
    "famo-ahead": {"overrides": ['objective.balance={ kind = "famo" }', AHEAD]},
    **{
        f"{kind}-parts": {
            "overrides": [f'objective.balance={{ kind = "{kind}" }}', "train.accumulate=3"]
        }
        for kind in ("gradnorm", "pcgrad")
    },
    "dropout": {"overrides": ["model.mixing.expert_dropout=0.2"]},
    "dropout-ahead": {"overrides": ["model.mixing.expert_dropout=0.2", AHEAD]},
    "columns": {"overrides": [WIDE]},
    "adagrad-columns": {"overrides": [WIDE, "optimizer.embeddings=adagrad"]},
    "vector-columns": {
        "overrides": [WIDE, "optimizer.embeddings=adagrad"],
        "form": "vectors",
        "alone": "adagrad-columns",
    },
    "sgd": {"overrides": ["optimizer.embeddings=sgd", "optimizer.embedding_lr=1.0"]},
    "bf16": {"overrides": ["train.precision=bf16"]},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = data_in(tmp_path_factory.mktemp("workers"))
    # Columns can be cut in pieces of four; widths are no part of what rows were encoded for.
    schema = (folder / "schema.toml").read_text()
    wide = schema.replace("item = { rows = 128, dim = 4 }", "item = { rows = 128, dim = 8 }")
    (folder / "schema.toml").write_text(wide)
    CASES.update(SLOW_CASES)
    start(folder, {"mmoe": CASES["mmoe"]} | SLOW_CASES)
    yield Trained(folder)
    for name in SLOW_CASES:
        del CASES[name]


def command(folder: Path, run: str, *options: str) -> list[str]:
    train_it = [sys.executable, "-m", "recsys", "train", str(folder / "experiment.toml")]
    return [*train_it, str(folder / run), "--workers", "2", *options]


@contextmanager
def started(folder: Path, run: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command line with two workers, ended when the block ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(folder, run, *options),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            launcher = psutil.Process(process.pid)
            for item in [*launcher.children(recursive=True), launcher]:
                item.kill()
            process.communicate()


def told(process: subprocess.Popen[str]) -> list[str]:
    """What the command line and its workers said for a person, once all have ended."""
    _, err = process.communicate(timeout=200)
    return [line for line in err.splitlines() if line.startswith(("recsys:", "Traceback"))]


@pytest.mark.slow
def test_one_process_between_two_workers_and_two_again(trained: Trained) -> None:
    folder = trained.folder
    alone = stopped_at(folder / "mmoe", 8, folder / "two-one")
    train(trained.experiment("mmoe"), alone, resume=True)
    stopped_at(alone, 16, folder / "two-one-two")

    with started(folder, "two-one-two", "--resume", "--json") as process:
        out, err = process.communicate(timeout=200)

    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 2 * BATCHES
    for run in ("two-one", "two-one-two"):
        assert losses_of(folder / run) == pytest.approx(losses_of(folder / "mmoe"), rel=1e-5)
        assert_close(state_of(folder / run), state_of(folder / "mmoe"), 1e-5)


@pytest.mark.slow
def test_what_workers_trained_is_evaluated_and_exported_as_ever(
    trained: Trained, tmp_path: Path
) -> None:
    days = ["2026-01-03"]
    reports = [
        evaluate(run, tmp_path / run.name, days=days).report
        for run in (trained.folder / "mmoe", trained.alone("mmoe"))
    ]
    for entry, other in zip(reports[0].entries, reports[1].entries, strict=True):
        assert entry.rows == other.rows
        assert getattr(entry, "log_loss", 0.0) == pytest.approx(getattr(other, "log_loss", 0.0))
    bundle = export(trained.folder / "mmoe", tmp_path / "bundle")
    assert resolve(tmp_path / "bundle", kind="bundle").version == bundle.version


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["uncertainty", "gradnorm", "pcgrad", "famo", "gradnorm-parts", "pcgrad-parts"]
)
def test_balancing_methods_see_the_gradients_of_all_workers(trained: Trained, name: str) -> None:
    alone = trained.alone(name)
    assert losses_of(trained.folder / name) == pytest.approx(losses_of(alone), rel=1e-4)
    assert_close(state_of(trained.folder / name), state_of(alone), 1e-3)


@pytest.mark.slow
def test_a_second_look_at_a_batch_that_travelled_ahead_is_its_own(trained: Trained) -> None:
    """FAMO computes the losses of a batch again, after its step, while the next batch's ids are on their way."""
    assert_close(state_of(trained.folder / "famo-ahead"), state_of(trained.folder / "famo"), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dropout", "dropout-ahead"])
def test_workers_that_stopped_go_on_to_equal_weights(trained: Trained, name: str) -> None:
    """Dropout too: a checkpoint holds every rank's generators."""
    resumed = f"{name}-resumed"
    stopped_at(trained.folder / name, 8, trained.folder / resumed)
    start(trained.folder, {resumed: {**CASES[name], "resume": True}})
    assert_close(state_of(trained.folder / resumed), state_of(trained.folder / "dropout"), 0.0)


@pytest.mark.slow
def test_workers_go_on_with_vectors_where_one_process_had_sums(trained: Trained) -> None:
    run = stopped_at(trained.alone("mmoe"), 8, trained.folder / "goes-on-as-vectors")
    start(trained.folder, {run.name: {"overrides": [], "resume": True, "form": "vectors"}})
    alone = trained.alone("mmoe")
    assert losses_of(run) == pytest.approx(losses_of(alone), rel=1e-5)
    assert_close(state_of(run), state_of(alone), 1e-5)


@pytest.mark.slow
def test_a_table_cut_by_columns_is_stored_whole(trained: Trained) -> None:
    """Its optimizer is another: a sum a row and part. The state stored is their mean, which any layout goes on from."""
    parts = {tuple(part) for note in trained.notes("columns") for part in note["parts"]}
    assert {("item", 0, 128, 0, 4), ("item", 0, 128, 4, 8)} <= parts
    found, alone = state_of(trained.folder / "columns"), state_of(trained.alone("columns"))
    assert_close(found, alone, 1e-2)
    # After one step the gradients were the same, and so is the mean.
    run = stopped_at(trained.folder / "columns", 4, trained.folder / "columns-alone-4")
    train(trained.experiment("columns"), run, resume=True)
    assert losses_of(run) == pytest.approx(losses_of(trained.folder / "columns"), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adagrad-columns", "vector-columns", "sgd"])
def test_state_that_each_number_has_of_its_own_is_cut_like_the_numbers(
    trained: Trained, name: str
) -> None:
    alone = trained.alone(name)
    assert losses_of(trained.folder / name) == pytest.approx(losses_of(alone), rel=1e-5)
    assert_close(state_of(trained.folder / name), state_of(alone), 1e-5)


@pytest.mark.slow
def test_workers_compute_in_bf16_as_one_process_does(trained: Trained) -> None:
    """Sums in another order round to other bits, of which a bf16 number has eight: one in 256."""
    found, alone = losses_of(trained.folder / "bf16"), losses_of(trained.alone("bf16"))
    float32 = losses_of(trained.alone("mmoe"))
    assert found == pytest.approx(alone, rel=1 / 256)
    assert found != pytest.approx(float32, rel=1e-5)


@pytest.mark.slow
def test_a_mistake_that_every_worker_meets_is_told_once(trained: Trained) -> None:
    rates = ("--set", "optimizer.dense_lr=1e30", "--set", "optimizer.clip_norm=1e30")
    rates += ("--set", "train.max_skipped_steps=0")
    with started(trained.folder, "diverged", *rates) as process:
        (sentence,) = told(process)
    assert process.returncode == 2
    assert re.match(
        r"recsys: step 1: .* 61 rows, the first with row keys (\d+, ){4}\d+\)", sentence
    )


@pytest.mark.slow
def test_a_killed_worker_ends_all(trained: Trained) -> None:
    options = ("--set", "train.epochs=5000", "--max-restarts", "0")
    with started(trained.folder, "killed", *options) as process:
        workers = workers_at_work(process, trained.folder / "killed")
        workers[1].kill()
        (sentence,) = told(process)
        assert not any(item.is_running() for item in workers)
    assert process.returncode == 2
    assert sentence.startswith("recsys: worker 1 was ended by SIGKILL, and the others with it; ")


@pytest.mark.slow
def test_a_killed_worker_starts_all_again_from_the_checkpoint(trained: Trained) -> None:
    with started(trained.folder, "restarted", "--set", "train.epochs=10") as process:
        workers_at_work(process, trained.folder / "restarted")[1].kill()
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert re.search(r"train\.restart restart=1/3 from=checkpoint because='worker 1 was", err)
    uninterrupted = train(
        trained.experiment("mmoe").model_copy(
            update={"train": trained.experiment("mmoe").train.model_copy(update={"epochs": 10})}
        ),
        trained.folder / "uninterrupted",
    )
    assert losses_of(trained.folder / "restarted") == pytest.approx(
        losses_of(uninterrupted.path), rel=1e-4
    )
    assert_close(state_of(trained.folder / "restarted"), state_of(uninterrupted.path), 1e-4)


@pytest.mark.slow
def test_workers_whose_launcher_is_killed_stop_with_a_checkpoint(trained: Trained) -> None:
    run = trained.folder / "orphans"
    options = ("--set", "train.epochs=5000", "--set", "train.patience=5000")
    with started(trained.folder, run.name, *options) as process:
        workers = workers_at_work(process, run)
        process.kill()
        _, left = psutil.wait_procs(workers, timeout=60)
        for item in left:
            item.kill()
        process.communicate()
    assert not left
    assert not is_held(run)
    assert not list((run / "checkpoints").glob(".draft-*"))


@pytest.mark.slow
def test_ctrl_c_ends_all_with_the_way_to_go_on(trained: Trained) -> None:
    with started(trained.folder, "stopped", "--set", "train.epochs=5000") as process:
        workers = workers_at_work(process, trained.folder / "stopped")
        process.send_signal(signal.SIGINT)
        (sentence,) = told(process)
        assert not any(item.is_running() for item in workers)
    assert process.returncode == 130
    assert "stopped holds its newest checkpoint; go on with: recsys train" in sentence
    assert sentence.endswith("--set train.epochs=5000 --workers 2 --resume")


@pytest.mark.slow
@pytest.mark.parametrize("ahead", ["false", "true"])
def test_sigterm_ends_all_after_the_same_step(trained: Trained, ahead: str) -> None:
    options = ("--set", f"sharding.pipeline={ahead}")
    options += ("--set", "train.checkpoint_every=1000", "--set", "train.evaluate_every=2")
    options += ("--set", "train.epochs=5000", "--set", "train.patience=5000")
    run = trained.folder / f"asked-{ahead}"
    with started(trained.folder, run.name, *options) as process:
        workers = workers_at_work(process, run)
        process.terminate()
        (sentence,) = told(process)
        assert not any(item.is_running() for item in workers)
    assert process.returncode == 143
    assert sentence.startswith(f"recsys: stopped by SIGTERM; {run} holds its newest checkpoint; go")
    assert sentence.endswith("--set train.patience=5000 --workers 2 --resume")
    assert not list((run / "checkpoints").glob(".draft-*"))


@pytest.mark.slow
def test_one_worker_that_is_asked_to_stop_stops_all(trained: Trained) -> None:
    with started(trained.folder, "asked-one", "--set", "train.epochs=5000") as process:
        workers = workers_at_work(process, trained.folder / "asked-one")
        workers[1].terminate()
        (sentence,) = told(process)
    assert process.returncode == 143
    assert sentence.startswith("recsys: stopped by SIGTERM; ")


@pytest.mark.slow
@pytest.mark.parametrize("cells", [AT_THE_GATE, BEHIND_IT], ids=["at the gate", "behind it"])
def test_workers_skip_the_steps_that_one_process_skips(
    tmp_path_factory: pytest.TempPathFactory, cells: Cells
) -> None:
    folder = tmp_path_factory.mktemp("skipping")
    data_with(cells, folder)
    # A step that is passed over looks nothing up before the evaluation that follows it.
    often = EXPERIMENT.replace("log_every = 1", "log_every = 1\nevaluate_every = 1\npatience = 100")
    (folder / "experiment.toml").write_text(often, encoding="utf-8")
    start(folder, {name: CASES[name] for name in ("mmoe", "ahead")})
    alone = Trained(folder).alone("mmoe")
    runs = (alone, folder / "mmoe", folder / "ahead")
    skipped = [[(line["step"], line["row_keys"]) for line in listed(run)] for run in runs]
    assert skipped[0] == skipped[1] == skipped[2]
    assert len(skipped[0]) == 2
    assert_close(state_of(folder / "mmoe"), state_of(alone), 1e-5)
    assert_close(state_of(folder / "ahead"), state_of(folder / "mmoe"), 0.0)
    found, expected = (validations_of(folder / name) for name in ("ahead", "mmoe"))
    assert found == expected


def validations_of(run: Path) -> list[dict[str, Any]]:
    records = read_records(run / "metrics.jsonl")
    return [record for record in records if record["kind"] == "validation"]


def workers_at_work(process: subprocess.Popen[str], run: Path) -> list[psutil.Process]:
    """The workers, in the order of their ranks, once they have written a checkpoint."""
    until = time.monotonic() + 200
    while not (run / "checkpoints" / "CURRENT").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)
    return sorted(
        psutil.Process(process.pid).children(), key=lambda item: int(item.environ()["RANK"])
    )


def test_a_worker_of_torchrun_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of several workers already"):
        launch(["train", "experiment.toml"], Path("run"), workers=2, resume=False, max_restarts=0)
