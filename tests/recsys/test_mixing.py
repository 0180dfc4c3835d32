"""Every mixing stage beyond MMoE against its paper: parameter counts, degenerate cases, and where gradients may go."""

import pytest
import torch

from recsys.errors import ConfigError
from recsys.models.gates import SelectiveGates, mix
from recsys.models.mixing.adatt import AdaTT, FusionLevel
from recsys.models.mixing.cross_stitch import CrossStitch
from recsys.models.mixing.ml_mmoe import MultiLevelMMoE
from recsys.models.mixing.mmoe import MMoE
from recsys.models.mixing.omoe import OMoE
from recsys.models.mixing.ple import CGC, PLE
from recsys.models.mixing.single_task import SingleTask
from recsys.models.probe import Probe
from tests.recsys.stages import NAMES, WIDTH, built, count, gradient, inputs


def test_golden_parameter_counts() -> None:
    # d = 64, T = 3; experts and gates without towers.
    assert count(CGC, task_experts=2, shared_experts=2, expert_hidden=[32]) == 17_408
    two_levels = [[32], [16]]
    assert count(PLE, task_experts=2, shared_experts=2, levels=two_levels) == 22_528
    assert count(AdaTT, task_experts=2, levels=two_levels) == 17_424
    assert count(AdaTT, task_experts=1, levels=two_levels) == 8_706
    assert count(AdaTT, task_experts=2, shared_experts=1, levels=two_levels) == 20_782
    # By their formulas: T or E affine stacks, I * E a gate, T^2 a stitch.
    assert count(SingleTask, hidden=[32, 16]) == 3 * (65 * 32 + 33 * 16)
    assert count(OMoE, experts=6, expert_hidden=[32, 16]) == 15_648 + 64 * 6
    assert count(CrossStitch, hidden=[32, 16]) == 3 * (65 * 32 + 33 * 16) + 2 * 9
    multi_level = 4 * 65 * 32 + 4 * 33 * 16 + 64 * 4 * (4 + 3)
    assert count(MultiLevelMMoE, experts=4, levels=two_levels) == multi_level


def test_single_tasks_share_nothing() -> None:
    stage = built(SingleTask, hidden=[6, 5])
    for task in range(3):
        for parameter in (*stage.bank.weights, *stage.bank.biases):
            found = gradient(stage, task, parameter)
            assert [bool(item.any()) for item in found] == [own == task for own in range(3)]


def test_omoe_is_mmoe_with_tied_gates() -> None:
    omoe = built(OMoE, experts=4, expert_hidden=[6, 5])
    mmoe = built(MMoE, experts=4, expert_hidden=[6, 5])
    mmoe.bank.load_state_dict(omoe.bank.state_dict())
    with torch.no_grad():
        mmoe.gates.weight.copy_(omoe.gates.weight.expand(3, -1, -1))
    torch.testing.assert_close(omoe(inputs()), mmoe(inputs()))


def test_multi_level_mmoe_feeds_each_expert_its_own_mixture_under_gates_that_read_the_input() -> (
    None
):
    stage = built(MultiLevelMMoE, experts=3, levels=[[6], [5]])
    x_BI = inputs()
    first_BEH = stage.banks[0](x_BI)
    second = []
    for e in range(3):
        gate_BE = torch.softmax(x_BI @ stage.gates[0].weight[e].T, dim=1)
        fed = (gate_BE[:, :, None] * first_BEH).sum(dim=1)
        weight, bias = stage.banks[1].weights[0][e], stage.banks[1].biases[0][e]
        second.append(torch.relu(fed @ weight.T + bias))
    for task in range(3):
        gate_BE = torch.softmax(x_BI @ stage.gates[1].weight[task].T, dim=1)
        expected = sum(gate_BE[:, e, None] * second[e] for e in range(3))
        torch.testing.assert_close(stage(x_BI)[:, task], expected)


def test_multi_level_mmoe_of_one_level_is_mmoe() -> None:
    levels = built(MultiLevelMMoE, experts=4, levels=[[6, 5]])
    mmoe = built(MMoE, experts=4, expert_hidden=[6, 5])
    mmoe.bank.load_state_dict(levels.banks[0].state_dict())
    mmoe.gates.load_state_dict(levels.gates[0].state_dict())
    torch.testing.assert_close(levels(inputs()), mmoe(inputs()))


