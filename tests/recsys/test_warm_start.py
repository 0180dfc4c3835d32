"""A run that begins with what another one has learned: rows by id, parameters by name and meaning, nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recsys import tensor_files
from recsys.encode import load_encoder
from recsys.errors import ArtifactError, ConfigError
from recsys.experiment import load_experiment
from recsys.fitting import fit
from recsys.models.embeddings.tables import Part
from recsys.models.embeddings.updates import Quantity
from recsys.parent import read_parent
from recsys.publish import versions
from recsys.run import load_run, open_run
from recsys.schema import MISSING_ROW, UNKNOWN_ROW
from recsys.tensor_files import Block, read_tensors, stored_tensors, write_blocks, write_tensors
from recsys.training.checkpoint import StoredTraining
from recsys.training.journal import read_records
from recsys.training.row_origins import Fresh, Origin
from recsys.training.trainer import Training, train
from recsys.training.warm_start import take_rows
from tests.recsys import small_data as small_data_module
from tests.recsys.small_data import SmallData, raw_rows, small_data, small_schema

TOML = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
batch_size = 64

[model]
embeddings = { backend = "plain", initial_accumulator = 0.1 }
mixing = { kind = "mmoe", experts = 2, expert_hidden = [8] }
heads = { kind = "towers", hidden = [4] }

[optimizer]
embedding_lr = 0.1
dense_lr = 0.01

[train]
epochs = 1
threads = 1
"""
State = dict[str, dict[str, Tensor]]


class Project:
    """A folder with data, an experiment and the runs that tests make."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.data: SmallData = small_data(root)
        (root / "experiment.toml").write_text(TOML, encoding="utf-8")

    def train(self, name: str, *overrides: str, **how: Any) -> Path:
        """The run of a name, of one step unless told otherwise."""
        steps = ("train.steps=1", *overrides)
        experiment = load_experiment(self.root / "experiment.toml", overrides=steps)
        train(experiment, self.root / name, **how)
        return self.root / name


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project(tmp_path_factory.mktemp("warm") / "old")
    found.train("run", "train.steps=9")
    return found


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """Makes a project of another schema, or of rows that make other vocabularies."""

    def make(*changes: tuple[str, str], raw: Callable[..., pa.Table] = raw_rows) -> Project:
        text = small_data_module.SCHEMA_TOML
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        monkeypatch.setattr(small_data_module, "SCHEMA_TOML", text)
        monkeypatch.setattr(small_data_module, "raw_rows", raw)
        return Project(tmp_path / "new")

    return make


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> State:
    """The state of the last training before its first step."""
    found: State = {}
    evaluate = Training.evaluate

    def watched(training: Training) -> Any:
        if training.step == 0:
            model = training.model
            found["program"] = {k: v.clone() for k, v in model.program.state_dict().items()}
            found["dense"] = {k: v.clone() for k, v in training.optimizer.dense.state().items()}
            tables = model.embeddings
            found["tables"] = {k: v.clone() for k, v in tables.table_weights().items()}
            found["sums"] = {k: v.clone() for k, v in tables.optimizer_state().items()}
        return evaluate(training)

    monkeypatch.setattr(Training, "evaluate", watched)
    return found


def state_of(run: Path) -> State:
    """What a run's best checkpoint holds."""
    path = load_run(run).checkpoint.path
    files = {
        "program": "program",
        "dense": "dense_optimizer",
        "tables": "tables",
        "sums": "table_optimizer",
    }
    return {name: read_tensors(path / f"{file}.safetensors") for name, file in files.items()}


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "warm_start.json").read_text())
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


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


def test_an_averaged_model_goes_on_from_its_averages(project: Project, began: State) -> None:
    first = project.train("averaged", "train.ema=0.5", "train.steps=4")
    expected = state_of(first)

    project.train("goes-on", "train.ema=0.5", warm_start=first)

    assert_equal(began["program"], expected["program"])


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


def test_tasks_in_another_order_make_dense_parts_begin_anew(
    project: Project, other: Callable[..., Project], began: State
) -> None:
    watch = 'watch = { label = "seconds", kind = "regression", mask = "clicked" }\n'
    new = other((watch, ""), ("[tasks]\n", f"[tasks]\n{watch}"))

    run = new.train("run", warm_start=project.root / "run")

    dense = report_of(run)["dense"]
    assert not dense["kept"]
    assert set(dense["fresh"].values()) == {"the tasks are others, or in another order"}
    assert began["dense"] == {}


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
    )

    with pytest.raises(ConfigError, match="no table and no parameter of it fits this run"):
        new.train("run", warm_start=project.root / "run")
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
