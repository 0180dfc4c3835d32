"""Experts, gates, mixing stages, bottoms and the model around them, against arithmetic spelled out."""

import logging
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import ConfigError
from recsys.layout import dense, slots
from recsys.models import ModelConfig, build_model, input_layout
from recsys.models.bottoms.flat import Flat
from recsys.models.experts import ExpertBank, Form
from recsys.models.gates import Gates, mix
from recsys.models.heads.towers import Towers
from recsys.models.inputs import Blocks, Columns
from recsys.models.mixing.mmoe import MMoE
from recsys.models.mixing.shared_bottom import SharedBottom
from recsys.models.precision import bf16_slowdown, use_fast_float32, warn_of_slow_bf16
from recsys.models.probe import Probe
from recsys.schema import Schema
from tests import kinds, samples
from tests.contract.cases import batch, blocks
from tests.recsys.small_data import small_schema

ROWS, WIDTH, TASKS = 7, 10, 3
NAMES = ("a", "b", "c")


def mmoe(seed: int = 0, **options: object) -> MMoE:
    """Small, in evaluation mode, with gates that are far from uniform."""
    torch.manual_seed(seed)
    tree = {"kind": "mmoe", "experts": 4, "expert_hidden": (6, 5), **options}
    found = MMoE(MMoE.Config.parse(tree, where="test"), width=WIDTH, tasks=NAMES).eval()
    with torch.no_grad():
        for bias in found.bank.biases:
            bias.normal_()
        found.gates.weight.normal_()
    return found


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (ROWS, WIDTH)), generator=torch.Generator().manual_seed(9))


def parameters(module: torch.nn.Module) -> int:
    return sum(item.numel() for item in module.parameters())


def relu_mlp(bank: ExpertBank, expert: int, x_I: NDArray[np.float64]) -> NDArray[np.float64]:
    for weight, bias in zip(bank.weights, bank.biases, strict=True):
        x_I = np.maximum(
            weight[expert].double().detach().numpy() @ x_I + bias[expert].double().detach().numpy(),
            0,
        )
    return x_I


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents = np.exp(scores - scores.max())
    return np.asarray(exponents / exponents.sum())


def mmoe_by_hand(model: MMoE, x_BI: Tensor) -> NDArray[np.float64]:
    weight = model.gates.weight.double().detach().numpy()
    found = np.zeros((len(x_BI), model.gates.tasks, model.width))
    for b, x_I in enumerate(x_BI.double().numpy()):
        for t in range(model.gates.tasks):
            gate = softmax(weight[t] @ x_I)
            for e in range(model.bank.experts):
                found[b, t] += gate[e] * relu_mlp(model.bank, e, x_I)
    return found


def test_golden_parameter_count_of_mmoe() -> None:
    config = MMoE.Config(experts=6, expert_hidden=(32, 16))
    mixing = MMoE(config, width=64, tasks=NAMES)
    tasks = {name: small_schema().tasks["click"] for name in "abc"}
    towers = Towers(Towers.Config(hidden=(16,)), width=mixing.width, tasks=tasks)
    counts = [parameters(mixing.bank), parameters(mixing.gates), parameters(towers)]
    assert counts == [15_648, 1_152, 867]
    assert MMoE.parameter_count(config, width=64, tasks=NAMES) == 15_648 + 1_152
    assert parameters(mixing) + parameters(towers) == 17_667


def test_golden_parameter_count_of_two_esmm_towers() -> None:
    tasks = {name: small_schema().tasks["click"] for name in "ab"}
    assert Towers.parameter_count(Towers.Config(hidden=(32, 16)), width=64, tasks=tasks) == 5_250


def test_mmoe_is_the_papers_sum_over_experts() -> None:
    model = mmoe()
    np.testing.assert_allclose(
        model(inputs()).detach().numpy(), mmoe_by_hand(model, inputs()), rtol=1e-4, atol=1e-5
    )


def test_an_input_a_task_feeds_its_gate_and_experts_read_the_mean() -> None:
    model, x_BTI = mmoe(), inputs(ROWS, TASKS, WIDTH)
    experts_BEH = model.bank(x_BTI.mean(dim=1))
    for t in range(TASKS):
        gate_BE = torch.softmax(x_BTI[:, t] @ model.gates.weight[t].T, dim=1)
        expected = (gate_BE[:, :, None] * experts_BEH).sum(dim=1)
        torch.testing.assert_close(model(x_BTI)[:, t], expected)


