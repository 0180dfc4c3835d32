"""The schedule's shape, and the dense optimizer against torch's own."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from recsys.experiment import OptimizerConfig
from recsys.models import ModelConfig, build_program
from recsys.training.optim import DenseOptimizer, Optimizer, Schedule, is_decayed
from tests.samples import parse


def test_warm_up_rises_to_one_and_decay_falls_to_the_final_fraction() -> None:
    linear = Schedule(warmup_steps=4, total_steps=14, decay="linear", final_fraction=0.1)
    factors = [linear.factor(step) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[13] == pytest.approx(0.1)
    steps = [later - earlier for earlier, later in pairwise(factors[4:])]
    assert steps == pytest.approx([-0.1] * 9)


def test_cosine_falls_slowly_at_both_ends() -> None:
    cosine = Schedule(warmup_steps=0, total_steps=11, decay="cosine", final_fraction=0.0)
    assert [cosine.factor(step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert cosine.factor(0) - cosine.factor(1) < cosine.factor(4) - cosine.factor(5)


def test_without_decay_the_rate_stays() -> None:
    plain = Schedule(warmup_steps=0, total_steps=5, decay="none", final_fraction=0.0)
    assert {plain.factor(step) for step in range(5)} == {1.0}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def backward(model: nn.Sequential, seed: int, scale: float = 1.0) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    (scale * model(x).square().mean()).backward()


def test_steps_equal_torchs_adamw_with_clipped_gradients() -> None:
    config = OptimizerConfig(weight_decay=0.1, clip_norm=0.5)
    ours, theirs = network(), network()
    optimizer = DenseOptimizer(ours.named_parameters(), config)
    weights = [item for item in theirs.parameters() if item.ndim == 2]
    biases = [item for item in theirs.parameters() if item.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    )
    for step in range(5):
        rate = 1e-2 / (step + 1)
        backward(ours, step, scale=100.0)
        norm = optimizer.step(rate)
        backward(theirs, step, scale=100.0)
        expected_norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        reference.zero_grad()
        assert float(norm) == pytest.approx(float(expected_norm))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_state_by_name_continues_bit_for_bit() -> None:
    straight, resumed = network(), network()
    first = DenseOptimizer(straight.named_parameters(), OptimizerConfig())
    assert first.state() == {}
    for step in range(3):
        backward(straight, step)
        first.step(1e-2)
    resumed.load_state_dict(straight.state_dict())
    second = DenseOptimizer(resumed.named_parameters(), OptimizerConfig())
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for model, optimizer in ((straight, first), (resumed, second)):
        backward(model, 9)
        optimizer.step(1e-2)
    for mine, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_tables_and_dense_parameters_follow_one_schedule() -> None:
    seen: list[float] = []

    class Embeddings:
        def set_learning_rate(self, rate: float) -> None:
            seen.append(rate)

    config = OptimizerConfig(embedding_lr=0.2, dense_lr=0.1, warmup_steps=2, decay="linear")
    optimizer = Optimizer(network().named_parameters(), Embeddings(), config=config, total_steps=5)
    for step in range(5):
        optimizer.before_backward(step)
    assert seen == pytest.approx([0.1, 0.2, 0.2, 0.1, 0.0])
    assert [optimizer.dense_lr(step) for step in range(5)] == pytest.approx(
        [0.05, 0.1, 0.1, 0.05, 0.0]
    )


def test_weight_decay_spares_the_biases_and_gates_of_every_stage() -> None:
    program = build_program(parse(), ModelConfig(), seed=0)
    decayed = {name for name, item in program.named_parameters() if is_decayed(name, item)}

    assert decayed == {
        "mixing.bank.weights.0",
        "mixing.bank.weights.1",
        "heads.bank.weights.0",
        "heads.weight",
    }
