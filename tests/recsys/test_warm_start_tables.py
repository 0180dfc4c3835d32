"""Tables of a run that begins with what another one has learned: rows follow their ids, with the optimizer's state."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recsys import tensor_files
from recsys.encode import load_encoder
from recsys.experiment import load_experiment
from recsys.fitting import fit
from recsys.models.embeddings.tables import Part
from recsys.models.embeddings.updates import Quantity
from recsys.schema import MISSING_ROW, UNKNOWN_ROW
from recsys.tensor_files import Block, stored_tensors, write_blocks, write_tensors
from recsys.training.checkpoint import StoredTraining
from recsys.training.row_origins import Fresh, Origin
from recsys.training.warm_start import take_rows
from tests.recsys.small_data import raw_rows, small_schema
from tests.recsys.warm_runs import (
    Project,
    State,
    assert_equal,
    began,
    other,
    project,
    report_of,
    state_of,
)

__all__ = ["began", "other", "project"]


def turned(count: int, *, seed: int) -> pa.Table:
    """Rows with other items and users, so that vocabularies share a part and in another order."""
    rows = raw_rows(count, seed=seed + 100)
    items = pa.array([(7 * item) % 90 + 40 for item in rows["item_id"].to_pylist()])
    users = pa.array([f"u{int(user[1:]) // 2 + 10}" for user in rows["user_id"].to_pylist()])
    columns = {"item_id": items, "user_id": users}
    return pa.table({name: columns.get(name, rows[name]) for name in rows.column_names})


def test_rows_follow_their_ids_to_other_places(
    project: Project, other: Callable[..., Project], began: State
) -> None:
    old, expected = load_encoder(project.root / "encoder"), state_of(project.root / "run")
    new = other(raw=turned)

    run = new.train("run", warm_start=project.root / "run")

    fresh = initial_tables(new)
    for table in ("user", "item", "tag"):
        before = old.vocabularies[table].values.to_pylist()
        after = new.data.encoder.vocabularies[table].values.to_pylist()
        moved = 0
        for row, value in enumerate(after, start=2):
            weight, sums = began["tables"][table][row], began["sums"][table][row]
            if value in before:
                was = before.index(value) + 2
                moved += was != row
                assert torch.equal(weight, expected["tables"][table][was])
                assert torch.equal(sums, expected["sums"][table][was])
            else:
                assert torch.equal(weight, fresh[table][row])
                assert sums == pytest.approx(0.1)
        for row in (MISSING_ROW, UNKNOWN_ROW):
            assert torch.equal(began["tables"][table][row], expected["tables"][table][row])
        kept = len(set(before) & set(after))
        assert report_of(run)["tables"][table] == {
            "kept": kept,
            "new": len(after) - kept,
            "evicted": len(before) - kept,
            "anew": None,
        }
        assert moved or table == "tag"


def initial_tables(project: Project) -> dict[str, Tensor]:
    from recsys.models import build_model

    experiment = load_experiment(project.root / "experiment.toml")
    model = build_model(project.data.schema, experiment.model, seed=experiment.train.seed)
    return model.embeddings.table_weights()


def test_an_encoder_that_extends_the_old_one_keeps_every_row_where_it_is(
    project: Project, tmp_path: Path, began: State
) -> None:
    grown = fit(small_schema(), [turned(200, seed=0)], previous=project.data.encoder)
    grown.save(tmp_path / "encoder")
    expected = state_of(project.root / "run")

    run = project.train(
        "grown", f"data.encoder={tmp_path / 'encoder'}", warm_start=project.root / "run"
    )

    before = len(project.data.encoder.vocabularies["item"].values)
    after = len(grown.vocabularies["item"].values)
    assert before < after
    assert report_of(run)["tables"]["item"] == {
        "kept": before, "new": after - before, "evicted": 0, "anew": None,
    }  # fmt: skip
    rows = slice(0, before + 2)
    assert torch.equal(began["tables"]["item"][rows], expected["tables"]["item"][rows])


def test_each_part_of_a_table_takes_its_rows_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ranks hold a table: by rows, by columns, and in blocks of three rows of four numbers."""
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 3 * 4 * 4)
    quantities = (Quantity("sum", "row"), Quantity("mean", "number"), Quantity("steps", "table"))
    old = {
        "t": torch.arange(7.0) + 100,
        "t/mean": 7 + torch.arange(28.0).view(7, 4),
        "t/steps": torch.tensor([5.0]),
    }
    old_OK = torch.arange(28.0).view(7, 4)
    write_blocks(tmp_path / "rows", {"t": (7, 4)}, [Block("t", (0, 0), old_OK)])
    write_tensors(tmp_path / "state", old)
    rows, state = (stored_tensors(tmp_path / name) for name in ("rows", "state"))
    stored = StoredTraining({}, rows, {}, state)
    old_R = [0, 1, 6, -1, 3, 4, 5, -1, 2, -1]
    origins = {"t": Origin(np.array(old_R)), "other": Fresh("a reason")}
    whole, some_rows, some_columns = (0, 10, 0, 4), (3, 9, 0, 4), (2, 10, 1, 3)
    for first, stop, left, right in (whole, some_rows, some_columns):
        part = _part("t", stop - first, right - left, first, left)

        take_rows(part, stored, origins, quantities=quantities)

        assert part.state["steps"] == 5
        for own, was in enumerate(old_R[first:stop]):
            found = [part.weight_RK[own], part.state["mean"][own], part.state["sum"][own]]
            if was < 0:
                assert all((item == -1).all() for item in found)
                continue
            expected = [old_OK[was, left:right], old["t/mean"][was, left:right], old["t"][was]]
            assert all(map(torch.equal, found, expected))
    part = _part("other", 2, 4, 0, 0)
    take_rows(part, stored, origins, quantities=quantities)
    assert (part.weight_RK == -1).all()


