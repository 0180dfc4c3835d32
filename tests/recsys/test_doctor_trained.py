"""Trained models of eight tasks bring no finding; each fault that is planted in their weights does, by its name.

Every kind of mixing is trained once, to AUCs far above chance, on tasks from four labels in ten rows to three in a
thousand. A fault is planted in the weights that were learned, in the form that the mixing's experts can have it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.days import open_days
from recsys.diagnosis import Diagnosis
from recsys.evaluation.checkup import Checkup
from recsys.evaluation.doctor import examine
from recsys.evaluation.evaluate import score_days
from recsys.experiment import load_experiment
from recsys.models.gates import Gates, SelectiveGates
from recsys.models.probe import Watched, choices
from recsys.run import TrainedRun, load_run
from recsys.training.trainer import train
from tests.recsys.eight_tasks import RATES, TASKS, eight_tasks

pytestmark = pytest.mark.slow

GROUPS = 'groups = { view = ["click", "long_view", "like", "save"], rest = ["follow", "comment", "share", "report"] }'
KINDS = {
    "mmoe": "experts = 4, expert_hidden = [32, 16]",
    "cgc": "task_experts = 2, shared_experts = 2, expert_hidden = [32, 16]",
    "ple": "task_experts = 2, shared_experts = 2, levels = [[32], [16]]",
    "home": f"{GROUPS}, meta_hidden = [32], task_hidden = [16]",
    "adatt": "task_experts = 1, shared_experts = 1, levels = [[32], [16]]",
}
TOML = """
[data]
train = ["train"]
validation = "test"
test = "test"
batch_size = 512

[model]
embeddings = { backend = "plain" }
mixing = { kind = "mmoe" }
heads = { kind = "towers", hidden = [8] }

[train]
epochs = 3
threads = 1
metric = "mean_auc"

[evaluation]
batch_size = 4096
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eight")
    eight_tasks(root, train=30_000, test=20_480)
    (root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return root


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, root: Path) -> Path:
    """A trained run of one kind of mixing."""
    kind: str = request.param
    mixing = f'model.mixing={{ kind = "{kind}", {KINDS[kind]} }}'
    finished = train(load_experiment(root / "experiment.toml", overrides=(mixing,)), root / kind)
    assert finished.score > 0.7
    return root / kind


def diagnosed(trained: TrainedRun) -> Diagnosis:
    """The diagnosis without removals, which take as long again, and with gradients of five batches."""
    days = open_days(trained.experiment.data.directory, ["test"], encoder=trained.encoder)
    batch_size = days.rows // 8 - 1
    checkup = Checkup(trained, days, batch_size=batch_size)
    with checkup.attached():
        for scored in score_days(trained.model, days, batch_size=batch_size):
            checkup.see(scored.rows)
    return checkup.diagnosis()


def alarms(diagnosis: Diagnosis) -> set[tuple[str, int | None, int | None, str | None]]:
    return {
        (item.check, item.level, item.expert, item.task)
        for item in diagnosis.findings
        if item.severity == "alarm"
    }


def last_level(trained: TrainedRun) -> tuple[int, Watched]:
    watched = trained.model.program.mixing.watched()
    return len(watched), watched[-1]


def shared_expert(item: Watched) -> int:
    return item.groups.index("shared")


@torch.no_grad()
def change_outputs(item: Watched, expert: int, *, factor: float, shift: float) -> None:
    """Scale and shift an expert's last pre-activations; of a normalised expert, behind its normalisation."""
    bank = item.bank
    if bank.norm is None:
        bank.weights[-1][expert] *= factor
        bank.biases[-1][expert].mul_(factor if shift == 0 else 1).add_(shift)
        return
    units = slice(expert * bank.width, (expert + 1) * bank.width)
    bank.norm.norm_scale[units] *= factor
    bank.norm.norm_shift[units] *= factor
    bank.norm.norm_shift[units] += shift


@torch.no_grad()
def add_to_logits(gates: Gates | SelectiveGates | None, logit: Callable[[int, int], float]) -> None:
    """Add to what each gate thinks of each expert it may choose, both counted from 0."""
    assert gates is not None
    allowed_GE = choices(gates)
    added_GE = torch.tensor(
        [[logit(g, e) for e in range(allowed_GE.shape[1])] for g in range(allowed_GE.shape[0])]
    )
    added: Tensor = added_GE if isinstance(gates, Gates) else added_GE[allowed_GE]
    if isinstance(gates, SelectiveGates):
        # The bias is in the order of the choices, which need not be that of the experts.
        order_GE = gates.choices_index.view(allowed_GE.shape)
        added = torch.empty(int(allowed_GE.sum())).index_put((order_GE[allowed_GE],), added)
    before = torch.zeros_like(added) if gates.bias is None else gates.bias
    gates.bias = torch.nn.Parameter(before + added)


