"""The doctor finds the faults that are planted, is silent about healthy experts, and its numbers match plain loops."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from recsys.batch import Batch
from recsys.compare import Comparison, Difference
from recsys.days import Days, open_days
from recsys.diagnosis import SHARED, Finding, LevelNumbers, finding_lines
from recsys.evaluation.checks import CHECKS
from recsys.evaluation.doctor import diagnose, examine
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.evaluation.experts import divergences, level_numbers, rank_correlation
from recsys.evaluation.gradients import task_gradients
from recsys.evaluation.removal import Removals
from recsys.evaluation.side_by_side import SideBySide
from recsys.evaluation.verdicts import findings
from recsys.experiment import load_experiment
from recsys.feed import in_order
from recsys.models import build_program, mixings
from recsys.models.probe import Probe, without_experts
from recsys.report import read_report, render_table
from recsys.run import TrainedRun, load_run
from recsys.training.trainer import train
from tests.recsys.small_data import small_data

WIDTH = 12
ROWS = 4_000


def built(kind: str, tasks: Sequence[str] = ("a", "b", "c"), **options: object):  # type: ignore[no-untyped-def]
    stage = mixings[kind]
    torch.manual_seed(0)
    config = stage.Config.parse({"kind": kind, **options}, where="test")
    return stage(config, width=WIDTH, tasks=tuple(tasks)).eval()


def inputs(rows: int = ROWS) -> Tensor:
    """Rows whose first column is 1, so that the first column of a gate's kernel is its bias."""
    x_BI = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
    x_BI[:, 0] = 1
    return x_BI


def numbers(stage, labels: dict[str, int] | None = None, parts: int = 3) -> list[LevelNumbers]:  # type: ignore[no-untyped-def]
    watch = ExpertWatch(stage)
    with watch.attached(), torch.no_grad():
        for part in inputs().chunk(parts):
            stage(part)
    return [
        level_numbers(statistics, level=level, labels=labels or {})
        for level, statistics in enumerate(watch.levels, start=1)
    ]


def found(levels: Sequence[LevelNumbers]) -> list[Finding]:
    return list(findings(levels, (), (), None))


def checks(levels: Sequence[LevelNumbers]) -> set[str]:
    return {item.check for item in found(levels)}


def mmoe(experts: int = 4):  # type: ignore[no-untyped-def]
    return built("mmoe", experts=experts, expert_hidden=[16, 32])


@torch.no_grad()
def set_gates(stage, logits: Callable[[int, int], float]) -> None:  # type: ignore[no-untyped-def]
    """Constant gates of a CGC: `logits` of gate and choice, own experts first, then shared ones."""
    gates = stage.level.gates[0]
    row = 0
    for gate, size in enumerate(gates.sizes):
        for choice in range(size):
            gates.weight[row] = 0
            gates.weight[row, 0] = logits(gate, choice)
            row += 1


def test_a_dead_expert_is_found() -> None:
    stage = mmoe()
    healthy = numbers(stage)[0].experts[2].zero_share
    with torch.no_grad():
        stage.bank.weights[-1][2] *= 0.01
        stage.bank.biases[-1][2] -= 5
    (level,) = numbers(stage)
    assert 0.4 < healthy < 0.6
    assert level.experts[2].zero_share == 1
    assert level.experts[2].dead_units == 1
    assert math.isfinite(level.deviation_ratio)
    assert level.deviation_ratio > 1e6
    assert {(item.check, item.level, item.expert) for item in found([level])} == {
        ("zero_share", 1, 3),
        ("dead_units", 1, 3),
    }
    assert "expert 3 of level 1 is dead: 100% of its outputs are inactive" in {
        item.verdict for item in found([level])
    }


