"""One training at a time writes into a run; who holds it is known, and a killed process holds nothing."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recsys import hold
from recsys.errors import ArtifactError
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import Experiment
from recsys.hold import LOCK, held, is_held, require_unheld, wait_until_unheld
from recsys.new_run import new_run
from recsys.run import map_run, open_run
from recsys.training.trainer import train
from recsys.training.training import Training
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import (
    TOML,
    assert_bit_equal,
    experiment_of,
    killed_after,
    weights_of,
)

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from recsys.hold import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "_DYING_SECONDS", 0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("data"))
    (found.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return found


@contextmanager
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run until the block ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def files_of(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def stopped(data: SmallData, run: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A run that ended before its last step, and its experiment."""
    experiment = experiment_of(data, "train.checkpoint_every=4")
    with killed_after(monkeypatch, 6):
        train(experiment, run)
    return experiment


def test_a_second_training_is_refused_with_the_holder_and_changes_nothing(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    experiment = stopped(data, run, monkeypatch)
    with holder(run) as process:
        before = files_of(tmp_path)
        sentence = f"^{run}: process {process.pid} on {socket.gethostname()} is training this run, "
        for resume in (True, False):
            with pytest.raises(ArtifactError, match=sentence + "so nothing was changed; wait"):
                train(experiment, run, resume=resume)
        assert files_of(tmp_path) == before


def test_what_reads_a_run_reads_it_while_it_is_trained(data: SmallData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(experiment_of(data, "train.steps=4"), run)
    with holder(run):
        evaluate(run, tmp_path / "report")
        map_run(run)
        train(experiment_of(data, "train.steps=1"), tmp_path / "next", warm_start=run)


def test_a_killed_holder_leaves_nothing_in_the_way(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    experiment = stopped(data, run, monkeypatch)
    with holder(run) as process:
        os.kill(process.pid, signal.SIGKILL)
        train(experiment, run, resume=True)
    train(experiment, tmp_path / "whole")
    assert_bit_equal(weights_of(run), weights_of(tmp_path / "whole"))
    assert not is_held(run)


def test_a_run_is_held_from_before_its_first_record_to_its_last_write(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has no record yet would be replaced, were it nobody's."""
    run, seen = tmp_path / "run", list[str]()

    def refused(text: str) -> None:
        for resume in (False, True):
            with pytest.raises(ArtifactError, match=f"process {os.getpid()} on .* is training"):
                train(experiment_of(data, "train.steps=2"), run, resume=resume)
        seen.append(text)

    evaluate_first, save = Training.evaluate, Training.save

    def evaluating(training: Training) -> Any:
        if not seen:
            assert not open_run(run).metrics.exists()
            refused("first evaluation")
        return evaluate_first(training)

    def saving(training: Training) -> None:
        save(training)
        refused("checkpoint")

    monkeypatch.setattr(Training, "evaluate", evaluating)
    monkeypatch.setattr(Training, "save", saving)
    assert train(experiment_of(data, "train.steps=2"), run).steps == 2
    assert seen == ["first evaluation", "checkpoint"]
    assert not list(tmp_path.glob(".draft-*"))


def test_of_two_new_runs_made_at_once_one_is_refused(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, experiment = tmp_path / "run", experiment_of(data)
    rename, first = Path.rename, new_run(run, experiment)

    def overtaken(draft: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        first.__enter__()
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(ArtifactError, match="is training this run"), new_run(run, experiment):
        pass
    assert is_held(run)
    first.__exit__(None, None, None)
    assert not is_held(run)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_child_that_was_forked_meanwhile_holds_nothing_afterwards(tmp_path: Path) -> None:
    with held(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        assert not is_held(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_on_a_run_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    """Whoever waits at a run that is replaced meanwhile meets the one who holds the new one."""
    run, old = tmp_path / "run", tmp_path / "old"
    run.mkdir()
    lock, replaced = fcntl.flock, list[Path]()

    def replacing(descriptor: int, operation: int) -> None:
        if not replaced:
            replaced.append(run.rename(old))
            shutil.copytree(old, run)
        lock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hold.fcntl, "flock", replacing)
        with held(run):
            assert is_held(run)
            assert not is_held(old)


def test_the_file_names_the_last_holder_and_readers_need_none(tmp_path: Path) -> None:
    require_unheld(tmp_path / "none")
    require_unheld(tmp_path)
    assert not list(tmp_path.iterdir())
    with held(tmp_path):
        pass
    expected = {"process": os.getpid(), "host": socket.gethostname()}
    assert json.loads((tmp_path / LOCK).read_text()) == expected
    (tmp_path / LOCK).write_text("")
    with held(tmp_path):
        (tmp_path / LOCK).write_text("")
        with pytest.raises(ArtifactError, match="another process is training this run"):
            require_unheld(tmp_path)


def test_a_restart_waits_for_the_end_of_the_attempt_before(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        wait_until_unheld(tmp_path, seconds=0.1)
        assert is_held(tmp_path)
        assert process.stdin is not None
        process.stdin.close()
        wait_until_unheld(tmp_path, seconds=60)
        with held(tmp_path):
            pass


def test_where_there_are_no_locks_training_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(hold.fcntl, "flock", unsupported)
    with held(tmp_path):
        pass
    assert "train.not_held hint='this file system has no locks (No locks available)" in caplog.text
