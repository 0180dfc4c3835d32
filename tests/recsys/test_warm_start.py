"""A run that begins with what another one has learned: parameters by name and meaning, nothing else, and its report."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.errors import ArtifactError, ConfigError
from recsys.parent import read_parent
from recsys.publish import versions
from recsys.run import load_run, open_run
from recsys.training.journal import read_records
from recsys.training.trainer import Training
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

WATCH = 'watch = { label = "seconds", kind = "regression", mask = "clicked" }\n'


def test_the_same_experiment_begins_with_all_of_the_best_checkpoint(
    project: Project, began: State
) -> None:
    expected = state_of(project.root / "run")

    project.train("same", warm_start=project.root / "run")

    for part in expected:
        assert_equal(began[part], expected[part])
    assert float(next(v for k, v in began["dense"].items() if k.endswith("/step"))) == 9
    report = report_of(project.root / "same")
    assert report["tables"]["user"] == {
        "kept": 39,
        "new": 0,
        "evicted": 0,
        "anew": None,
    }
    assert set(report["dense"]["kept"]) == set(expected["program"])
    assert not report["dense"]["fresh"]


def test_nothing_but_what_was_learned_is_taken_along(project: Project) -> None:
    run = project.train("shorter", "train.steps=2", warm_start=project.root / "run")

    records = read_records(run / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 2]
    assert load_run(run).step == 2
    assert len(versions(run / "checkpoints")) == 1


def test_a_run_says_which_checkpoint_it_began_from(project: Project, tmp_path: Path) -> None:
    first = load_run(project.root / "run").checkpoint
    second = project.train("second", warm_start=project.root / "run")
    newest = second / "checkpoints" / "CURRENT"
    third = project.train("third", warm_start=newest)

    parent = open_run(second).parent
    assert parent is not None
    assert (parent.run, parent.checkpoint) == (project.root / "run", first.version)
    assert (parent.digest, parent.step) == (first.digest, 9)
    grandchild = open_run(third).parent
    assert grandchild is not None
    assert grandchild.run == second
    assert read_parent(project.root / "run") is None
    # Paths are relative: a folder of runs may move.
    shutil.copytree(project.root, tmp_path / "moved")
    moved = open_run(tmp_path / "moved" / "third").parent
    assert moved is not None
    assert moved.run == tmp_path / "moved" / "second"


def test_an_averaged_model_goes_on_from_its_averages(project: Project, began: State) -> None:
    first = project.train("averaged", "train.ema=0.5", "train.steps=4")
    expected = state_of(first)

    project.train("goes-on", "train.ema=0.5", warm_start=first)

    assert_equal(began["program"], expected["program"])


def test_another_architecture_keeps_the_parts_that_fit(project: Project, began: State) -> None:
    expected = state_of(project.root / "run")

    run = project.train("experts", "model.mixing.experts=3", warm_start=project.root / "run")

    dense = report_of(run)["dense"]
    assert dense["fresh"]["mixing.bank.weights.0"].startswith("shape 3x8x")
    assert set(dense["kept"]) == {name for name in expected["program"] if name.startswith("heads")}
    assert not dense["new"]
    assert not dense["dropped"]
    assert torch.equal(began["program"]["heads.weight"], expected["program"]["heads.weight"])
    # A parameter that begins anew has no moments yet.
    assert {key.rpartition("/")[0] for key in began["dense"]} == set(dense["kept"])


def test_a_stage_of_another_kind_begins_anew_even_where_shapes_agree(project: Project) -> None:
    mixing = 'model.mixing={ kind = "omoe", experts = 2, expert_hidden = [8] }'

    run = project.train("kind", mixing, warm_start=project.root / "run")

    fresh = report_of(run)["dense"]["fresh"]
    assert fresh["mixing.bank.weights.0"] == "mixing of kind omoe, was mmoe"
    assert "heads.weight" not in fresh


def test_inputs_in_another_order_make_the_first_layers_begin_anew(
    project: Project, other: Callable[..., Project], began: State
) -> None:
    price = 'price = { kind = "numeric", transform = "log1p" }\n'
    item = 'item_id = { kind = "categorical", table = "item" }\n'
    tags = 'tags = { kind = "multi_valued", table = "tag" }\n'
    new = other((item + tags + price, tags + item + price))

    run = new.train("run", warm_start=project.root / "run")

    report = report_of(run)
    assert set(report["dense"]["fresh"]) == {"mixing.bank.weights.0", "mixing.gates.weight"}
    assert set(report["dense"]["fresh"].values()) == {"the inputs are others, or in another order"}
    assert report["tables"]["item"]["kept"] > 0


def test_tasks_in_another_order_keep_all_that_they_learned(
    project: Project, other: Callable[..., Project], began: State
) -> None:
    expected = state_of(project.root / "run")
    new = other((WATCH, ""), ("[tasks]\n", f"[tasks]\n{WATCH}"))

    run = new.train("run", warm_start=project.root / "run")

    dense = report_of(run)["dense"]
    assert set(dense["kept"]) == set(expected["program"])
    assert not any(dense[part] for part in ("parts", "fresh", "new", "dropped"))
    # The order was click, purchase, watch.
    order = [2, 0, 1]
    for name in ("mixing.gates.weight", "heads.bank.weights.0", "heads.weight", "heads.bias"):
        assert torch.equal(began["program"][name], expected["program"][name][order])
        for moment in ("exp_avg", "exp_avg_sq"):
            key = f"{name}/{moment}"
            assert torch.equal(began["dense"][key], expected["dense"][key][order])
        assert began["dense"][f"{name}/step"] == 9
    shared = "mixing.bank.weights.0"
    assert torch.equal(began["program"][shared], expected["program"][shared])


def test_a_task_more_and_one_less_leave_the_others_what_they_learned(
    project: Project,
    other: Callable[..., Project],
    began: State,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="recsys")
    expected = state_of(project.root / "run")
    more = 'resale = { label = "purchased", given = "click" }\n'
    new = other((WATCH, ""), ("[tasks]\n", f"[tasks]\n{more}"))

    run = new.train("run", warm_start=project.root / "run")

    dense = report_of(run)["dense"]
    assert set(dense["kept"]) == set(expected["program"])
    told = {"fresh": {"task resale": "task resale is new"}}
    told |= {"dropped": {"task watch": "task watch is gone"}}
    names = ["mixing.gates.weight", "heads.weight", "heads.bias", "heads.bank.weights.0"]
    assert dense["parts"] == dict.fromkeys([*names, "heads.bank.biases.0"], told)
    # Of click and purchase; a new task begins at its own base rate.
    assert torch.equal(began["program"]["heads.bias"][1:], expected["program"]["heads.bias"][:2])
    assert began["program"]["heads.bias"][0] != expected["program"]["heads.bias"][2]
    moments = began["dense"]["heads.bank.weights.0/exp_avg"]
    assert torch.equal(moments[1:], expected["dense"]["heads.bank.weights.0/exp_avg"][:2])
    assert not moments[0].any()
    lines = next(text for text in caplog.messages if text.startswith("warm start")).splitlines()
    assert "  dense: 7 tensors kept, 5 of them in part, with AdamW's moments" in lines
    listed = f"  dense: {', '.join(names)} and 1 more: parts "
    assert f"{listed}begin anew (task resale is new)" in lines
    assert f"{listed}dropped (task watch is gone)" in lines


def test_a_run_killed_before_its_first_checkpoint_begins_from_its_parent_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = project.train("whole", warm_start=project.root / "run")

    def stopped(training: Training, batch: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            project.train("killed", warm_start=project.root / "run")
    project.train("killed", resume=True)

    for part, expected in state_of(whole).items():
        assert_equal(state_of(project.root / "killed")[part], expected)


def test_the_report_is_told_in_lines(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="recsys")

    project.train("told", "model.mixing.experts=3", warm_start=project.root / "run")

    told = next(text for text in caplog.messages if text.startswith("warm start from")).splitlines()
    assert told[0].startswith(f"warm start from {project.root / 'run'}, checkpoint 20")
    assert told[0].endswith(", step 9")
    assert "  table user: 39 ids kept, 0 new, 0 evicted" in told
    assert "  table seen.age: all rows kept" in told
    assert "  dense: 4 tensors kept, with AdamW's moments" in told
    assert any(line.endswith("begins anew (shape 3x8, was 2x8)") for line in told)


def test_a_warm_start_that_keeps_nothing_is_refused(
    project: Project, other: Callable[..., Project]
) -> None:
    new = other(
        ("dim = 4 }", "dim = 8 }"),
        ('[tasks]\nclick = { label = "clicked" }', '[tasks]\nopened = { label = "clicked" }'),
        ('given = "click"', 'given = "opened"'),
        (WATCH, WATCH.replace("watch", "seen")),
    )
    mixing = 'model.mixing={ kind = "omoe", experts = 2, expert_hidden = [8] }'

    with pytest.raises(ConfigError, match="no table and no parameter of it fits this run"):
        new.train("run", mixing, warm_start=project.root / "run")
    assert not (new.root / "run").exists()


def test_what_is_no_run_and_what_is_two_wishes_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is neither a run nor a checkpoint of one"):
        project.train("none", warm_start=tmp_path)
    with pytest.raises(ConfigError, match="leave one of them out"):
        project.train("run", resume=True, warm_start=project.root / "run")
    nameless = project.root / "run" / "checkpoints" / "20260101T000000.000000Z-00"
    with pytest.raises(ArtifactError, match="no checkpoint '2026"):
        project.train("none", warm_start=nameless)
    assert not (project.root / "none").exists()


def test_a_damaged_record_of_the_parent_is_told(project: Project) -> None:
    run = project.train("damaged", warm_start=project.root / "run")
    (run / "parent.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"parent\.json: cannot be read"):
        _ = open_run(run).parent
