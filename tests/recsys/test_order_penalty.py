"""The penalty on a funnel out of order: what it is by hand, whom it moves, and which rows and losses it enters."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.experiment import ObjectiveConfig, load_experiment
from recsys.training.objective import Objective, OrderPenalty, build_objective
from recsys.training.trainer import train
from tests.recsys.small_data import small_data, small_schema
from tests.recsys.test_training import TOML, weights_of

# `buy` given `cart` given `click`, declared backwards, and a regression beside them.
PARENTS = (1, 2, None, None)
BUY, CART, CLICK, WATCH = range(4)
EVERYWHERE = torch.ones(1, 4, dtype=torch.bool)


def logits_of(*probabilities: float) -> Tensor:
    """One row of logits [1, T]; the regression's is no probability and has none that is compared."""
    return torch.cat([torch.tensor(probabilities).logit(), torch.tensor([30.0])])[None]


def objective(alpha: float, weights: tuple[float, ...] = (1.0,) * 4) -> Objective:
    order = OrderPenalty(PARENTS, alpha=alpha) if alpha else None
    return Objective(weights, regressions=(False, False, False, True), order=order)


def added(logits: Tensor, *, observed: Tensor, weights: Tensor, alpha: float = 0.6) -> list[float]:
    """By how much the penalty raises each task's loss."""
    with_it, without = (
        objective(item)(logits, torch.zeros_like(logits), observed, weights).by_task_T
        for item in (alpha, 0.0)
    )
    return [float(item) for item in with_it - without]


def test_each_step_pays_for_how_far_it_is_above_its_parent() -> None:
    # buy is 0.3 above cart, cart 0.1 above click: 0.6 * 0.3 and 0.6 * 0.1.
    paid = OrderPenalty(PARENTS, alpha=0.6)(logits_of(0.6, 0.3, 0.2), EVERYWHERE)
    assert paid.tolist() == [pytest.approx([0.18, 0.06, 0.0, 0.0], abs=1e-6)]


@pytest.mark.parametrize(
    ("probabilities", "in_order"),
    [
        ((0.1, 0.2, 0.3), True),
        ((0.2, 0.2, 0.2), True),
        ((0.21, 0.2, 0.3), False),
        ((0.1, 0.31, 0.3), False),
    ],
)
def test_it_is_zero_if_and_only_if_the_outputs_are_in_order(
    probabilities: tuple[float, ...], in_order: bool
) -> None:
    paid = OrderPenalty(PARENTS, alpha=0.6)(logits_of(*probabilities), EVERYWHERE)
    assert bool((paid == 0).all()) == in_order


def test_it_draws_the_child_down_and_the_parent_up_and_leaves_what_is_in_order() -> None:
    logits = logits_of(0.4, 0.2, 0.5).requires_grad_()
    OrderPenalty(PARENTS, alpha=0.6)(logits, EVERYWHERE).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    # p (1 - p) alpha; click stands above cart, and the regression in no order.
    expected = [0.6 * 0.4 * 0.6, -0.6 * 0.2 * 0.8, 0.0, 0.0]
    assert logits.grad.tolist() == [pytest.approx(expected, abs=1e-6)]


def test_it_is_a_mean_over_the_childs_rows_by_their_weights() -> None:
    logits = torch.cat([logits_of(0.6, 0.3, 0.9), logits_of(0.1, 0.3, 0.9)])
    observed, weights = EVERYWHERE.expand(2, 4), torch.tensor([1.0, 3.0])
    # Only the first row's buy is above its cart: 0.6 * 0.3, of a weight of 1 in 4.
    paid = added(logits, observed=observed, weights=weights)
    assert paid == pytest.approx([0.045, 0.0, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("hidden", [BUY, CART])
def test_a_row_without_the_child_or_the_parent_pays_nothing(hidden: int) -> None:
    logits = torch.cat([logits_of(0.6, 0.3, 0.9)] * 2)
    observed = EVERYWHERE.repeat(2, 1)
    observed[1, hidden] = False
    paid = added(logits, observed=observed, weights=torch.ones(2))
    # A row that the child lacks is none of its mean's; one that the parent lacks counts as one in order.
    expected = 0.18 if hidden == BUY else 0.09
    assert paid == pytest.approx([expected, 0.0, 0.0, 0.0], abs=1e-6)


def test_it_counts_as_the_childs_loss_and_weighs_what_the_child_weighs() -> None:
    logits = logits_of(0.6, 0.3, 0.9)
    total, plain = (
        objective(alpha, (5.0, 0.0, 0.0, 0.0))(
            logits, torch.zeros(1, 4), EVERYWHERE, torch.ones(1)
        ).total
        for alpha in (0.6, 0.0)
    )
    assert float(total - plain) == pytest.approx(5 * 0.18, rel=1e-5)


def test_the_schemas_given_says_who_is_whose_parent() -> None:
    assert build_objective(small_schema(), ObjectiveConfig()).order is None
    order = build_objective(small_schema(), ObjectiveConfig(order_penalty=0.6)).order
    assert order is not None
    assert (order.child_index.tolist(), order.parent_index.tolist()) == ([1], [0])
    assert order.alpha == 0.6


def test_a_training_under_it_learns_something_else(tmp_path: Path) -> None:
    small_data(tmp_path)
    file = tmp_path / "experiment.toml"
    file.write_text(TOML, encoding="utf-8")
    # Tasks start at their base rates, which are in order: steps this large break it.
    options = (
        'model.heads={kind="aitm"}',
        "model.embeddings.backend=plain",
        "optimizer.dense_lr=1.0",
        "train.steps=4",
    )
    learned = []
    for alpha in (0.0, 50.0):
        experiment = load_experiment(file, overrides=(*options, f"objective.order_penalty={alpha}"))
        train(experiment, tmp_path / f"run{alpha}")
        learned.append(weights_of(tmp_path / f"run{alpha}"))
    assert not torch.equal(learned[0]["heads.bias"], learned[1]["heads.bias"])
