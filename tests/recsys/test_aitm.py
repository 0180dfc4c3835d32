"""AITM against its paper: parameter counts, a plain loop in float64, and what one step may know of another."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import ConfigError
from recsys.models.heads.aitm import AITM, StepAttention
from tests.recsys.test_heads import inputs, schema_of

# A chain of three declared out of order, a second child of its root, and a task of its own.
PARENTS = {"buy": "cart", "click": None, "cart": "click", "watch": None, "share": "click"}
BUY, CLICK, CART, WATCH, SHARE = range(5)


def built(hidden: tuple[int, ...] = (5, 4)) -> AITM:
    """Heads whose parameters, biases too, are all away from their initial values."""
    torch.manual_seed(0)
    tasks = schema_of(PARENTS, regression="watch").tasks
    heads = AITM(AITM.Config(hidden=hidden), width=6, tasks=tasks).eval()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return heads


def own_values(heads: AITM) -> list[Tensor]:
    return list(heads.bank(inputs(5)).unbind(1))


def test_golden_parameter_counts() -> None:
    assert sum(item.numel() for item in StepAttention(32).parameters()) == 3_072
    tasks = schema_of({"click": None, "buy": "click"}).tasks
    towers = 2 * (65 * 32 + 33 * 16 + 17)
    counted = AITM.parameter_count(AITM.Config(hidden=(32, 16)), width=64, tasks=tasks)
    assert counted == towers + 17 * 16 + 3 * 16 * 16


def test_every_logit_is_the_papers() -> None:
    heads = built()
    q = [value.detach().double().numpy() for value in own_values(heads)]
    first, second, third = heads.attention.weight.detach().double().numpy()

    def z(task: int, row: int) -> NDArray[np.float64]:
        parent = heads.parents[task]
        if parent is None:
            return np.asarray(q[task][row])
        transfer: Any = heads.transfers[str(task)]
        weight, bias = (
            item[0][0].detach().double().numpy() for item in (transfer.weights, transfer.biases)
        )
        handed_on = np.maximum(weight @ z(parent, row) + bias, 0)
        values = [handed_on, q[task][row]]
        scores = np.array([(first @ u) @ (second @ u) for u in values]) / np.sqrt(4)
        shares = np.exp(scores) / np.exp(scores).sum()
        return np.asarray(sum(share * (third @ u) for share, u in zip(shares, values, strict=True)))

    weight, bias = heads.weight.detach().double().numpy(), heads.bias.detach().double().numpy()
    expected = [[weight[t] @ z(t, row) + bias[t] for t in range(5)] for row in range(9)]
    np.testing.assert_allclose(heads(inputs(5)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_shares_sum_to_one_and_are_halves_of_equal_values() -> None:
    attention = built().attention
    u_BVH = torch.randn(9, 2, 4, generator=torch.Generator().manual_seed(0))
    shares_BV = attention.weights(u_BVH)
    torch.testing.assert_close(shares_BV.sum(dim=1), torch.ones(9))
    assert (shares_BV != 0.5).any()
    equal_BVH = u_BVH[:, :1].expand(-1, 2, -1)
    assert (attention.weights(equal_BVH) == 0.5).all()
    torch.testing.assert_close(attention(equal_BVH), u_BVH[:, 0] @ attention.weight[2].T)


@pytest.mark.parametrize(
    ("task", "reached"),
    [
        (CLICK, {BUY, CLICK, CART, SHARE}),
        (CART, {BUY, CART}),
        (BUY, {BUY}),
        (SHARE, {SHARE}),
        (WATCH, {WATCH}),
    ],
)
def test_a_tower_reaches_its_own_task_and_the_steps_behind_it(task: int, reached: set[int]) -> None:
    heads, x_BTH = built(), inputs(5)
    changed = x_BTH.clone()
    changed[:, task] += 1.0
    differs = (heads(changed) != heads(x_BTH)).any(dim=0)
    assert {t for t in range(5) if differs[t]} == reached


def test_output_biases_start_at_the_rates_over_all_rows() -> None:
    heads = built()
    heads.initialize_output_bias([0.001, 0.2, 0.03, 3.5, 0.0])
    torch.nn.init.zeros_(heads.weight)
    logits_BT = heads(inputs(5))
    rates = torch.tensor([[0.001, 0.2, 0.03]]).expand(9, 3)
    torch.testing.assert_close(logits_BT[:, :3].sigmoid(), rates)
    assert (logits_BT[:, WATCH] == 3.5).all()
    assert logits_BT.isfinite().all()


def test_tasks_without_a_funnel_are_refused_in_one_sentence() -> None:
    tasks = schema_of({"a": None, "b": None}).tasks
    with pytest.raises(ConfigError, match=r'^model.heads \(aitm\): .* kind = "towers"$'):
        AITM(AITM.Config(), width=6, tasks=tasks)
