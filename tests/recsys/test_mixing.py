"""Every mixing stage beyond MMoE against its paper: parameter counts, degenerate cases, and where gradients may go."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.errors import ConfigError
from recsys.experiment import load_experiment
from recsys.export import export
from recsys.models import mixings
from recsys.models.gates import SelectiveGates, mix
from recsys.models.mixing.adatt import AdaTT, FusionLevel
from recsys.models.mixing.cross_stitch import CrossStitch
from recsys.models.mixing.home import FeatureGates, HierarchyLayer, HoME
from recsys.models.mixing.ml_mmoe import MultiLevelMMoE
from recsys.models.mixing.mmoe import MMoE
from recsys.models.mixing.omoe import OMoE
from recsys.models.mixing.ple import CGC, PLE
from recsys.models.mixing.single_task import SingleTask
from recsys.models.probe import Probe
from recsys.training.trainer import train
from tests.recsys.small_data import small_data

NAMES = ("a", "b", "c")
WIDTH = 10


def built(stage: type, width: int = WIDTH, tasks: tuple[str, ...] = NAMES, **options: object):  # type: ignore[no-untyped-def]
    """A stage in evaluation mode whose parameters are all far from their initial symmetry."""
    kind = next(name for name, item in mixings.items() if item is stage)
    config = stage.Config.parse({"kind": kind, **options}, where="test")  # type: ignore[attr-defined]
    torch.manual_seed(0)
    found = stage(config, width=width, tasks=tasks).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return found


def count(stage: type, **options: object) -> int:
    kind = next(name for name, item in mixings.items() if item is stage)
    config = stage.Config.parse({"kind": kind, **options}, where="test")  # type: ignore[attr-defined]
    found = stage(config, width=64, tasks=NAMES)
    parameters = sum(item.numel() for item in found.parameters())
    assert parameters == stage.parameter_count(config, width=64, tasks=NAMES)  # type: ignore[attr-defined]
    return parameters


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (7, WIDTH)), generator=torch.Generator().manual_seed(9))


def gradient(stage: torch.nn.Module, task: int, parameter: Tensor) -> Tensor:
    """Of a task's output by a parameter; zeros where it does not depend on it."""
    (found,) = torch.autograd.grad(
        stage(inputs())[:, task].square().sum(), [parameter], allow_unused=True
    )
    return torch.zeros_like(parameter) if found is None else found


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
    kind = stage.__name__.lower()
    for options, message in (
        ({"task_experts": {"a": 1, "b": 1}}, "leaves out task 'c'"),
        ({"task_experts": {"a": 1, "b": 1, "cc": 1}}, r"'cc', which the schema does not have.*'c'"),
        ({"task_experts": {"a": 1, "b": 1, "c": -1}}, "of 'c' is -1"),
        ({"task_experts": 0, "shared_experts": 0}, "task 'a' has no expert of its own"),
    ):
        with pytest.raises(ConfigError, match=rf"model.mixing \({kind}\).*{message}"):
            built(stage, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be at least 0"):
        built(stage, shared_experts=-1)


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


HOME_GROUPS = {"first": ["a", "b"], "second": ["c"]}


@pytest.mark.parametrize(
    ("experts", "full", "without_self", "without_feature", "without_both"),
    [(1, 34_288, 34_000, 6_064, 5_776), (2, 40_352, 39_776, 12_128, 11_552)],
)
def test_golden_parameter_counts_of_home(
    experts: int, full: int, without_self: int, without_feature: int, without_both: int
) -> None:
    base = {
        "groups": HOME_GROUPS,
        "experts": experts,
        "meta_hidden": [16],
        "task_hidden": [16],
    }
    assert count(HoME, **base) == full
    assert count(HoME, **base, self_gate=False) == without_self
    assert count(HoME, **base, feature_gate=False) == without_feature
    assert count(HoME, **base, feature_gate=False, self_gate=False) == without_both


def home(**options: object) -> HoME:
    tree = {"groups": HOME_GROUPS, "experts": 2, "meta_hidden": [6], "task_hidden": [5], **options}
    found: HoME = built(HoME, **tree)
    return found


def test_homes_experts_are_normal_before_swish_in_training() -> None:
    stage, probe = home().train(), Probe()
    with torch.no_grad():
        for layer in (stage.meta, stage.specific):
            assert layer.bank.norm is not None
            layer.bank.norm.norm_scale.fill_(1)
            layer.bank.norm.norm_shift.zero_()
    with probe.attached(stage):
        stage(inputs(4096, WIDTH))
    for level in probe.levels:
        assert level.pre_BEH is not None
        assert level.out_BEH is not None
        mean, deviation = level.pre_BEH.mean(dim=0), level.pre_BEH.std(dim=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=2e-2, rtol=0)
        torch.testing.assert_close(level.out_BEH, torch.nn.functional.silu(level.pre_BEH))


def test_home_is_its_equations() -> None:
    stage = home()
    x_BI = inputs()

    def experts(layer: HierarchyLayer, group: int, x: Tensor) -> list[Tensor]:
        gates = layer.feature_gates
        assert gates is not None
        share = torch.softmax(x @ gates.choice[group].T, dim=1)
        lora = [
            2 * torch.sigmoid(x @ gates.down[group, p].T @ gates.up[group, p].T) for p in (0, 1)
        ]
        x = x * sum(share[:, p, None] * lora[p] for p in (0, 1))
        found = []
        for e in (2 * group, 2 * group + 1):
            z = x @ layer.bank.weights[0][e].T + layer.bank.biases[0][e]
            norm, width = layer.bank.norm, layer.bank.width
            assert norm is not None
            units = slice(e * width, (e + 1) * width)
            z = (z - norm.running_mean[units]) / (norm.running_var[units] + 1e-5).sqrt()
            z = z * norm.norm_scale[units] + norm.norm_shift[units]
            found.append(z * torch.sigmoid(z))
        return found

    def mixed(
        layer: HierarchyLayer, gate: int, q: Tensor, chosen: list[Tensor], own: list[Tensor]
    ) -> Tensor:
        assert layer.self_gates is not None
        kernel = torch.split(layer.gates.weight, layer.gates.sizes)[gate]
        self_kernel = torch.split(layer.self_gates.weight, layer.self_gates.sizes)[gate]
        weights, self_weights = (torch.softmax(q @ item.T, dim=1) for item in (kernel, self_kernel))
        fused = sum(weights[:, i, None] * item for i, item in enumerate(chosen))
        return fused + sum(self_weights[:, i, None] * item for i, item in enumerate(own))

    first, second, shared = (experts(stage.meta, group, x_BI) for group in range(3))
    z = [
        mixed(stage.meta, 0, x_BI, shared + first, first),
        mixed(stage.meta, 1, x_BI, shared + second, second),
        mixed(stage.meta, 2, x_BI, first + second + shared, shared),
    ]
    layer = stage.specific
    everyone = experts(layer, 0, z[2])
    categories = [experts(layer, 1, z[0]), experts(layer, 2, z[1])]
    expected = []
    for task, category in enumerate((0, 0, 1)):
        own = experts(layer, 3 + task, z[category])
        q = torch.cat([z[category], z[2]], dim=1)
        expected.append(mixed(layer, task, q, everyone + categories[category] + own, own))
    torch.testing.assert_close(stage(x_BI), torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_homes_hierarchy_bounds_where_gradients_go() -> None:
    stage = home()
    meta, specific = stage.meta, stage.specific

    def reached(task: int, parameter: Tensor, sizes: list[int]) -> list[bool]:
        parts = torch.split(gradient(stage, task, parameter), sizes)
        return [bool(part.any()) for part in parts]

    for task, category in enumerate((0, 0, 1)):
        # Layer 2: the global, its category's and its own experts; its own gates.
        wanted = [True, category == 0, category == 1, task == 0, task == 1, task == 2]
        assert reached(task, specific.bank.weights[0], [2] * 6) == wanted
        assert reached(task, specific.gates.weight, specific.gates.sizes) == wanted[3:]
        # Layer 1: other categories' gates never, their experts through the shared state.
        assert reached(task, meta.gates.weight, meta.gates.sizes) == [*wanted[1:3], True]
        assert meta.self_gates is not None
        assert reached(task, meta.self_gates.weight, meta.self_gates.sizes) == [*wanted[1:3], True]
        assert reached(task, meta.bank.weights[0], [2] * 3) == [True] * 3


def test_homes_feature_gate_starts_at_one_and_stays_below_two() -> None:
    torch.manual_seed(0)
    gates = FeatureGates(WIDTH, reads=(0, 0), parts=2, rank=5)
    x_BI = inputs()
    torch.testing.assert_close(gates(x_BI), x_BI[:, None].expand(-1, 2, -1))
    torch.nn.init.normal_(gates.up)
    ratio = gates(x_BI) / x_BI[:, None]
    assert ((ratio > 0) & (ratio < 2)).all()
    assert (ratio != 1).any()


def test_homes_self_gate_of_one_expert_is_a_sigmoid() -> None:
    stage = home(experts=1)
    assert stage.meta.self_gates is not None
    weights = stage.meta.self_gates(inputs())
    own = weights[:, range(3), range(3)]
    assert ((own > 0) & (own < 1)).all()
    torch.testing.assert_close(
        own, torch.sigmoid(inputs() @ stage.meta.self_gates.weight.T), rtol=1e-5, atol=1e-6
    )
    assert (weights.sum(dim=(1, 2)) - own.sum(dim=1)).abs().max() < 1e-6


def test_homes_gates_have_the_papers_widths() -> None:
    stage = home()
    assert stage.meta.gates.sizes == [4, 4, 6]
    assert stage.specific.gates.sizes == [6, 6, 6]


def test_homes_other_categories_experts_do_not_touch_a_categorys_state() -> None:
    stage = home()
    before = stage.meta(inputs(), inputs())
    with torch.no_grad():
        stage.meta.bank.weights[0][2:4].normal_()
    after = stage.meta(inputs(), inputs())
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] != before[:, 1]).any()
    assert (after[:, 2] != before[:, 2]).any()