def test_mmoe_with_one_expert_is_shared_bottom() -> None:
    one = mmoe(experts=1)
    shared = SharedBottom(SharedBottom.Config(hidden=(6, 5)), width=WIDTH, tasks=NAMES)
    shared.bank.load_state_dict(one.bank.state_dict())
    torch.testing.assert_close(one(inputs()), shared(inputs()))


def test_gate_rows_are_positive_and_sum_to_one() -> None:
    gate_BTE = mmoe().gates(inputs())
    torch.testing.assert_close(gate_BTE.sum(dim=-1), torch.ones(ROWS, TASKS))
    assert ((gate_BTE > 0) & (gate_BTE < 1)).all()


def test_zero_gate_kernels_mean_the_mean_of_experts() -> None:
    model = mmoe()
    torch.nn.init.zeros_(model.gates.weight)
    mean_BH = model.bank(inputs()).mean(dim=1)
    torch.testing.assert_close(model(inputs()), mean_BH[:, None].expand(-1, TASKS, -1))


def test_permuting_experts_with_their_gate_columns_changes_nothing() -> None:
    model = mmoe()
    expected, order = model(inputs()), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for item in (*model.bank.weights, *model.bank.biases):
            item.copy_(item[order])
        model.gates.weight.copy_(model.gates.weight[:, order])
    torch.testing.assert_close(model(inputs()), expected)


def test_a_tasks_output_does_not_depend_on_another_tasks_gate() -> None:
    model = mmoe()
    for t in range(TASKS):
        (gradient,) = torch.autograd.grad(model(inputs())[:, t].sum(), model.gates.weight)
        assert [bool(row.any()) for row in gradient] == [u == t for u in range(TASKS)]


def test_tied_gates_give_every_task_the_one_gate_mixture() -> None:
    model = mmoe()
    with torch.no_grad():
        model.gates.weight.copy_(model.gates.weight[:1].expand(TASKS, -1, -1))
    one_gate = softmax(
        model.gates.weight[0].double().detach().numpy() @ inputs()[3].double().numpy()
    )
    omoe = sum(
        one_gate[e] * relu_mlp(model.bank, e, inputs()[3].double().numpy())
        for e in range(model.bank.experts)
    )
    for t in range(TASKS):
        np.testing.assert_allclose(
            model(inputs())[3, t].detach().numpy(), omoe, rtol=1e-4, atol=1e-5
        )


def test_a_hidden_gate_layer_and_a_bias_come_before_the_softmax() -> None:
    gates = Gates(WIDTH, tasks=TASKS, experts=4, hidden=(6,), bias=True)
    assert gates.trunk is not None
    assert gates.bias is not None
    torch.nn.init.normal_(gates.bias)
    for t in range(TASKS):
        hidden = torch.relu(inputs() @ gates.trunk.weights[0][t].T + gates.trunk.biases[0][t])
        expected = torch.softmax(hidden @ gates.weight[t].T + gates.bias[t], dim=1)
        torch.testing.assert_close(gates(inputs())[:, t], expected)


def test_gate_dropout_renormalises_survivors_and_keeps_a_row_that_loses_all() -> None:
    torch.manual_seed(0)
    gates = Gates(WIDTH, tasks=2, experts=3, dropout=0.6)
    torch.nn.init.normal_(gates.weight)
    x_BI = inputs(4000, WIDTH)
    plain, dropped = gates.eval()(x_BI), gates.train()(x_BI)
    kept = dropped > 0
    torch.testing.assert_close(dropped.sum(dim=-1), torch.ones(4000, 2))
    torch.testing.assert_close(dropped, plain * kept / (plain * kept).sum(dim=-1, keepdim=True))
    # All kept: by luck, 0.4^3, or because all were dropped, 0.6^3.
    assert float(kept.all(dim=-1).float().mean()) == pytest.approx(0.4**3 + 0.6**3, abs=0.02)
    torch.testing.assert_close(gates.eval()(x_BI), plain)


def test_expert_dropout_acts_in_training_alone() -> None:
    model = mmoe(expert_dropout=0.5)
    assert (model(inputs()) == model(inputs())).all()
    model.train()
    assert (model(inputs()) != model(inputs())).any()


