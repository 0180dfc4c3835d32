"""The doctor's numbers match plain computations, whatever parts the rows come in."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from torch.distributions import Normal, kl_divergence

from recsys.diagnosis import SHARED
from recsys.evaluation.expert_distances import divergences, gaussian_divergences
from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.evaluation.gate_numbers import rank_correlation
from recsys.models.probe import Probe, without_experts
from tests.recsys.examined import ROWS, WIDTH, built, inputs, mmoe, numbers


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


def test_distances_of_experts_are_those_of_a_plain_loop() -> None:
    stage = mmoe()
    (level,) = numbers(stage, parts=5)
    with torch.no_grad():
        out_BEH = stage.bank(inputs()).double()
    fits = [(out_BEH[:, e].mean(dim=0), out_BEH[:, e].std(dim=0, correction=0)) for e in range(4)]
    divergence, transport, distance = [], [], []
    for first, second in combinations(range(4), 2):
        (mean, deviation), (other_mean, other_deviation) = fits[first], fits[second]
        units = [
            (Normal(mean[unit], deviation[unit]), Normal(other_mean[unit], other_deviation[unit]))
            for unit in range(32)
            if deviation[unit] > 0 and other_deviation[unit] > 0
        ]
        both = [float(kl_divergence(p, q) + kl_divergence(q, p)) / 2 for p, q in units]
        divergence.append(sum(both) / len(both))
        apart = (mean - other_mean) ** 2 + (deviation - other_deviation) ** 2
        transport.append(float(apart.mean()))
        distance.append(float((out_BEH[:, first] - out_BEH[:, second]).norm(dim=1).mean()))
    assert level.distances is not None
    # The sums are of float32 outputs.
    assert level.distances.gaussian_kl == pytest.approx(max(divergence), rel=1e-3)
    assert level.distances.gaussian_kl_mean == pytest.approx(np.mean(divergence), rel=1e-3)
    assert level.distances.wasserstein == pytest.approx(max(transport), rel=1e-3)
    assert level.distances.wasserstein_mean == pytest.approx(np.mean(transport), rel=1e-3)
    assert level.distances.diversity == pytest.approx(np.mean(distance) / max(distance), rel=1e-3)


def test_an_expert_that_never_varies_has_no_gaussian_to_compare() -> None:
    mean_EH, deviation_EH = torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [1, 2, 3]])
    assert gaussian_divergences(mean_EH, deviation_EH)[0, 1].isnan()
    stage = mmoe(experts=2)
    with torch.no_grad():
        stage.bank.weights[-1][0] *= 0.01
        stage.bank.biases[-1][0] -= 5
    (level,) = numbers(stage)
    assert level.distances is not None
    assert level.distances.gaussian_kl is None
    assert level.distances.wasserstein > 0


def home(**options: object):  # type: ignore[no-untyped-def]
    """A HoME whose feature gates have left 1."""
    stage = built("home", groups={"x": ["a", "b"], "y": ["c"]}, **options)
    with torch.no_grad():
        for layer in (stage.meta, stage.specific):
            layer.feature_gates.up.normal_(std=0.5)
            layer.gates.weight.normal_(std=0.5)
            layer.self_gates.weight.normal_(std=0.5)
    return stage


@pytest.mark.parametrize("experts", [1, 2])
def test_what_a_self_gate_adds_is_measured_beside_the_whole_mixture(experts: int) -> None:
    stage, x_BI = home(experts=experts), inputs()
    levels = numbers(stage)
    with torch.no_grad():
        out_BEH = stage.meta.bank(stage.meta.feature_gates(x_BI))
        own_BGH = stage.meta.self_gates(x_BI) @ out_BEH
        whole_BGH = stage.meta(x_BI, x_BI)
    expected = (own_BGH.norm(dim=2) / whole_BGH.norm(dim=2)).mean(dim=0)
    found = [gate.self_contribution for gate in levels[0].gates]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert all(0 < (gate.self_contribution or 0) < 1.5 for gate in levels[1].gates)
    assert numbers(mmoe())[0].gates[0].self_contribution is None


def test_feature_gates_are_measured_by_what_they_do_to_the_input() -> None:
    stage, x_BI = home(), inputs()
    with torch.no_grad():
        # The first group's gate reads nothing but the constant: the same for all rows, and wide.
        stage.meta.feature_gates.down[0, :, :, 1:] = 0
        stage.meta.feature_gates.up[0] *= 30
        ratio_BGI = stage.meta.feature_gates(x_BI) / x_BI[:, None]
    mean_GI = ratio_BGI.double().mean(dim=0)
    (meta, specific) = numbers(stage)
    assert [gate.group for gate in meta.feature_gates] == ["group x", "group y", SHARED]
    assert [gate.group for gate in specific.feature_gates][:2] == [SHARED, "group x"]
    for gate, mean_I in zip(meta.feature_gates, mean_GI, strict=True):
        assert gate.spread == pytest.approx(float(mean_I.std(correction=0)), rel=1e-4)
        extreme = (mean_I < 0.1) | (mean_I > 1.9)
        assert gate.extreme == pytest.approx(float(extreme.double().mean()))
    assert meta.feature_gates[0].spread > 3 * meta.feature_gates[1].spread
    assert meta.feature_gates[0].extreme > 0.3
    assert meta.feature_gates[1].extreme == 0
    shut = numbers(built("home", feature_gate=False))
    assert [level.feature_gates for level in shut] == [(), ()]


def test_a_probe_changes_no_output() -> None:
    stage, x_BI = home(), inputs(20)
    with torch.no_grad():
        whole = stage(x_BI)
        with Probe().attached(stage) as probe:
            assert (stage(x_BI) == whole).all()
    meta = probe.levels[0]
    assert meta.self_gate_BGE is not None
    assert [gate_BI.shape for gate_BI in meta.feature_gates_BI] == [(20, WIDTH)] * 3
    meta.clear()
    assert meta.feature_gates_BI == []
    assert meta.self_gate_BGE is None


@pytest.mark.parametrize(("parts", "every"), [(1, 1), (7, 1), (7, 3), (400, 1)])
def test_each_half_of_the_rows_has_its_own_mean_gate(parts: int, every: int) -> None:
    stage, x_BI = mmoe(), inputs()
    watch = ExpertWatch(stage, every=every, rows=ROWS)
    chunks = x_BI.chunk(parts)
    with watch.attached(), torch.no_grad():
        for part in chunks:
            stage(part)
        gate_BTE = stage.gates(x_BI).double()
    # Every n-th row of each pass.
    kept = [row for chunk in torch.arange(ROWS).chunk(parts) for row in chunk[::every].tolist()]
    (statistics,) = watch.levels
    halves = [row for row in kept if row < ROWS // 2], [row for row in kept if row >= ROWS // 2]
    for half, rows in enumerate(halves):
        assert statistics.rows_W[half] == len(rows)
        torch.testing.assert_close(
            statistics.gate_WGE[half], gate_BTE[rows].sum(dim=0), rtol=1e-5, atol=0
        )


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
