"""Two workers over gloo train what one process trains: losses, weights, metrics, checkpoints, and each row once."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.days import open_days
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.metrics import evaluate_tasks
from recsys.experiment import Experiment, load_experiment
from recsys.models.embeddings.updates import FUSED, TableOptimizer
from recsys.new_run import new_run
from recsys.publish import CURRENT, point, read_version, versions
from recsys.run import CHECKPOINT_KIND, load_run
from recsys.tensor_files import read_tensors
from recsys.training.journal import read_records
from recsys.training.selection import numbers_of
from recsys.training.trainer import train
from tests.recsys import replicated_tables
from tests.recsys.small_data import small_data
from tests.recsys.test_managed_ids import TABLES as MANAGED
from tests.recsys.test_unbounded import columns_of, unbounded_data

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
# 550 rows in batches of 61: the last batch of an epoch has one row, so one of two workers has none.
BATCH = 61
BATCHES = 10
EXPERIMENT = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
batch_size = 61
window_rows = 200

[model]
embeddings = { backend = "torchrec", initial_accumulator = 0.1 }
mixing = { kind = "mmoe", experts = 2, expert_hidden = [8] }
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
log_every = 1
checkpoint_every = 4
keep_checkpoints = 100
threads = 1

[sharding.constraints]
item = { kinds = ["row_wise"] }
tag = { kinds = ["row_wise"] }
user = { kinds = ["table_wise"] }
"seen.age" = { kinds = ["data_parallel"] }
"""
HOME = 'model.mixing={ kind = "home", experts = 2, meta_hidden = [8], task_hidden = [8] }'
# Tables that every worker holds: by default one of a sequence, here all, or those of several slots and of bags.
TABLES = ("user", "item", "tag", "price_bucket", "seen.age")
COPIED = {"mmoe": ("seen.age",), "home": TABLES, "parts": ("item", "tag")}


def copied(*tables: str) -> str:
    """An override that has workers copy these tables."""
    kinds = ", ".join(f'"{name}" = {{ kinds = ["data_parallel"] }}' for name in tables)
    return f"sharding.constraints={{ {kinds} }}"


PARTS = [
    "train.accumulate=3",
    "train.ema=0.9",
    "optimizer.embeddings=adagrad",
    copied("item", "tag"),
    # Its losses are computed before, within and after the step.
    'objective.balance={ kind = "famo" }',
]
AHEAD = "sharding.pipeline=true"
CASES: dict[str, dict[str, Any]] = {
    "mmoe": {"overrides": []},
    # With nothing to send ahead.
    "home": {"overrides": [HOME, "optimizer.dense_lr=1e-4", copied(*TABLES), AHEAD]},
    # As on GPUs, while the one process has the CPU's form.
    "vectors": {"overrides": [], "form": "vectors", "alone": "mmoe"},
    # Ids travel a step ahead, as on GPUs; `like` the same without.
    "ahead": {"overrides": [AHEAD], "alone": "mmoe", "like": "mmoe"},
    "ahead-vectors": {"overrides": [AHEAD], "form": "vectors", "alone": "mmoe", "like": "vectors"},
    "ahead-parts": {"overrides": [AHEAD, *PARTS], "alone": "parts", "like": "parts"},
    # The one process of this case makes its steps at once.
    "parts": {"overrides": PARTS},
    # Each worker keeps the maps, which change after every step, by the ids of both.
    "zch": {
        "overrides": [
            'schema_file="zch-days/schema.toml"',
            'data.directory="zch-days/data"',
            'data.encoder="zch-days/encoder"',
            'sharding.constraints={ item={ kinds=["row_wise"] }, user={ kinds=["data_parallel"] } }',
        ]
    },
}
# From rows whose vocabularies have another order: each worker looks up what its parts of tables come from. Another
# table is copied than in the run that it begins with.
NEXT = [
    'schema_file="next/schema.toml"',
    'data.directory="next/data"',
    'data.encoder="next/encoder"',
    "train.epochs=1",
    copied("item"),
]
WARM: dict[str, dict[str, Any]] = {"warm": {"overrides": NEXT, "warm_start": "mmoe"}}
# Runs that know from their first step on that they pass over one: what travelled for it is looked up by nobody, and the
# evaluation behind it asks for rows of its own.
OFTEN = ["train.steps=4", "train.evaluate_every=1", "train.patience=4"]
PASSED: dict[str, dict[str, Any]] = {
    "passed": {"overrides": OFTEN, "resume": True},
    "ahead-passed": {"overrides": [*OFTEN, AHEAD], "resume": True},
}
# Sums over rows in another order differ by rounding. Biases in front of HoME's normalisation have no gradient but that,
# of which AdamW makes whole steps: they show where running statistics are used, in a batch of one row.
TOLERANCE = {name: 1e-3 if name == "home" else 1e-5 for name in CASES}