@pytest.mark.parametrize(
    ("shape", "reads"),
    [
        ((ROWS, WIDTH), None),
        ((ROWS, 4, WIDTH), (0, 1, 2, 3)),
        ((ROWS, 3, WIDTH), (0, 0, 2, 2)),
        ((ROWS, 2, WIDTH), (1, 0, 0, 1)),
    ],
)
@pytest.mark.parametrize("hidden", [(5,), (6, 5), (4, 3, 2)])
def test_every_form_of_a_bank_computes_the_same(
    shape: tuple[int, ...], reads: tuple[int, ...] | None, hidden: tuple[int, ...]
) -> None:
    bank = ExpertBank(WIDTH, hidden, experts=4, inputs=reads)
    for bias in bank.biases:
        torch.nn.init.normal_(bias)
    results = []
    for form in get_args(Form):
        x = inputs(*shape).requires_grad_()
        out_BEH = bank.compute(x, form=form)
        gradients = torch.autograd.grad((out_BEH**2).sum(), [x, *bank.parameters()])
        results.append([out_BEH, *gradients])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)
    expected = [
        [
            relu_mlp(bank, e, (row if reads is None else row[reads[e]]).double().numpy())
            for e in range(4)
        ]
        for row in inputs(*shape)
    ]
    np.testing.assert_allclose(results[0][0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_mixing_weighs_expert_outputs() -> None:
    gate_BTE, experts_BEH = inputs(ROWS, TASKS, 4).softmax(dim=-1), inputs(ROWS, 4, 5)
    torch.testing.assert_close(
        mix(gate_BTE, experts_BEH), torch.einsum("bte,beh->bth", gate_BTE, experts_BEH)
    )


def test_a_probe_reads_experts_and_gates_of_the_level() -> None:
    model, probe = mmoe(), Probe()
    with probe.attached(model):
        model(inputs())
    (level,) = probe.levels
    assert level.groups == ("shared",) * 4
    assert level.out_BEH is not None
    assert level.gate_BTE is not None
    torch.testing.assert_close(level.out_BEH, model.bank(inputs()))
    torch.testing.assert_close(level.gate_BTE, model.gates(inputs()))
    assert not level.out_BEH.requires_grad


@pytest.mark.parametrize("sequence", ["mean", "mean_and_product", "target_attention"])
def test_the_flat_bottom_lays_features_side_by_side(sequence: str) -> None:
    layout = input_layout(small_schema())
    config = Flat.Config.parse({"kind": "flat", "sequence": sequence}, where="test")
    bottom = Flat(config, layout=layout, tasks=3)
    found = blocks(layout, users=3, rows=6, events=4)
    assert found.user_of_row_N is not None
    rows = []
    for n, user in enumerate(found.user_of_row_N.tolist()):
        candidate_I = found.candidate_NI[n]
        events = found.tokens["seen"][user][found.valid["seen"][user]]
        mean = events.mean(dim=0) if len(events) else torch.zeros(6)
        target, token = layout.candidate["item_id"], layout.sequences["seen"].tokens["item"]
        parts = [found.user_UI[user], mean, candidate_I]
        if sequence != "mean":
            parts.append(token.of(mean) * target.of(candidate_I))
        if sequence == "target_attention":
            scores = token.of(events) @ target.of(candidate_I) / 2.0
            parts.append(torch.softmax(scores, dim=0) @ events)
        rows.append(torch.cat(parts))
    x_NI = bottom(found)
    assert x_NI.shape[1] == bottom.width
    torch.testing.assert_close(x_NI, torch.stack(rows))


def test_the_layout_says_where_each_feature_lies() -> None:
    model, found = build_model(kinds.schema(), ModelConfig(), seed=0), batch(20)
    layout, inputs_, tables = (
        model.program.layout,
        model.embeddings(found),
        model.embeddings.table_weights(),
    )
    names = [slot.name for slot in slots(kinds.schema())]
    streams = torch.split(found.values_N, found.lengths_FB.sum(dim=1).tolist())
    ids = dict(zip(names, streams, strict=True))
    users, items = ids["user_id"], ids["item_id"]
    numbers = torch.split(found.dense_BD, [item.width for item in dense(kinds.schema())], dim=1)
    prices = dict(zip((item.name for item in dense(kinds.schema())), numbers, strict=True))["price"]
    assert (layout.user["user_id"].of(inputs_.user_UI) == tables["user"][users]).all()
    assert (layout.candidate["item_id"].of(inputs_.candidate_NI) == tables["item"][items]).all()
    assert (layout.candidate["price"].of(inputs_.candidate_NI) == prices).all()
    assert inputs_.user_UI.shape[1] == layout.user_width
    assert inputs_.candidate_NI.shape[1] == layout.candidate_width
    assert inputs_.tokens["seen"].shape[2] == layout.sequences["seen"].width


@pytest.mark.parametrize("schema", [small_schema(), samples.parse()])
def test_columns_of_a_block_leave_no_gap(schema: Schema) -> None:
    layout = input_layout(schema)
    rows: list[tuple[dict[str, Columns], int]] = [
        (layout.user, layout.user_width),
        (layout.candidate, layout.candidate_width),
        *((item.tokens, item.width) for item in layout.sequences.values()),
    ]
    for columns, width in rows:
        order = torch.cat([item.of(torch.arange(width)) for item in columns.values()])
        assert order.tolist() == list(range(width))


def test_users_are_repeated_for_their_rows() -> None:
    program = build_model(small_schema(), ModelConfig(), seed=0).program.eval()
    few = blocks(program.layout, users=2, rows=5, events=3)
    assert few.user_of_row_N is not None
    spread = Blocks(
        user_UI=few.rows_of(few.user_UI),
        candidate_NI=few.candidate_NI,
        tokens={name: few.rows_of(item) for name, item in few.tokens.items()},
        valid={name: few.rows_of(item) for name, item in few.valid.items()},
    )
    torch.testing.assert_close(program(few), program(spread))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"mixing": {"kind": "mmo"}}, r"mixing.kind: unknown 'mmo' \(did you mean 'mmoe'\?\)"),
        (
            {"mixing": {"experts": 3}},
            "'mixing.kind' is missing; add one of: single_task, shared_bottom, omoe, mmoe",
        ),
        (
            {"mixing": {"kind": "mmoe", "expert": 3}},
            r"mixing\S*expert' \(did you mean 'experts'\?\)",
        ),
        ({"mixing": {"kind": "mmoe", "expert_hidden": []}}, "needs at least 1 entry"),
        ({"mixing": {"kind": "mmoe", "expert_hidden": [8, 0]}}, "must be at least 1"),
        ({"heads": {"kind": "towers", "dropout": 1.0}}, "must be below 1"),
        ({"bottom": {"kind": "flat", "sequence": "product"}}, "'mean', 'mean_and_product'"),
        ({"embeddings": {"backend": "torch"}}, "'auto', 'torchrec' or 'plain'"),
    ],
)
def test_a_wrong_model_section_is_refused_by_name(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"experiment.toml: .*{message}"):
        ModelConfig.parse(tree, where="experiment.toml")