def test_cross_stitch_blends_after_every_layer_from_nine_tenths_of_a_tasks_own() -> None:
    fresh = CrossStitch(CrossStitch.Config(hidden=(6, 5)), width=WIDTH, tasks=NAMES)
    for stitch in fresh.stitches:
        torch.testing.assert_close(stitch.detach(), torch.eye(3) * 0.85 + 0.05)
    stage = built(CrossStitch, hidden=[6, 5])
    h = [inputs()] * 3
    for bank, stitch in zip(stage.banks, stage.stitches, strict=True):
        own = [torch.relu(h[t] @ bank.weights[0][t].T + bank.biases[0][t]) for t in range(3)]
        h = [sum(stitch[t, u] * own[u] for u in range(3)) for t in range(3)]  # type: ignore[misc]
    torch.testing.assert_close(stage(inputs()), torch.stack(h, dim=1))


def test_cross_stitch_that_keeps_all_to_itself_is_single_task() -> None:
    stitched = built(CrossStitch, hidden=[6])
    single = built(SingleTask, hidden=[6])
    single.bank.load_state_dict(stitched.banks[0].state_dict())
    with torch.no_grad():
        stitched.stitches[0].copy_(torch.eye(3))
    torch.testing.assert_close(stitched(inputs()), single(inputs()))


def test_selective_gates_give_nothing_to_what_they_may_not_choose() -> None:
    torch.manual_seed(0)
    gates = SelectiveGates(WIDTH, choices=[(0, 2), (1,), (0, 1, 2)], experts=4, inputs=(0, 1, 2))
    torch.nn.init.normal_(gates.weight)
    x_BSI = inputs(7, 3, WIDTH)
    gate_BGE = gates(x_BSI)
    assert (gate_BGE[:, 0, [1, 3]] == 0).all()
    assert (gate_BGE[:, 1, 1] == 1).all()
    assert (gate_BGE[:, 2, 3] == 0).all()
    expected = torch.softmax(x_BSI[:, 0] @ gates.weight[:2].T, dim=1)
    torch.testing.assert_close(gate_BGE[:, 0, [0, 2]], expected)
    torch.testing.assert_close(gate_BGE.sum(dim=-1), torch.ones(7, 3))


def test_dropped_choices_stay_among_a_gates_own() -> None:
    gates = SelectiveGates(WIDTH, choices=[(0, 2), (1, 2)], experts=3, inputs=(0, 1), dropout=0.5)
    gate_BGE = gates.train()(inputs(500, WIDTH))
    assert (gate_BGE[:, 0, 1] == 0).all()
    assert (gate_BGE[:, 1, 0] == 0).all()
    assert (gate_BGE == 1).any()
    torch.testing.assert_close(gate_BGE.sum(dim=-1), torch.ones(500, 2))


def test_ple_is_the_papers_recursion() -> None:
    stage = built(PLE, task_experts={"a": 1, "b": 2, "c": 0}, shared_experts=2, levels=[[6], [5]])
    owned = [(0,), (1, 2), ()]
    shared = (3, 4)
    state = [inputs()] * 4
    for level, (bank, gates) in enumerate(zip(stage.banks, stage.gates, strict=True)):
        stream_of = [0, 1, 1, 3, 3]
        outputs = [
            torch.relu(state[stream_of[e]] @ bank.weights[0][e].T + bank.biases[0][e])
            for e in range(5)
        ]
        choices = [(*own, *shared) for own in owned] + ([(0, 1, 2, 3, 4)] if level == 0 else [])
        kernels = torch.split(gates.weight, [len(item) for item in choices])
        following = []
        for stream, (kernel, chosen) in enumerate(zip(kernels, choices, strict=True)):
            gate = torch.softmax(state[stream] @ kernel.T, dim=1)
            following.append(sum(gate[:, i, None] * outputs[e] for i, e in enumerate(chosen)))
        state = following  # type: ignore[assignment]
    torch.testing.assert_close(stage(inputs()), torch.stack(state, dim=1))


def test_ple_of_one_own_expert_a_task_and_none_shared_is_a_stack_of_them() -> None:
    stage = built(PLE, task_experts=1, shared_experts=0, levels=[[6], [5]])
    first = stage.banks[0](inputs())
    torch.testing.assert_close(stage(inputs()), stage.banks[1](first))