def test_a_gap_in_scale_is_found_where_no_output_is_zero_more_often() -> None:
    stage = mmoe()
    before = numbers(stage)[0].experts[2]
    with torch.no_grad():
        stage.bank.weights[-1][2] *= 0.01
        stage.bank.biases[-1][2] *= 0.01
    (level,) = numbers(stage)
    after = level.experts[2]
    assert after.deviation == pytest.approx(before.deviation / 100, rel=1e-4)
    assert after.zero_share == pytest.approx(before.zero_share, abs=0.01)
    assert 50 < level.deviation_ratio < 200
    assert checks([level]) == {"scale_ratio"}
    (finding,) = found([level])
    assert finding.expert == 3
    assert "times as large as those of expert 3" in finding.verdict


@pytest.mark.parametrize("tasks", [2, 3, 8, 20])
def test_a_shared_expert_that_one_task_holds_is_found_however_many_tasks_there_are(
    tasks: int,
) -> None:
    names = [f"t{number}" for number in range(tasks)]
    stage = built("cgc", names, task_experts=2, shared_experts=1, expert_hidden=[8])
    owner = 1
    set_gates(stage, lambda gate, choice: 0.0 if choice < 2 else (8.0 if gate == owner else -8.0))
    (level,) = numbers(stage)
    occupancy = level.experts[-1].occupancy
    assert occupancy is not None
    assert occupancy.readers == tasks
    assert occupancy.main_reader == "t1"
    assert occupancy.score >= 0.99
    assert occupancy.effective_readers < 1.1
    (finding,) = [item for item in found([level]) if item.check == "degradation"]
    assert "serves only task t1" in finding.verdict
    assert (finding.level, finding.expert, finding.task) == (1, 2 * tasks + 1, "t1")


@pytest.mark.parametrize("tasks", [3, 8, 20])
def test_an_expert_that_others_use_too_is_not_degraded(tasks: int) -> None:
    names = [f"t{number}" for number in range(tasks)]
    stage = built("cgc", names, task_experts=2, shared_experts=1, expert_hidden=[8])
    set_gates(stage, lambda gate, choice: 8.0 if choice == 2 and gate == 0 else 0.0)
    (level,) = numbers(stage)
    held = math.exp(8) / (math.exp(8) + 2)
    top = held / (held + (tasks - 1) / 3)
    occupancy = level.experts[-1].occupancy
    assert occupancy is not None
    assert occupancy.score == pytest.approx((top - 1 / tasks) / (1 - 1 / tasks), rel=1e-4)
    assert "degradation" not in checks([level])


def test_sparse_tasks_that_leave_their_own_experts_are_found() -> None:
    names = [f"t{number}" for number in range(8)]
    labels = {name: round(100_000 * 0.4**number) for number, name in enumerate(names)}
    stage = built("cgc", names, task_experts=2, shared_experts=2, expert_hidden=[8])
    set_gates(
        stage, lambda gate, choice: math.log(0.5) * gate * 1.3 if choice < 2 and gate else 0.0
    )
    (level,) = numbers(stage, labels)
    relative = [gate.own_mass_relative for gate in level.gates]
    assert level.density_coupling == pytest.approx(1)
    assert relative[0] == pytest.approx(1)
    assert relative[-1] is not None
    assert relative[-1] < 0.02
    assert {"density_coupling", "own_experts_unused"} <= checks([level])
    verdicts = [item.verdict for item in found([level]) if item.task == "t7"]
    assert any("task t7 leaves its own experts of level 1 aside" in item for item in verdicts)


def test_healthy_gates_raise_nothing() -> None:
    names = [f"t{number}" for number in range(8)]
    stage = built("cgc", names, task_experts=2, shared_experts=2, expert_hidden=[16, 32])
    with torch.no_grad():
        stage.level.gates[0].weight.normal_(std=0.1 / WIDTH**0.5)
    (level,) = numbers(stage, {name: 10 ** (n % 4 + 1) for n, name in enumerate(names)})
    assert found([level]) == []
    for expert in level.experts[-2:]:
        assert expert.occupancy is not None
        assert expert.occupancy.score < 0.01
    for gate in level.gates:
        assert gate.effective_experts == pytest.approx(4, abs=0.01)
        assert gate.own_mass_relative == pytest.approx(1, abs=0.05)
    assert checks(numbers(mmoe())) == set()


