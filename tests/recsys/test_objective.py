"""The masked multi-task loss against its definition, written as loops."""

import math

import pytest
import torch
from torch import Tensor

from recsys.errors import ConfigError
from recsys.experiment import ObjectiveConfig
from recsys.training.objective import Objective, build_objective, mean_by_task
from tests.recsys.small_data import small_schema


def loss_by_definition(
    logits: Tensor,
    labels: Tensor,
    observed: Tensor,
    weights: Tensor,
    *,
    regressions: tuple[bool, ...],
) -> list[float]:
    found = []
    for t, regression in enumerate(regressions):
        total, weight = 0.0, 0.0
        for b in range(len(logits)):
            if not observed[b, t]:
                continue
            x, y, w = float(logits[b, t]), float(labels[b, t]), float(weights[b])
            p = 1.0 / (1.0 + math.exp(-x))
            term = (x - y) ** 2 if regression else -y * math.log(p) - (1 - y) * math.log(1 - p)
            total += w * term
            weight += w
        found.append(total / max(1.0, weight))
    return found


@pytest.mark.parametrize(
    "regressions", [(False, False, True), (False,) * 3, (True,) * 3, (True, False, False)]
)
def test_loss_equals_its_definition(regressions: tuple[bool, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator)
    labels = torch.randint(0, 2, (50, 3), generator=generator).float()
    observed = torch.rand(50, 3, generator=generator) < torch.tensor([1.0, 0.3, 0.05])
    weights = torch.rand(50, generator=generator)
    loss = Objective((1.0, 2.0, 0.5), regressions=regressions)(logits, labels, observed, weights)
    expected = loss_by_definition(logits, labels, observed, weights, regressions=regressions)
    assert loss.by_task_T.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(loss.total) == pytest.approx(
        expected[0] + 2 * expected[1] + 0.5 * expected[2], rel=1e-5
    )


def test_the_denominator_is_each_tasks_own_weight_and_at_least_one() -> None:
    objective = Objective((1.0, 1.0), regressions=(True, True))
    logits, labels = torch.full((4, 2), 3.0), torch.zeros(4, 2)
    observed = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    by_task = objective(logits, labels, observed, torch.full((4,), 0.25)).by_task_T
    # Weights sum to 1 for the first task; to 0.25 for the second, which is divided by 1 all the same.
    assert by_task.tolist() == [9.0, 2.25]


def test_a_task_that_is_nowhere_observed_contributes_neither_loss_nor_gradient() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    observed = torch.tensor([[True, False]] * 3)
    loss = Objective((1.0, 1.0), regressions=(False, False))(
        logits, torch.ones(3, 2), observed, torch.ones(3)
    )
    loss.total.backward()
    assert loss.by_task_T[1] == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 1], torch.zeros(3))
    assert (logits.grad[:, 0] != 0).all()


def test_a_large_binary_logit_beside_a_regression_keeps_its_gradient_finite() -> None:
    logits = torch.tensor([[1e30, 1.0]], requires_grad=True)
    objective = Objective((1.0, 1.0), regressions=(False, True))
    objective(
        logits, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.ones(1)
    ).total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_loss_of_bf16_logits_is_computed_in_float32() -> None:
    logits = torch.randn(8, 1).bfloat16()
    observed = torch.ones(8, 1, dtype=torch.bool)
    loss = Objective((1.0,), regressions=(False,))(
        logits, torch.zeros(8, 1), observed, torch.ones(8)
    )
    assert loss.total.dtype == torch.float32


def test_weights_come_by_task_name() -> None:
    objective = build_objective(small_schema(), ObjectiveConfig(weights={"purchase": 3.0}))
    assert objective.task_weights_T.tolist() == [1.0, 3.0, 1.0]
    assert objective.regression_index.tolist() == [2]
    with pytest.raises(ConfigError, match="did you mean 'purchase'"):
        build_objective(small_schema(), ObjectiveConfig(weights={"purchas": 3.0}))


def test_the_mean_over_batches_is_that_of_their_rows_together() -> None:
    objective = Objective((1.0, 1.0), regressions=(True, True))
    logits, labels = torch.randn(9, 2), torch.randn(9, 2)
    observed = torch.tensor([[True, n in (0, 5, 6)] for n in range(9)])
    weights = torch.full((9,), 2.0)
    parts = [slice(0, 4), slice(4, 5), slice(5, 9)]
    losses = [objective(logits[p], labels[p], observed[p], weights[p]) for p in parts]

    whole = objective(logits, labels, observed, weights).by_task_T
    assert mean_by_task(losses).tolist() == pytest.approx(whole.tolist(), rel=1e-6)