def test_ple_of_one_level_is_cgc_and_without_own_experts_mmoe() -> None:
    ple = built(PLE, task_experts=2, shared_experts=1, levels=[[6, 5]])
    cgc = built(CGC, task_experts=2, shared_experts=1, expert_hidden=[6, 5])
    cgc.level.load_state_dict(ple.state_dict())
    torch.testing.assert_close(ple(inputs()), cgc(inputs()))

    shared = built(CGC, task_experts=0, shared_experts=4, expert_hidden=[6, 5])
    mmoe = built(MMoE, experts=4, expert_hidden=[6, 5])
    mmoe.bank.load_state_dict(shared.level.banks[0].state_dict())
    with torch.no_grad():
        mmoe.gates.weight.copy_(shared.level.gates[0].weight.view(3, 4, WIDTH))
    torch.testing.assert_close(shared(inputs()), mmoe(inputs()))


def test_ple_isolates_other_tasks_experts_at_the_last_level_only() -> None:
    stage = built(PLE, task_experts=1, shared_experts=1, levels=[[6], [5]])
    first, last = (bank.weights[0] for bank in stage.banks)
    for task in range(3):
        reached = [bool(item.any()) for item in gradient(stage, task, last)]
        assert reached == [expert in (task, 3) for expert in range(4)]
        # Through the shared gate of the first level every expert there is reached.
        assert all(bool(item.any()) for item in gradient(stage, task, first))


def test_ple_has_no_shared_gate_at_the_last_level() -> None:
    stage = built(PLE, task_experts=2, shared_experts=2, levels=[[6], [5], [4]])
    assert [gates.gates for gates in stage.gates] == [4, 4, 3]


def test_adatt_adds_fused_experts_and_a_units_own() -> None:
    stage = built(AdaTT, task_experts=2, shared_experts=1, levels=[[6], [5]])
    state = [inputs()] * 4
    stream_of = [0, 0, 1, 1, 2, 2, 3]
    for level in stage.levels:
        outputs = [
            torch.relu(state[stream_of[e]] @ level.bank.weights[0][e].T + level.bank.biases[0][e])
            for e in range(7)
        ]
        own = list(level.native_gate)
        following = []
        for unit in range(level.gates.gates):
            kernel = level.gates.weight.view(-1, 7, state[0].shape[1])[unit]
            bias = level.gates.bias.view(-1, 7)[unit]
            gate = torch.softmax(state[unit] @ kernel.T + bias, dim=1)
            fused = sum(gate[:, e, None] * outputs[e] for e in range(7))
            native = sum(own.pop(0) * outputs[e] for e in range(7) if stream_of[e] == unit)
            following.append(fused + native)
        assert not own
        state = following
    torch.testing.assert_close(stage(inputs()), torch.stack(state, dim=1))


def test_adatt_of_one_level_without_residual_and_bias_is_mmoe() -> None:
    stage = built(AdaTT, task_experts=2, levels=[[6, 5]], native_residual=False)
    mmoe = built(MMoE, experts=6, expert_hidden=[6, 5])
    (level,) = stage.levels
    mmoe.bank.load_state_dict(level.bank.state_dict())
    with torch.no_grad():
        level.gates.bias.zero_()
        mmoe.gates.weight.copy_(level.gates.weight.view(3, 6, WIDTH))
    torch.testing.assert_close(stage(inputs()), mmoe(inputs()))


@pytest.mark.parametrize("residual", [False, True])
def test_adatt_with_zero_gates_is_the_mean_of_experts_and_with_the_residual_its_own_beside(
    residual: bool,
) -> None:
    stage = built(AdaTT, task_experts=1, levels=[[6]], native_residual=residual)
    (level,) = stage.levels
    with torch.no_grad():
        level.gates.weight.zero_()
        level.gates.bias.zero_()
    experts_BMH = level.bank(inputs())
    expected = experts_BMH.mean(dim=1, keepdim=True) + (experts_BMH if residual else 0)
    torch.testing.assert_close(stage(inputs()), expected.expand(-1, 3, -1))


def test_adatt_of_one_task_and_one_expert_doubles_it() -> None:
    stage = built(AdaTT, tasks=("a",), task_experts=1, levels=[[6]])
    (level,) = stage.levels
    torch.testing.assert_close(stage(inputs()), 2 * level.bank(inputs()))