def test_one_expert_that_wins_everywhere_is_found() -> None:
    stage = mmoe()
    with torch.no_grad():
        stage.gates.weight[:, 1, 0] += 9
    (level,) = numbers(stage)
    by_check = {item.check: item for item in found([level])}
    assert by_check["dominance"].severity == "alarm"
    assert by_check["dominance"].expert == 2
    assert by_check["effective_experts"].task in ("a", "b", "c")


def test_experts_that_say_the_same_are_found() -> None:
    stage = mmoe()
    with torch.no_grad():
        for parameter in stage.bank.parameters():
            parameter[1:] = parameter[:1]
    (level,) = numbers(stage)
    assert level.redundancy == pytest.approx(1, abs=1e-5)
    assert checks([level]) == {"redundancy"}


def test_statistics_of_parts_are_those_of_the_whole_and_of_a_plain_computation() -> None:
    stage = mmoe()
    (level,) = numbers(stage, parts=7)
    with torch.no_grad():
        out_BEH, gate_BTE = stage.bank(inputs()), stage.gates(inputs())
    for e, expert in enumerate(level.experts):
        own = out_BEH[:, e].double()
        assert expert.zero_share == pytest.approx(float((own.abs() <= 1e-6).double().mean()))
        assert expert.magnitude == pytest.approx(float(own.abs().mean()), rel=1e-5)
        assert expert.deviation == pytest.approx(float(own.std(correction=0)), rel=1e-5)
        assert expert.dead_units == float((own == 0).all(dim=0).double().mean())
    for t, gate in enumerate(level.gates):
        mean_E = gate_BTE[:, t].double().mean(dim=0)
        assert gate.weights == pytest.approx(mean_E.tolist(), rel=1e-5)
        used_E = (gate_BTE[:, t] * out_BEH.norm(dim=2)).double().mean(dim=0)
        assert gate.contributions == pytest.approx((used_E / used_E.sum()).tolist(), rel=1e-5)
        by_row = torch.special.entr(gate_BTE[:, t]).sum(dim=1).mean()
        assert gate.effective_experts_by_row == pytest.approx(float(by_row.exp()), rel=1e-5)
        assert gate.own_mass is None


def test_divergence_and_rank_correlation_are_scipys() -> None:
    random = np.random.default_rng(0)
    first, second = random.dirichlet(np.ones(9), 2)
    expected = jensenshannon(first, second, base=2) ** 2
    pair = torch.from_numpy(np.stack([first, second]))
    assert float(divergences(pair)[0, 1]) == pytest.approx(expected)
    x, y = random.integers(0, 5, 30).astype(float), random.normal(size=30)
    assert rank_correlation(list(x), list(y)) == pytest.approx(spearmanr(x, y).statistic)


@pytest.mark.parametrize("kind", mixings)
def test_every_mixing_names_who_reads_each_gate(kind: str) -> None:
    names = ("a", "b", "c")
    options: dict[str, object] = {"groups": {"x": ["a", "b"], "y": ["c"]}} if kind == "home" else {}
    stage = built(kind, names, **options)
    watched = [item for item in stage.watched() if item.gates is not None]
    if not watched:
        return
    levels = numbers(stage)
    for level, item in zip(levels, watched, strict=True):
        assert [gate.reader for gate in level.gates] == list(item.readers)
        for gate in level.gates:
            assert sum(gate.weights) == pytest.approx(1, rel=1e-4)
            assert sum(gate.contributions) == pytest.approx(1, rel=1e-4)
            if gate.own_mass_relative is not None:
                assert gate.own_mass_relative == pytest.approx(1, abs=0.1)
    assert {gate.reader for gate in levels[-1].gates} in (set(names), {"every task"})
    assert checks(levels) <= {"divergence"}