def test_a_trained_model_brings_no_finding(run: Path) -> None:
    examination = examine(run)
    assert examination.diagnosis.rows == 20_480
    assert examination.diagnosis.note is None
    assert [item.verdict for item in examination.diagnosis.findings] == []


def test_a_dead_expert_is_found(run: Path) -> None:
    trained = load_run(run)
    level, item = last_level(trained)
    normalised = item.bank.norm is not None
    # Swish has no slope left below -6, ReLU none below 0.
    change_outputs(item, 2, factor=0.01, shift=-8 if normalised else -5)
    diagnosis = diagnosed(trained)
    expert = diagnosis.levels[level - 1].experts[2]
    assert (expert.zero_share, expert.dead_units) == (1, 1)
    assert alarms(diagnosis) == {("zero_share", level, 3, None)}
    assert ("dead_units", level, 3) in {
        (found.check, found.level, found.expert) for found in diagnosis.findings
    }


def test_a_gap_in_scale_is_found(run: Path) -> None:
    trained = load_run(run)
    level, item = last_level(trained)
    change_outputs(item, 2, factor=0.01, shift=0)
    diagnosis = diagnosed(trained)
    assert alarms(diagnosis) == {("scale_ratio", level, 3, None)}
    assert diagnosis.levels[level - 1].experts[2].zero_share < 0.9


def test_a_shared_expert_that_one_task_holds_is_found(run: Path) -> None:
    trained = load_run(run)
    level, item = last_level(trained)
    held, owner = shared_expert(item), TASKS.index("follow")
    add_to_logits(item.gates, lambda g, e: 0.0 if e != held else (8.0 if g == owner else -8.0))
    diagnosis = diagnosed(trained)
    # The owner leaves its own experts for it, where it has any.
    unused = {("own_experts_unused", level, None, "follow")}
    assert alarms(diagnosis) - unused == {("degradation", level, held + 1, "follow")}
    use = diagnosis.levels[level - 1].experts[held].occupancy
    assert use is not None
    assert use.score > 0.99
    assert use.effective_readers < 1.1


def test_rare_tasks_that_leave_their_own_experts_are_found(run: Path) -> None:
    trained = load_run(run)
    level, item = last_level(trained)
    if not set(item.groups) & set(TASKS):
        return
    amounts = [-1.5 * math.log(RATES[task] / RATES["click"]) for task in TASKS]
    add_to_logits(item.gates, lambda g, e: -amounts[g] if item.groups[e] == TASKS[g] else 0.0)
    if item.self_gates is not None:
        # As long as a self gate brings own experts, a gate that does not loses nothing.
        assert "own_experts_unused" not in {found[0] for found in alarms(diagnosed(trained))}
        add_to_logits(item.self_gates, lambda g, e: -amounts[g])
    diagnosis = diagnosed(trained)
    found = alarms(diagnosis)
    halves = diagnosis.levels[level - 1].density_coupling_by_half
    assert halves is not None
    assert min(halves) > 0.9
    if item.native and item.self_gates is None:
        # adatt's own experts have a way that no gate can shut.
        assert found == set()
        return
    unused = {task for check, _, _, task in found if check == "own_experts_unused"}
    assert {"save", "report"} <= unused
    assert not unused & {"click", "long_view"}
    assert {(check, at) for check, at, _, _ in found} == {
        ("own_experts_unused", level),
        ("density_coupling", level),
    }


def test_one_expert_that_wins_everywhere_is_found(run: Path) -> None:
    trained = load_run(run)
    level, item = last_level(trained)
    winner = shared_expert(item)
    add_to_logits(item.gates, lambda g, e: 12.0 if e == winner else 0.0)
    diagnosis = diagnosed(trained)
    assert ("dominance", level, winner + 1, None) in alarms(diagnosis)
    others = {found[:3] for found in alarms(diagnosis)} - {("dominance", level, winner + 1)}
    # Tasks with experts of their own then use none of them.
    assert {check for check, _, _ in others} <= {"own_experts_unused"}