def test_a_model_configuration_survives_json() -> None:
    tree = {
        "mixing": {"kind": "shared_bottom", "hidden": [4]},
        "heads": {"kind": "towers", "hidden": []},
    }
    config = ModelConfig.parse(tree, where="experiment.toml")
    assert isinstance(config.mixing, SharedBottom.Config)
    assert ModelConfig.parse(config.model_dump(mode="json"), where="json") == config


def test_fast_float32_is_kept_only_where_it_is_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = torch.get_float32_matmul_precision()
    try:
        monkeypatch.setattr("recsys.models.precision._TOLERANCE", 0.0)
        assert use_fast_float32(torch.device("cpu")) == "highest"
        assert torch.get_float32_matmul_precision() == "highest"
        monkeypatch.setattr("recsys.models.precision._TOLERANCE", 1.0)
        assert use_fast_float32(torch.device("cpu")) == "medium"
        assert "medium_error=" in caplog.text
    finally:
        torch.set_float32_matmul_precision(before)


def test_bf16_warns_where_it_is_slower_than_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert bf16_slowdown(torch.device("cpu")) > 0
    monkeypatch.setattr("recsys.models.precision.bf16_slowdown", lambda _: 0.5)
    warn_of_slow_bf16(torch.device("cpu"))
    assert not caplog.records
    monkeypatch.setattr("recsys.models.precision.bf16_slowdown", lambda _: 8.04)
    warn_of_slow_bf16(torch.device("cpu"))
    assert "train.slow_bf16 times=8.0 " in caplog.text