def test_a_category_expert_is_asked_of_its_tasks_alone() -> None:
    stage = built("home", groups={"x": ["a", "b"], "y": ["c"]})
    meta, specific = numbers(stage)
    readers = {
        expert.group: expert.occupancy and expert.occupancy.readers for expert in specific.experts
    }
    assert readers == {SHARED: 3, "group x": 2, "group y": None, "a": None, "b": None, "c": None}
    assert [gate.reader for gate in meta.gates] == ["group x", "group y", SHARED]


def test_a_removed_expert_gives_its_weight_to_the_others() -> None:
    stage, x_BI = mmoe(), inputs(50)
    item = stage.watched()[0]
    with torch.no_grad():
        whole = stage(x_BI)
        with without_experts([(item, (1,))]):
            without = stage(x_BI)
        kept = [0, 2, 3]
        gate_BTE = stage.gates(x_BI)[..., kept]
        expected = (gate_BTE / gate_BTE.sum(dim=-1, keepdim=True)) @ stage.bank(x_BI)[:, kept]
        torch.testing.assert_close(without, expected)
        assert (stage(x_BI) == whole).all()


def test_the_watch_keeps_no_activations_and_leaves_no_hooks() -> None:
    stage = mmoe()
    watch = ExpertWatch(stage, every=3)
    with watch.attached(), torch.no_grad():
        stage(inputs(10))
    assert watch.levels[0].rows == 4
    stage(inputs(10))
    assert watch.levels[0].rows == 4
    with Probe().attached(stage) as probe:
        assert probe.levels[0].out_BEH is None