def test_adatt_limited_to_own_and_shared_experts_without_residual_is_cgc_with_biased_gates() -> (
    None
):
    stage = built(AdaTT, task_experts=1, shared_experts=1, levels=[[6]], native_residual=False)
    (level,) = stage.levels
    with torch.no_grad():
        bias = level.gates.bias.view(3, 4)
        for unit in range(3):
            for other in {0, 1, 2} - {unit}:
                bias[unit, other] = -1e4
    bias = level.gates.bias.detach().view(3, 4)
    experts_BMH, x_BI = level.bank(inputs()), inputs()
    for unit in range(3):
        chosen = [unit, 3]
        kernel = level.gates.weight.view(3, 4, WIDTH)[unit, chosen]
        gate = torch.softmax(x_BI @ kernel.T + bias[unit, chosen], dim=1)
        expected = (gate[:, :, None] * experts_BMH[:, chosen]).sum(dim=1)
        torch.testing.assert_close(stage(x_BI)[:, unit], expected)


def test_every_adatt_task_reaches_every_expert_at_every_level() -> None:
    stage = built(AdaTT, task_experts=2, shared_experts=1, levels=[[6], [5]])
    for level in stage.levels:
        for task in range(3):
            assert all(item.any() for item in gradient(stage, task, level.bank.weights[0]))


def test_adatt_logs_gates_without_the_residual() -> None:
    stage, probe = built(AdaTT, task_experts=2, levels=[[6], [5]]), Probe()
    with probe.attached(stage):
        stage(inputs())
    for level in probe.levels:
        assert level.gate_BTE is not None
        torch.testing.assert_close(level.gate_BTE.sum(dim=-1), torch.ones(7, 3))


def test_residual_weights_start_within_the_inverse_root_of_a_units_experts() -> None:
    level = AdaTT(AdaTT.Config(task_experts=4), width=WIDTH, tasks=NAMES).levels[0]
    assert isinstance(level, FusionLevel)
    assert level.native_gate is not None
    assert level.native_gate.abs().max() <= 0.5
    assert (level.native_gate < 0).any()


@pytest.mark.parametrize("stage", [PLE, AdaTT])
def test_wrong_task_experts_are_named(stage: type) -> None:
    for options, message in (
        ({"task_experts": {"a": 1, "b": 1}}, "leaves out task 'c'"),
        ({"task_experts": {"a": 1, "b": 1, "cc": 1}}, r"'cc', which the schema does not have.*'c'"),
        ({"task_experts": 0, "shared_experts": 0}, "task 'a' has no expert of its own"),
    ):
        with pytest.raises(ConfigError, match=rf"^model.mixing.*{message}"):
            built(stage, **options)  # type: ignore[arg-type]
    for options in (
        {"task_experts": {"a": 1, "b": 1, "c": -1}},
        {"task_experts": -1},
        {"shared_experts": -1},
    ):
        with pytest.raises(ConfigError, match="must be at least 0, found -1"):
            built(stage, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [PLE, AdaTT])
def test_tasks_without_experts_of_their_own_share_all(stage: type) -> None:
    mixing = built(stage, task_experts=0, shared_experts=2)
    x_BTH = mixing(inputs())
    assert x_BTH.shape[:2] == (7, 3)
    x_BTH.sum().backward()
    assert all(parameter.grad is not None for parameter in mixing.parameters())


def test_own_inputs_reach_own_streams() -> None:
    x_BTI = inputs(7, 3, WIDTH)
    level = built(CGC, task_experts=1, shared_experts=1, expert_hidden=[6]).level
    bank, gates = level.banks[0], level.gates[0]
    streams = [*x_BTI.unbind(1), x_BTI.mean(dim=1)]
    outputs = torch.stack(
        [torch.relu(streams[e] @ bank.weights[0][e].T + bank.biases[0][e]) for e in range(4)], dim=1
    )
    gate_BGE = torch.zeros(7, 3, 4)
    for task, kernel in enumerate(torch.split(gates.weight, [2, 2, 2])):
        gate_BGE[:, task, [task, 3]] = torch.softmax(streams[task] @ kernel.T, dim=1)
    torch.testing.assert_close(level(x_BTI), mix(gate_BGE, outputs))
