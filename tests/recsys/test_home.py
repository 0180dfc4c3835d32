"""HoME against its paper: parameter counts, its equations, where gradients may go, and what an export folds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.errors import ConfigError
from recsys.experiment import load_experiment
from recsys.export import export
from recsys.models.experts import BatchNorm
from recsys.models.mixing.home import FeatureGates, HierarchyLayer, HoME
from recsys.models.probe import Probe
from recsys.training.trainer import train
from tests.recsys.small_data import small_data
from tests.recsys.stages import WIDTH, built, count, gradient, inputs

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
        ({"x": ["a", "b"], "y": ["b", "c"]}, "task 'b' twice, in 'x' and in 'y'"),
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


@pytest.mark.parametrize("rows", [7, 1])
def test_the_statistics_of_several_ranks_are_torchs_own_where_there_is_one(rows: int) -> None:
    """Values, gradients and running statistics; that ranks add theirs up is held by two workers against one process."""
    found = []
    for way in ("_alone", "_over_ranks"):
        norm = BatchNorm(2, 3, momentum=0.3).train()
        torch.manual_seed(0)
        torch.nn.init.normal_(norm.norm_scale)
        torch.nn.init.normal_(norm.norm_shift)
        norm.running_mean.normal_()
        x_BU = torch.randn(rows, 6, requires_grad=True)
        y_BU = getattr(norm, way)(x_BU)
        weights_BU = torch.linspace(-1, 1, y_BU.numel()).view_as(y_BU)
        (y_BU * weights_BU).sum().backward()
        learned = [norm.norm_scale.grad, norm.norm_shift.grad, x_BU.grad]
        found.append([y_BU.detach(), *learned, norm.running_mean, norm.running_var])
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