@dataclass(frozen=True)
class Trained:
    """A folder with the runs of two workers, `NAME`, and of one process, `NAME-alone`."""

    folder: Path

    def experiment(self, name: str, *more: str) -> Experiment:
        overrides = (*(CASES | WARM | PASSED)[name]["overrides"], *more)
        return load_experiment(self.folder / "experiment.toml", overrides=overrides)

    def notes(self, name: str) -> list[dict[str, Any]]:
        return [
            json.loads((self.folder / f"{name}-{rank}.json").read_text()) for rank in range(WORKERS)
        ]

    def alone(self, name: str) -> Path:
        name = (CASES | WARM)[name].get("alone", name)
        run = self.folder / f"{name}-alone"
        if not run.exists():
            train(self.experiment(name, "train.accumulate=1"), run)
        return run


def start(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Train cases by two workers."""
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORKERS), "-m", "tests.recsys.two_workers", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr


def data_in(folder: Path) -> Path:
    small_data(folder)
    (folder / "experiment.toml").write_text(EXPERIMENT, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = data_in(tmp_path_factory.mktemp("workers"))
    (folder / "next").mkdir()
    small_data(folder / "next", rows={"2026-01-01": 60, "2026-01-02": 120, "2026-01-03": 100})
    (folder / "zch-days").mkdir()
    unbounded_data(folder / "zch-days", tables=MANAGED)
    found = Trained(folder)
    for name in PASSED:
        with new_run(folder / name, found.experiment(name)):
            (folder / name / "skipped_steps.jsonl").write_text('{"step": 1, "skipped": true}\n')
    start(folder, CASES | WARM | PASSED | {"tables": {}})
    return found


each_case = pytest.mark.parametrize("name", list(CASES))


def state_of(run: Path) -> dict[str, Tensor]:
    """All that the newest checkpoint holds but the generators' states."""
    newest = run / "checkpoints" / versions(run / "checkpoints")[-1]
    return {
        f"{file.stem}/{name}": tensor
        for file in newest.glob("*.safetensors")
        if file.stem != "random"
        for name, tensor in read_tensors(file).items()
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def last_validation(run: Path) -> dict[str, Any]:
    *_, last = (
        record for record in read_records(run / "metrics.jsonl") if record["kind"] == "validation"
    )
    return last


def losses_of(run: Path) -> list[float]:
    records = read_records(run / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "training"]


@each_case
def test_losses_and_all_state_are_those_of_one_process(trained: Trained, name: str) -> None:
    alone = trained.alone(name)
    assert len(losses_of(alone)) == 2 * BATCHES
    assert losses_of(trained.folder / name) == pytest.approx(losses_of(alone), rel=TOLERANCE[name])
    assert_close(state_of(trained.folder / name), state_of(alone), TOLERANCE[name])


def test_an_evaluation_behind_a_step_that_is_passed_over_looks_up_its_own_rows(
    trained: Trained,
) -> None:
    found, expected = (
        read_records(trained.folder / name / "metrics.jsonl") for name in ("ahead-passed", "passed")
    )
    assert [item["step"] for item in found if item["kind"] == "training"] == [1, 3, 4]
    assert [item["step"] for item in found if item["kind"] == "validation"] == [1, 2, 3, 4]
    assert [without_speed(item) for item in found] == [without_speed(item) for item in expected]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "like" in case])
def test_ids_that_travel_a_step_ahead_change_no_bit(trained: Trained, name: str) -> None:
    """Checkpoints fall between batches on their way, and so do evaluations."""
    plain = CASES[name]["like"]
    for note, other in zip(trained.notes(name), trained.notes(plain), strict=True):
        # The last batch has none behind it.
        assert note["sent"] == [True] * (2 * BATCHES - 1) + [False]
        assert other["sent"] == [False] * (2 * BATCHES)
        assert note["collections"] == other["collections"]
        assert note["dense"] == other["dense"]
    assert_close(state_of(trained.folder / name), state_of(trained.folder / plain), 0.0)
    found, expected = (
        read_records(trained.folder / item / "metrics.jsonl") for item in (name, plain)
    )
    assert [without_speed(item) for item in found] == [without_speed(item) for item in expected]


def without_speed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in record.items() if name != "rows_per_second"}


@each_case
def test_every_row_is_trained_on_once_an_epoch(trained: Trained, name: str) -> None:
    notes = trained.notes(name)
    sizes = [[len(rows) for rows in note["rows"]] for note in notes]
    assert sizes[0] == ([31] * 9 + [1]) * 2
    assert sizes[1] == ([30] * 9 + [0]) * 2
    for epoch in range(2):
        steps = slice(epoch * BATCHES, (epoch + 1) * BATCHES)
        keys = [key for note in notes for rows in note["rows"][steps] for key in rows]
        assert sorted(keys) == [*range(300), *range(1_000_000, 1_000_250)]


