"""Towers and the funnel's algebra, against products of probabilities in float64."""

import itertools

import pytest
import torch
from torch import Tensor

from recsys.models.heads.towers import Towers, funnel, joint_logit
from recsys.schema import Schema


def schema_of(parents: dict[str, str | None], regression: str | None = None) -> Schema:
    tasks = {
        name: {"label": name}
        | ({} if parent is None else {"given": parent})
        | ({"kind": "regression"} if name == regression else {})
        for name, parent in parents.items()
    }
    tree = {
        "columns": dict.fromkeys(parents, "float32") | {"x": "float32"},
        "features": {"x": {"kind": "numeric"}},
        "tasks": tasks,
    }
    return Schema.parse(tree, where="schema.toml")


def towers(schema: Schema, hidden: tuple[int, ...] = (4,)) -> Towers:
    torch.manual_seed(0)
    return Towers(Towers.Config(hidden=hidden), width=6, tasks=schema.tasks)


def inputs(tasks: int) -> Tensor:
    return torch.randn(9, tasks, 6, generator=torch.Generator().manual_seed(1))


def test_the_joint_logit_is_that_of_the_product_of_probabilities() -> None:
    values = [-40.0, -8.0, -1.0, 0.0, 0.3, 2.0, 15.0]
    for a, b in itertools.product(values, values):
        parent, child = torch.tensor([a]), torch.tensor([b])
        p = parent.double().sigmoid() * child.double().sigmoid()
        # 1 - p without cancellation: 1 - xy = (1 - x) + x(1 - y).
        rest = (-parent.double()).sigmoid() + parent.double().sigmoid() * (
            -child.double()
        ).sigmoid()
        expected = (p.log() - rest.log()).float()
        torch.testing.assert_close(joint_logit(parent, child), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("big", [1e3, 1e10, 1e30])
def test_the_joint_logit_is_finite_and_exact_at_extremes(big: float) -> None:
    child = torch.tensor([-3.0, 0.25, 7.0])
    certain = torch.full_like(child, big)
    torch.testing.assert_close(joint_logit(certain, child), child, rtol=1e-6, atol=0)
    torch.testing.assert_close(joint_logit(child, certain), child, rtol=1e-6, atol=0)
    assert joint_logit(-certain, child).isfinite().all()
    assert joint_logit(-certain, -certain).isfinite().all()
    assert joint_logit(certain, certain).isfinite().all()


def test_a_joint_probability_exceeds_neither_factor_and_reaches_both_towers() -> None:
    parent = torch.linspace(-9, 9, 37).requires_grad_()
    child = torch.linspace(9, -9, 37).requires_grad_()
    joint = joint_logit(parent, child)
    assert (joint <= torch.minimum(parent, child)).all()
    joint.sum().backward()  # type: ignore[no-untyped-call]
    for item in (parent, child):
        assert item.grad is not None
        assert (item.grad > 0).all()


def test_a_funnel_multiplies_every_step_whatever_the_order_of_tasks() -> None:
    """purchase given cart given click, declared backwards, beside a task of its own."""
    conditional_BT = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    joint_BT = funnel(conditional_BT, (1, 3, None, None))
    p = conditional_BT.double().sigmoid()
    expected = torch.stack(
        [p[:, 0] * p[:, 1] * p[:, 3], p[:, 1] * p[:, 3], p[:, 2], p[:, 3]], dim=1
    )
    torch.testing.assert_close(joint_BT.double().sigmoid(), expected, rtol=1e-6, atol=1e-7)


def test_towers_are_separate_mlps_with_a_linear_output() -> None:
    heads, x_BTH = towers(schema_of({"a": None, "b": None})), inputs(2)
    assert heads.bank is not None
    for t in range(2):
        hidden = torch.relu(x_BTH[:, t] @ heads.bank.weights[0][t].T + heads.bank.biases[0][t])
        torch.testing.assert_close(heads(x_BTH)[:, t], hidden @ heads.weight[t] + heads.bias[t])


def test_towers_apply_the_schemas_funnel_and_leave_a_regression_alone() -> None:
    heads = towers(schema_of({"buy": "click", "click": None, "watch": None}, regression="watch"))
    own, joint = heads.conditional(inputs(3)), heads(inputs(3))
    torch.testing.assert_close(joint[:, 0], joint_logit(own[:, 1], own[:, 0]))
    assert (joint[:, 1:] == own[:, 1:]).all()


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_output_biases_start_at_the_base_rates(hidden: tuple[int, ...]) -> None:
    heads = towers(schema_of({"buy": "click", "click": None, "watch": None}, "watch"), hidden)
    heads.initialize_output_bias([0.02, 0.2, 3.5])
    torch.nn.init.zeros_(heads.weight)
    logits_BT = heads(inputs(3))
    torch.testing.assert_close(logits_BT[:, :2].sigmoid(), torch.tensor([[0.02, 0.2]]).expand(9, 2))
    assert (logits_BT[:, 2] == 3.5).all()
    heads.initialize_output_bias([0.0, 0.0, 0.0])
    assert heads(inputs(3)).isfinite().all()