@pytest.mark.parametrize("hidden", [[6], [7, 6]])
def test_a_folded_bank_scores_as_its_normalised_self(hidden: list[int]) -> None:
    stage = home(meta_hidden=hidden, task_hidden=hidden).train()
    for seed in range(5):
        torch.manual_seed(seed)
        stage(torch.randn(64, WIDTH) * 3 + 1)
    expected = stage.eval()(inputs())
    for layer in (stage.meta, stage.specific):
        layer.bank.fold_norm()
        assert layer.bank.norm is None
    torch.testing.assert_close(stage(inputs()), expected, rtol=1e-5, atol=1e-5)


def test_homes_inputs_a_task_enter_as_means_over_categories() -> None:
    stage, x_BTI = home(), inputs(7, 3, WIDTH)
    of_groups = torch.stack([x_BTI[:, :2].mean(dim=1), x_BTI[:, 2], x_BTI.mean(dim=1)], dim=1)
    state = stage.meta(of_groups, of_groups)
    q = torch.cat([state[:, [0, 0, 1]], state[:, [2, 2, 2]]], dim=2)
    torch.testing.assert_close(stage(x_BTI), stage.specific(state, q))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"x": ["a", "b"]}, "leave out task 'c'"),
        ({"x": ["a", "b"], "y": ["b", "c"]}, "task 'b' is in 'x' and in 'y'"),
        ({"x": ["a", "b", "cc"]}, r"names task 'cc', which the schema does not have.*'c'"),
        ({"x": ["a", "b", "c"], "y": []}, r"groups.y is empty"),
    ],
)
def test_wrong_category_groups_are_named(groups: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        home(groups=groups)


EXPERIMENT = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
batch_size = 64
[model]
embeddings = { backend = "plain" }
mixing = { kind = "home", experts = 2, meta_hidden = [8], task_hidden = [8] }
[train]
threads = 1
"""


def test_home_trains_exports_folded_and_refuses_batches_too_small_to_normalise_over(
    tmp_path: Path,
) -> None:
    small_data(tmp_path)
    file = tmp_path / "experiment.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"batch_size is 8, .* at least 32 rows"):
        train(load_experiment(file, overrides=("data.batch_size=8",)), tmp_path / "refused")
    train(load_experiment(file), tmp_path / "run")
    # The export itself proves that its scores are the model's.
    bundle = export(tmp_path / "run", tmp_path / "bundle")
    assert b"BatchNorm" not in (bundle.path / "program" / "program.onnx").read_bytes()
