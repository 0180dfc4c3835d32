"""Records on disk, and where progress is shown."""

import logging
import sys
from pathlib import Path

import pytest

from recsys.errors import ArtifactError
from recsys.training.journal import Journal, Record, progress_to, read_records


def record(kind: str, step: int) -> Record:
    return {
        "kind": kind,
        "step": step,
        "epoch": 0.5,
        "loss": 1.0 / step,
        "entries": {"click": {"auc": 0.7, "gauc": None}},
    }


def test_records_are_read_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_records(file) == []
    with Journal(file, tmp_path / "tensorboard") as journal:
        journal.append(record("training", 1))
        journal.append(record("validation", 2))
        assert journal.validations() == [record("validation", 2)]
    assert read_records(file) == [record("training", 1), record("validation", 2)]


def test_numbers_go_to_tensorboard_by_path(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    with Journal(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as journal:
        journal.append(record("validation", 4))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"validation/loss", "validation/entries/click/auc"}
    (scalar,) = events.Scalars("validation/loss")
    assert (scalar.step, scalar.value) == (4, 0.25)


def test_a_journal_without_tensorboard_keeps_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Journal(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as journal:
        journal.append(record("training", 1))
    assert read_records(tmp_path / "metrics.jsonl") == [record("training", 1)]
    assert not (tmp_path / "tensorboard").exists()


def test_a_line_cut_off_by_a_kill_is_passed_over_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "training", "step": 1}\n{"kind": "valid', encoding="utf-8")
    assert [item["step"] for item in read_records(file)] == [1]
    Journal(file, tmp_path / "tensorboard", start=5).close()
    assert file.read_text(encoding="utf-8") == '{"kind": "training", "step": 1}\n'


def test_damage_elsewhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "tra\n{"kind": "training", "step": 1}\n', encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: damaged"):
        read_records(file)


def test_records_of_later_steps_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with Journal(file, tmp_path / "tensorboard") as journal:
        for step in (2, 4, 6):
            journal.append(record("training", step))
    Journal(file, tmp_path / "tensorboard", start=4).close()
    assert [item["step"] for item in read_records(file)] == [2, 4]


def test_progress_is_plain_lines_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        progress = progress_to(10, start=0)
        progress.update(5, 0.25, 1000.0)
        progress.close()
    assert "train step=5/10 loss=0.25000 rows_per_second=1000" in caplog.text


def test_progress_is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = progress_to(10, start=2)
    progress.update(5, 0.25, 1000.0)
    progress.close()
    assert "5/10" in capsys.readouterr().err