TOML = """
[data]
train = ["2026-01-01"]
validation = "2026-01-02"
test = "2026-01-03"
batch_size = 64

[model]
embeddings = { backend = "plain" }
mixing = { kind = "cgc", task_experts = 2, shared_experts = 2, expert_hidden = [16] }
heads = { kind = "towers", hidden = [4] }

[objective]
weights = { watch = 0.02 }

[train]
epochs = 3
threads = 1

[evaluation]
batch_size = 50
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("doctor")
    small_data(root, rows={"2026-01-01": 600, "2026-01-02": 200, "2026-01-03": 500})
    (root / "experiment.toml").write_text(TOML, encoding="utf-8")
    train(load_experiment(root / "experiment.toml"), root / "run")
    return root / "run"


@pytest.fixture
def trained(run: Path) -> TrainedRun:
    return load_run(run)


def opened(trained: TrainedRun) -> Days:
    return open_days(trained.experiment.data.directory, ["2026-01-03"], encoder=trained.encoder)


def batches(trained: TrainedRun) -> list[Batch]:
    return [item.batch for item in in_order(opened(trained), batch_size=100)]


def found_in(trained: TrainedRun) -> dict[str, Finding]:
    return {item.check: item for item in diagnose(trained, opened(trained)).findings}


def test_a_trained_model_is_examined_and_left_as_it_was(trained: TrainedRun) -> None:
    before = {name: item.clone() for name, item in trained.model.state_dict().items()}
    tables = {name: item.clone() for name, item in trained.model.embeddings.table_weights().items()}
    diagnosis = diagnose(trained, opened(trained))
    assert diagnosis.rows == 500
    assert diagnosis.findings == ()
    for name, item in trained.model.state_dict().items():
        assert (item == before[name]).all(), name
    for name, item in trained.model.embeddings.table_weights().items():
        assert (item == tables[name]).all(), name
    assert all(
        expert.movement is not None and expert.movement > 0.01
        for expert in diagnosis.levels[0].experts
    )


def test_faults_planted_in_trained_weights_are_found(trained: TrainedRun) -> None:
    level = trained.model.program.mixing.level  # type: ignore[attr-defined]
    bank, gates = level.banks[0], level.gates[0]
    with torch.no_grad():
        # Expert 1 of the first task dies, expert 2 shrinks; "purchase" leaves its own experts aside.
        bank.weights[-1][0] *= 0.01
        bank.biases[-1][0] -= 5
        bank.weights[-1][1] *= 0.01
        bank.biases[-1][1] *= 0.01
        # Inputs vary in sign, so that a gate is held by what it cannot see: rows of zeros are even.
        gates.bias = torch.nn.Parameter(torch.tensor([0.0, 0, -8, -8, -9, -9, 0, 0, 0, 0, -8, -8]))
    diagnosis = diagnose(trained, opened(trained))
    by_check = {item.check: item for item in diagnosis.findings}
    assert (by_check["zero_share"].level, by_check["zero_share"].expert) == (1, 1)
    assert by_check["scale_ratio"].expert == 2
    assert by_check["own_experts_unused"].task == "purchase"
    held = [item for item in diagnosis.findings if item.check == "degradation"]
    assert {(item.task, item.expert) for item in held} == {("purchase", 7), ("purchase", 8)}
    lines = finding_lines(diagnosis)
    assert len(lines) == len(diagnosis.findings) + 1
    assert lines[0].startswith("experts: alarm: ")
    assert "measured on 500 rows" in lines[-1]


def test_an_expert_as_it_was_before_training_is_found(trained: TrainedRun) -> None:
    bank = trained.model.program.mixing.watched()[0].bank
    fresh = load_run(trained.directory.path).model.program.mixing.watched()[0].bank
    with torch.no_grad():
        first = build_program(
            trained.schema, trained.experiment.model, seed=trained.experiment.train.seed
        )
        for now, before in zip(
            bank.parameters(), first.mixing.watched()[0].bank.parameters(), strict=True
        ):
            now[4] = before[4]
    assert not torch.equal(bank.weights[0][4], fresh.weights[0][4])
    finding = found_in(trained)["movement"]
    assert (finding.expert, finding.number) == (5, 0)


def test_gradients_are_those_of_each_tasks_loss_alone(trained: TrainedRun) -> None:
    model, schema = trained.model, trained.schema
    found = task_gradients(model, batches(trained)[:2], schema, weights={"click": 3.0})
    shared = list(model.program.mixing.parameters())  # type: ignore[attr-defined]
    batch = batches(trained)[0]
    flat = []
    for t, name in enumerate(schema.task_names):
        logit_B, label_B = model(batch)[:, t], batch.labels_BT[:, t]
        if schema.tasks[name].kind == "regression":
            losses_B = (logit_B - label_B) ** 2
        else:
            losses_B = torch.nn.functional.softplus(logit_B) - logit_B * label_B
        weight_B = batch.weights_B * batch.observed_BT[:, t]
        loss = (losses_B * weight_B).sum() / weight_B.sum()
        flat.append(
            torch.cat(
                [
                    item.flatten()
                    for item in torch.autograd.grad(
                        loss, shared, allow_unused=True, materialize_grads=True
                    )
                ]
            )
        )
    for t, first in enumerate(flat):
        for u, second in enumerate(flat):
            both = (first != 0) & (second != 0)
            expected = torch.cosine_similarity(first[both], second[both], dim=0)
            assert float(found.cosine_STT[0, t, u]) == pytest.approx(float(expected), abs=1e-4)


def test_tasks_of_opposite_labels_conflict(trained: TrainedRun) -> None:
    samples = [
        replace(
            item,
            labels_BT=torch.stack(
                [item.labels_BT[:, 0], 1 - item.labels_BT[:, 0], item.labels_BT[:, 2]], dim=1
            ),
            observed_BT=torch.ones_like(item.observed_BT),
        )
        for item in batches(trained)
    ]
    found = task_gradients(trained.model, samples, trained.schema, weights={})
    assert float(found.cosine_STT[:, 0, 1].mean()) < -0.2


def test_a_task_without_a_label_in_a_batch_is_left_out_of_it(trained: TrainedRun) -> None:
    first, second = batches(trained)[:2]
    observed_BT = first.observed_BT.clone()
    observed_BT[:, 1] = False
    found = task_gradients(
        trained.model, [replace(first, observed_BT=observed_BT), second], trained.schema, weights={}
    )
    assert found.cosine_STT[0, 0, 1].isnan()
    assert not found.cosine_STT[1, 0, 1].isnan()
    assert not found.norm_T.isnan().any()


def test_removal_loses_what_a_second_evaluation_loses(trained: TrainedRun) -> None:
    removals = Removals(trained.model, trained.schema)
    for batch in batches(trained):
        removals.add(batch)
    own = next(item for item in removals.result() if item.own == "click")
    watched = trained.model.program.mixing.watched()[0]
    mine = tuple(e for e, group in enumerate(watched.groups) if group == "click")

    def auc() -> float:
        with torch.no_grad():
            scores = torch.cat([trained.model(batch)[:, 0] for batch in batches(trained)])
        labels = torch.cat([batch.labels_BT[:, 0] for batch in batches(trained)])
        weights = torch.cat([batch.weights_B for batch in batches(trained)])
        found: float = roc_auc_score(labels, scores, sample_weight=weights)
        return found

    whole = auc()
    with without_experts([(watched, mine)]):
        without = auc()
    loss = next(item for item in own.losses if item.task == "click")
    assert loss.difference == pytest.approx(whole - without, abs=1e-6)
    assert loss.standard_error > 0


def test_every_report_has_the_section_and_says_what_was_found(run: Path, tmp_path: Path) -> None:
    evaluation = evaluate(run, tmp_path / "report")
    report = read_report(tmp_path / "report")
    assert report.format_version == 2
    assert report == evaluation.report
    assert report.experts is not None
    assert report.experts.removals is None
    assert len(report.experts.levels[0].experts) == 8
    lines = [line for line in render_table(report).splitlines() if line.startswith("experts: ")]
    assert lines == finding_lines(report.experts)


def test_the_command_says_which_checkpoint_and_days_it_looked_at(run: Path) -> None:
    found = examine(run, days="2026-01-03", checkpoint="CURRENT")
    assert found.to_json()["days"] == ["2026-01-03"]
    assert found.to_json()["removals"]
    text = found.render()
    assert "500 rows of 2026-01-03" in text
    assert "own experts of click" in text


def test_a_model_without_experts_is_said_to_have_none(tmp_path: Path) -> None:
    small_data(tmp_path, rows={"2026-01-01": 200, "2026-01-02": 100, "2026-01-03": 100})
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    overrides = ('model.mixing={ kind = "shared_bottom", hidden = [4] }', "train.epochs=1")
    train(load_experiment(tmp_path / "experiment.toml", overrides=overrides), tmp_path / "run")
    diagnosis = examine(tmp_path / "run").diagnosis
    assert diagnosis.levels == ()
    assert finding_lines(diagnosis)[-1] == (
        "experts: shared_bottom has no experts to choose among, so only the tasks' gradients are looked at"
    )
    assert any(pair.cosine is not None for pair in diagnosis.pairs)


def test_a_comparison_sums_up_all_tasks_and_names_who_pays() -> None:
    def difference(first: float, second: float) -> Difference:
        return Difference(first, second, first - second, 0.01, 0.0, 0.0, 0.0, 0.02)

    def compared(auc: Difference | None) -> Comparison:
        return Comparison(10, 5, 3, auc, None, None, None)

    entries = {
        "gains": compared(difference(0.80, 0.75)),
        "pays": compared(difference(0.55, 0.60)),
        "unsure": compared(difference(0.67, 0.70)),
        "undefined": compared(None),
    }
    balance = SideBySide(Path("first"), Path("second"), entries).balance
    assert balance is not None
    assert balance.mean_gain_percent == pytest.approx(100 * (0.2 - 0.5 - 0.15) / 3)
    assert balance.mean_gain_percent_plain == pytest.approx(
        100 * (0.05 / 0.75 - 0.05 / 0.6 - 0.03 / 0.7) / 3
    )
    assert balance.worse == ("pays",)
    assert balance.worst == "pays"
    nothing = SideBySide(Path("first"), Path("second"), {"undefined": compared(None)})
    assert nothing.balance is None


def test_every_check_stands_in_its_document_with_its_threshold() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert f" {check.threshold:g}" in row, name
