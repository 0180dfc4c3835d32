"""The doctor examines runs: what was learned, gradients, removals, reports, and the command's answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from recsys.batch import Batch
from recsys.compare import Comparison, Difference
from recsys.days import Days, open_days
from recsys.diagnosis import Finding, finding_lines
from recsys.evaluation.doctor import diagnose, examine
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.gradients import task_gradients
from recsys.evaluation.removal import Removals
from recsys.evaluation.side_by_side import SideBySide
from recsys.experiment import load_experiment
from recsys.feed import in_order
from recsys.models import build_program
from recsys.models.probe import without_experts
from recsys.report import read_report, render_table
from recsys.run import TrainedRun, load_run
from recsys.training.trainer import train
from tests.recsys.small_data import small_data

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
    assert by_check["gradient_reach"].task == "purchase"
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


def test_gradient_reach_is_of_the_tasks_own_loss_alone(trained: TrainedRun) -> None:
    model, schema, batch = trained.model, trained.schema, batches(trained)[0]
    found = task_gradients(model, [batch], schema, weights={})
    item = model.program.mixing.watched()[0]
    parameters = (*item.bank.weights, *item.bank.biases)
    logit_B, label_B = model(batch)[:, 0], batch.labels_BT[:, 0]
    weight_B = batch.weights_B * batch.observed_BT[:, 0]
    losses_B = torch.nn.functional.softplus(logit_B) - logit_B * label_B
    loss = (losses_B * weight_B).sum() / weight_B.sum()
    gradients = torch.autograd.grad(loss, parameters)

    def mean_square(group: str) -> float:
        members = [e for e, name in enumerate(item.groups) if name == group]
        own = torch.cat([gradient[members].flatten() for gradient in gradients])
        return float(own.square().mean())

    assert float(found.reach_T[0]) == pytest.approx(
        (mean_square("click") / mean_square("shared")) ** 0.5, rel=1e-3
    )


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