def test_a_worker_holds_a_part_of_the_tables_and_all_of_the_rest(trained: Trained) -> None:
    for name in CASES:
        first, second = trained.notes(name)
        assert first["dense"] == second["dense"]
        assert first["averages"] == second["averages"]
    forms = {name: set(trained.notes(name)[0]["collections"]) for name in ("mmoe", "vectors")}
    assert forms["vectors"] - forms["mmoe"] == {"ShardedFusedEmbeddingCollection"}
    first, second = trained.notes("mmoe")
    parts = [{tuple(part) for part in note["parts"]} for note in (first, second)]
    assert ("item", 0, 64, 0, 4) in parts[0]
    assert ("item", 64, 128, 0, 4) in parts[1]
    assert sum(("user", 0, 64, 0, 4) in held for held in parts) == 1
    assert {part[0] for held in parts for part in held} == set(state_tables(trained.folder))


def test_copies_of_a_table_are_equal_bit_by_bit(trained: Trained) -> None:
    for name, tables in COPIED.items():
        first, second = trained.notes(name)
        assert first["copied"] == second["copied"] == sorted(tables)
        assert first["copies"] == second["copies"]
        whole = [{tuple(part) for part in note["parts"]} for note in (first, second)]
        assert {part[0] for part in whole[0] & whole[1]} == set(tables)


@pytest.mark.parametrize("optimizer", FUSED)
def test_copies_learn_from_the_rows_of_all_workers(
    trained: Trained, optimizer: TableOptimizer
) -> None:
    """Single ids, bags, weighted ids and sequences; workers without rows or without ids; a step that is not sound."""
    expected = replicated_tables.by_hand(optimizer)
    for rank in range(WORKERS):
        found = read_tensors(trained.folder / f"tables-{rank}.safetensors")
        own = {name: found[f"{optimizer}/{name}"] for name in expected}
        assert_close(own, expected, 1e-5)
        assert found[f"{optimizer}: no trace"]


def state_tables(folder: Path) -> list[str]:
    return list(load_run(folder / "mmoe").model.embeddings.table_weights())


@each_case
def test_metrics_are_of_all_rows_of_all_workers(trained: Trained, name: str) -> None:
    """The records of the workers, against one process that scores the same weights."""
    run = load_run(trained.folder / name, checkpoint=CURRENT)
    days = open_days(run.experiment.data.directory, ["2026-01-03"], encoder=run.encoder)
    days = days.with_id_maps(run.id_maps)
    outcomes = outcomes_of(run.model, days, batch_size=run.experiment.evaluation.batch_size)
    expected = {
        entry.name: numbers_of(entry) for entry in evaluate_tasks(outcomes, run.schema.tasks)
    }
    last = last_validation(trained.folder / name)
    assert last["step"] == run.step
    assert last["entries"] == {
        entry: pytest.approx(numbers, rel=1e-6) for entry, numbers in expected.items()
    }


def test_workers_keep_the_id_maps_of_one_process(trained: Trained) -> None:
    run, alone = trained.folder / "zch", trained.alone("zch")
    two, one = (load_run(item, checkpoint=CURRENT).id_maps for item in (run, alone))
    for name in ("user", "item"):
        assert two[name].updates == 2 * BATCHES
        assert columns_of(two[name]) == columns_of(one[name])
    told = [
        [item for item in read_records(path / "metrics.jsonl") if item["kind"] == "ids"]
        for path in (run, alone)
    ]
    assert told[0] == told[1]
    assert told[0][-1]["tables"]["item"]["evicted"]


def test_experts_are_watched_over_the_rows_of_all_workers(trained: Trained) -> None:
    found, alone = (
        last_validation(run)["experts"] for run in (trained.folder / "mmoe", trained.alone("mmoe"))
    )
    assert found == {level: pytest.approx(numbers, rel=1e-4) for level, numbers in alone.items()}


@pytest.mark.parametrize("name", ["mmoe", "vectors"])
def test_one_process_goes_on_where_two_stopped(trained: Trained, name: str) -> None:
    run = stopped_at(trained.folder / name, 12, trained.folder / f"{name}-goes-on-alone")

    train(trained.experiment(name), run, resume=True)

    assert losses_of(run) == pytest.approx(losses_of(trained.folder / name), rel=1e-5)
    assert_close(state_of(run), state_of(trained.folder / name), 1e-5)


def test_workers_begin_with_what_one_process_begins_with(trained: Trained) -> None:
    run, alone = trained.folder / "warm", trained.folder / "warm-alone"

    train(trained.experiment("warm"), alone, warm_start=trained.folder / "mmoe")

    reports = [json.loads((item / "warm_start.json").read_text()) for item in (run, alone)]
    assert reports[0] == reports[1]
    assert 0 < reports[0]["tables"]["item"]["kept"] < 100
    assert losses_of(run) == pytest.approx(losses_of(alone), rel=1e-5)
    assert_close(state_of(run), state_of(alone), 1e-5)


def stopped_at(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as it was after the checkpoint of a step."""
    shutil.copytree(run, copy)
    root = copy / "checkpoints"
    (root / "BEST").unlink(missing_ok=True)
    for version in versions(root):
        found = read_version(root / version, kind=CHECKPOINT_KIND).metadata["step"]
        if found > step:
            shutil.rmtree(root / version)
        elif found == step:
            point(root, version)
    return copy
