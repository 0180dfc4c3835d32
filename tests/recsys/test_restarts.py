"""A lost worker starts a training again, from its checkpoint; a mistake does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.training.distributed.restarts import WorkerLost, with_restarts


def begin(run: Path) -> None:
    """What an attempt leaves that began a run."""
    run.mkdir(exist_ok=True)
    (run / "experiment.json").unlink(missing_ok=True)
    (run / "experiment.json").write_text("{}", encoding="utf-8")


def attempts(*steps: Callable[[], None]) -> tuple[list[bool], Callable[[bool], str]]:
    """An attempt that takes these steps one call after the other, and what it was told at each."""
    told: list[bool] = []

    def attempt(resume: bool) -> str:
        told.append(resume)
        steps[len(told) - 1]()
        return "done"

    return told, attempt


def lose() -> None:
    raise WorkerLost("worker 1 was ended by SIGKILL")


def nothing() -> None:
    return


def test_a_training_goes_on_once_it_has_begun(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def lost_after_the_beginning() -> None:
        begin(run)
        lose()

    told, attempt = attempts(lose, lost_after_the_beginning, lose, nothing)
    assert with_restarts(attempt, run, resume=False, max_restarts=3) == "done"
    assert told == [False, False, True, True]


def test_a_run_that_lay_there_before_is_not_gone_on_with(tmp_path: Path) -> None:
    begin(tmp_path)
    told, attempt = attempts(lose, nothing)
    with_restarts(attempt, tmp_path, resume=False, max_restarts=1)
    assert told == [False, False]


def test_a_resumed_run_is_resumed_again(tmp_path: Path) -> None:
    begin(tmp_path)
    told, attempt = attempts(lose, nothing)
    with_restarts(attempt, tmp_path, resume=True, max_restarts=1)
    assert told == [True, True]


def test_workers_are_lost_no_oftener_than_allowed(tmp_path: Path) -> None:
    told, attempt = attempts(lose, lose, lose)
    with pytest.raises(WorkerLost, match="SIGKILL"):
        with_restarts(attempt, tmp_path / "run", resume=False, max_restarts=2)
    assert len(told) == 3


def test_a_mistake_would_come_again(tmp_path: Path) -> None:
    def mistake() -> None:
        raise ConfigError("a wrong value")

    told, attempt = attempts(mistake, nothing)
    with pytest.raises(ConfigError):
        with_restarts(attempt, tmp_path / "run", resume=False, max_restarts=2)
    assert len(told) == 1
