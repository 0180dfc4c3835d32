"""SIGTERM ends a training after its step, in an evaluation too, with a checkpoint and the way to go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import TrainingStopped
from recsys.experiment import Experiment, load_experiment
from recsys.run import load_run
from recsys.training import training as room
from recsys.training.trainer import train
from recsys.training.training import Training
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import TOML, assert_bit_equal, records_of, weights_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("data"))
    (found.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return found


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    return load_experiment(data.root / "experiment.toml", overrides=overrides)


@contextmanager
def asked_in_step(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """SIGTERM comes in the middle of that step, and ends the block."""
    advance = Training.advance

    def asked(self: Training, batch: Any) -> Any:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", asked)
        with pytest.raises(TrainingStopped, match=rf"stopped by SIGTERM after step {step + 1}; go"):
            yield


@contextmanager
def asked_in_evaluation(
    monkeypatch: pytest.MonkeyPatch, number: int, *, after_step: int
) -> Iterator[None]:
    """SIGTERM comes when the evaluation of that number begins, counted from 0."""
    outcomes_of, calls = room.outcomes_of, 0

    def asked(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
        calls += 1
        return outcomes_of(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(room, "outcomes_of", asked)
        with pytest.raises(TrainingStopped, match=rf"after step {after_step};"):
            yield


def test_a_step_is_finished_and_kept(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(data)
    train(experiment, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with asked_in_step(monkeypatch, 6):
        train(experiment, tmp_path / "run")
    assert load_run(tmp_path / "run", checkpoint="CURRENT").step == 7
    assert signal.getsignal(signal.SIGTERM) is before

    train(experiment, tmp_path / "run", resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


@pytest.mark.parametrize(("number", "step"), [(1, 9), (2, 18)])
def test_an_evaluation_is_left_and_made_up_for(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    experiment = experiment_of(data)
    train(experiment, tmp_path / "whole")
    with asked_in_evaluation(monkeypatch, number, after_step=step):
        train(experiment, tmp_path / "run")
    assert load_run(tmp_path / "run", checkpoint="CURRENT").step == step
    assert step not in [
        record["step"] for record in records_of(tmp_path / "run") if record["kind"] == "validation"
    ]

    train(experiment, tmp_path / "run", resume=True)
    assert records_of(tmp_path / "whole") == records_of(tmp_path / "run")
    for checkpoint in ("BEST", "CURRENT"):
        assert_bit_equal(
            weights_of(tmp_path / "whole", checkpoint), weights_of(tmp_path / "run", checkpoint)
        )


def test_a_run_stopped_before_its_first_step_begins_anew(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(data, "train.steps=2")
    with asked_in_evaluation(monkeypatch, 0, after_step=0):
        train(experiment, tmp_path / "run")
    assert train(experiment, tmp_path / "run", resume=True).steps == 2


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_command_line_says_how_to_go_on(data: SmallData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", str(data.root / "experiment.toml"), str(run), "--set", "train.epochs=5000"]
    with started("-m", "recsys", *command) as process:
        wait_for(run / "metrics.jsonl", process)
        process.terminate()
        _, err = process.communicate(timeout=200)
    assert process.returncode == 143
    assert [line for line in err.splitlines() if line.startswith("recsys:")] == [
        f"recsys: stopped by SIGTERM; {run} holds its newest checkpoint; go on with: "
        f"recsys {' '.join(command)} --resume"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_second_signal_ends_at_once(
    data: SmallData, tmp_path: Path, second: signal.Signals, code: int
) -> None:
    script = (
        "import signal, sys, time\nfrom pathlib import Path\nfrom recsys.training import training\n"
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def stuck(self, batch):\n    Path(sys.argv[-1], 'stuck').touch()\n    time.sleep(1000)\n"
        "training.Training.advance = stuck\nfrom recsys.cli import main\nmain()\n"
    )
    with started(
        "-c", script, "train", str(data.root / "experiment.toml"), str(tmp_path / "run")
    ) as process:
        wait_for(tmp_path / "run" / "stuck", process)
        process.terminate()
        # Launchers and schedulers may send the first one twice.
        process.terminate()
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=30) == code
