"""Trainings survive kills by the system, as `benchmarks/kill.py` kills them, and it would notice a mixture."""

import shutil
from pathlib import Path

import pytest
from kill import Counts, check_checkpoints, never_killed, prepare, survive

from recsys.publish import MANIFEST, versions


@pytest.mark.slow
def test_a_training_survives_kills_at_any_instant(tmp_path: Path) -> None:
    experiment = prepare(tmp_path, backend="plain")
    counts = survive(experiment, tmp_path, kills=20, seed=1)
    assert counts.kills == 20
    assert counts.in_write > 0
    assert counts.compared > 0
    assert counts.different == 0


@pytest.mark.slow
def test_a_mixture_of_two_steps_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "whole"
    whole = never_killed(prepare(tmp_path, backend="plain"), run)
    first, second, *_ = (run / "checkpoints" / name for name in versions(run / "checkpoints"))
    shutil.copy(first / "tables.safetensors", second)
    counts = Counts()
    # Of the same size, so that the manifest has to say it.
    check_checkpoints(run, whole, counts)
    assert counts.damaged == 1
    shutil.copy(first / MANIFEST, second)
    whole.files[2] = b""
    with pytest.raises(AssertionError, match="a checkpoint is not that of its step"):
        check_checkpoints(run, whole, Counts())