def _part(table: str, rows: int, columns: int, first_row: int, first_column: int) -> Part:
    """A part whose numbers are all -1."""
    state = {
        "sum": torch.full((rows,), -1.0),
        "mean": torch.full((rows, columns), -1.0),
        "steps": torch.full((1,), -1.0),
    }
    return Part(table, torch.full((rows, columns), -1.0), state, first_row, first_column)


def test_another_optimizer_of_the_tables_begins_with_their_rows_alone(
    project: Project, began: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="recsys")
    expected = state_of(project.root / "run")

    run = project.train("adam", "optimizer.embeddings=adam", warm_start=project.root / "run")

    assert_equal(began["tables"], expected["tables"])
    assert not any(values.any() for values in began["sums"].values())
    reason = "adam, was rowwise_adagrad"
    assert report_of(run)["table_optimizer_anew"] == reason
    assert f"  tables: the optimizer's state begins anew ({reason})" in caplog.text


def test_hashed_rows_stay_where_both_hash_alike(
    other: Callable[..., Project], began: State
) -> None:
    hashed = other(("user = { rows = 64, dim = 4 }", 'user = { rows = 64, dim = 4, ids = "hash" }'))
    first = hashed.train("first")
    expected = state_of(first)

    second = hashed.train("second", warm_start=first)

    assert torch.equal(began["tables"]["user"], expected["tables"]["user"])
    assert torch.equal(began["sums"]["user"], expected["sums"]["user"])
    assert report_of(second)["tables"]["user"] == {
        "kept": None, "new": None, "evicted": None, "anew": None,
    }  # fmt: skip


def test_tables_of_one_run_alone_are_dropped_or_new(
    project: Project, other: Callable[..., Project]
) -> None:
    new = other(
        ("tag = { rows = 16, dim = 4 }", "label = { rows = 16, dim = 4 }"),
        ('table = "tag"', 'table = "label"'),
    )

    run = new.train("run", warm_start=project.root / "run")

    report = report_of(run)
    assert report["dropped_tables"] == ["tag"]
    assert report["tables"]["label"]["anew"] == "a new table"
