"""The doctor finds the faults that are planted in experts and gates, and is silent about healthy ones."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from recsys.diagnosis import SHARED, AucLoss, LevelNumbers, Removal
from recsys.evaluation.checks import CHECKS
from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.evaluation.experts import level_numbers
from recsys.evaluation.verdicts import findings
from recsys.models import mixings
from tests.recsys.examined import (
    ROWS,
    WIDTH,
    built,
    checks,
    found,
    inputs,
    mmoe,
    numbers,
    set_gates,
)


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


def test_an_order_of_tasks_that_only_half_of_the_rows_show_is_none() -> None:
    names = [f"t{number}" for number in range(8)]
    labels = {name: round(100_000 * 0.4**number) for number, name in enumerate(names)}
    stage = built("cgc", names, task_experts=2, shared_experts=2, expert_hidden=[8])
    set_gates(stage, lambda gate, choice: 0.0)
    gates, x_BI = stage.level.gates[0], inputs()
    with torch.no_grad():
        # Own experts: the second column lowers rare tasks' use, the third all use, and that of rare tasks least.
        for gate in range(8):
            gates.weight[4 * gate : 4 * gate + 2, 1] = -0.9 * gate
            gates.weight[4 * gate : 4 * gate + 2, 2] = -4 + 0.01 * gate
    by_half = {name: (count // 2, count // 2) for name, count in labels.items()}

    def coupled(*, last_half: Sequence[float]) -> LevelNumbers:
        x_BI[:, 1:3] = torch.tensor([1.0, 0.0])
        x_BI[ROWS // 2 :, 1:3] = torch.tensor(last_half)
        watch = ExpertWatch(stage, rows=ROWS)
        with watch.attached(), torch.no_grad():
            stage(x_BI)
        return level_numbers(watch.levels[0], level=1, labels=by_half)

    always, first = coupled(last_half=[1, 0]), coupled(last_half=[0, 1])
    assert always.density_coupling_by_half == pytest.approx((1, 1))
    assert "density_coupling" in checks([always])
    assert first.density_coupling == pytest.approx(1)
    assert first.density_coupling_by_half == pytest.approx((1, -1))
    own_masses = [gate.own_mass_relative or 0 for gate in first.gates]
    assert min(own_masses) < 0.5 * max(own_masses)
    assert "density_coupling" not in checks([first])


@pytest.mark.parametrize("experts", [1, 2])
def test_own_experts_that_a_self_gate_brings_are_no_finding_and_shut_out_are_one(
    experts: int,
) -> None:
    stage = built("home", groups={"x": ["a", "b"], "y": ["c"]}, experts=experts)
    gates = stage.specific.gates
    with torch.no_grad():
        # Task b: category and global experts first, its own last.
        gates.bias = torch.nn.Parameter(torch.zeros(9 * experts))
        gates.bias[5 * experts : 6 * experts] = -8
    assert "own_experts_unused" not in checks(numbers(stage))
    if experts == 2:
        # A softmax among own experts always adds one of them.
        return
    with torch.no_grad():
        stage.specific.self_gates.bias = torch.nn.Parameter(torch.tensor([0.0, -8, 0]))
    by_check = {item.check: item for item in found(numbers(stage))}
    assert (by_check["own_experts_unused"].level, by_check["own_experts_unused"].task) == (2, "b")


def removed(**losses: tuple[float, float]) -> Removal:
    """What removing expert 5 of level 1 cost: a difference and its standard error by task."""
    return Removal(
        level=1,
        expert=5,
        own=None,
        losses=tuple(
            AucLoss(task=task, difference=difference, standard_error=error)
            for task, (difference, error) in losses.items()
        ),
    )


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ({"a": (0.02, 0.001), "b": (0.0005, 0.0005), "c": (-0.001, 0.0004)}, "a"),
        ({"a": (0.02, 0.001), "b": (0.006, 0.0005)}, None),
        # That nobody else loses is not sure.
        ({"a": (0.02, 0.001), "b": (0.0005, 0.003)}, None),
        # That anybody loses is not sure, or what is lost is too little to matter.
        ({"a": (0.02, 0.011), "b": (0.0, 0.0005)}, None),
        ({"a": (0.002, 0.0001), "b": (0.0, 0.00001)}, None),
        ({"a": (0.02, 0.001)}, None),
    ],
)
def test_a_shared_expert_whose_removal_costs_one_task_alone_is_found(
    losses: dict[str, tuple[float, float]], named: str | None
) -> None:
    levels = numbers(built("cgc", task_experts=1, shared_experts=2, expert_hidden=[8]))
    held = [
        item for item in findings(levels, (), (), [removed(**losses)]) if item.check == "serves_one"
    ]
    assert [(item.task, item.level, item.expert) for item in held] == (
        [(named, 1, 5)] if named else []
    )


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


def test_every_check_stands_in_its_document_with_its_threshold() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert f" {check.threshold:g}" in row, name
