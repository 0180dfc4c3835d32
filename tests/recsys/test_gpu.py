"""On a GPU tables and dense part train what they train on the CPU; skipped with a reason where there is none."""

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor

from recsys.experiment import ObjectiveConfig, OptimizerConfig
from recsys.models import ModelConfig, RankingModel, build_model
from recsys.models.embeddings.updates import FUSED, QUANTITIES, TableOptimizer
from recsys.schema import Schema
from recsys.training.accumulation import build_backward
from recsys.training.balancing.method import Plain
from recsys.training.forward import Forward
from recsys.training.objective import build_objective
from recsys.training.optim import Optimizer
from tests.recsys.table_state import optimizer_state
from tests.recsys.test_embeddings import TREE, random_batch

pytestmark = pytest.mark.gpu
SCHEMA = Schema.parse(TREE, where="schema.toml")
STEPS = 3


def trained(
    device: str,
    *,
    backend: str = "plain",
    mixing: str = "mmoe",
    precision: str = "float32",
    parts: int = 1,
    optimizer: TableOptimizer = "rowwise_adagrad",
) -> tuple[RankingModel, list[float]]:
    """A model after a few steps, and the steps' losses."""
    sections = {"embeddings": {"backend": backend}, "mixing": {"kind": mixing}}
    config = ModelConfig.parse(sections, where="test")
    model = build_model(SCHEMA, config, seed=0, device=device, optimizer=optimizer).train()
    objective = build_objective(SCHEMA, ObjectiveConfig()).to(device)
    forward = Forward(model, objective, precision=precision)  # type: ignore[arg-type]
    backward = build_backward(forward, Plain(objective.task_weights_T), parts=parts)
    update = Optimizer(
        model.program.named_parameters(),
        model.embeddings,
        config=OptimizerConfig(embedding_lr=0.1),
        total_steps=STEPS,
    )
    losses = []
    for step in range(STEPS):
        batch = random_batch(SCHEMA, step, rows=64).to(device)
        update.before_backward(step)
        losses.append(backward(batch, step).total.item())
        update.after_backward(step, update.dense.gradient_norm())
    return model, losses


def state_of(model: RankingModel) -> dict[str, Tensor]:
    tables = model.embeddings.table_weights() | {
        f"state of {name}": item for name, item in optimizer_state(model.embeddings).items()
    }
    return {name: item.cpu() for name, item in (model.program.state_dict() | tables).items()}


def assert_alike(found: RankingModel, expected: RankingModel) -> None:
    """Sums in another order, and AdamW's steps of whole rates from them: to a tenth of a rate."""
    mine, other = state_of(found), state_of(expected)
    assert mine.keys() == other.keys()
    for name, item in other.items():
        torch.testing.assert_close(mine[name], item, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("optimizer", list(QUANTITIES))
def test_steps_are_those_of_the_cpu(optimizer: TableOptimizer) -> None:
    (model, losses), (other, expected) = (
        trained(device, optimizer=optimizer) for device in ("cuda", "cpu")
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_alike(model, other)


@pytest.mark.parametrize("optimizer", FUSED)
def test_torchrec_gives_vectors_on_gpus_and_trains_as_with_sums_on_cpus(
    optimizer: TableOptimizer,
) -> None:
    _require_kernels()
    (model, losses), (other, expected) = (
        trained(device, backend="torchrec", optimizer=optimizer) for device in ("cuda", "cpu")
    )
    names = [
        [type(item).__name__ for item in trained_model.embeddings.tables.collections]  # type: ignore[attr-defined]
        for trained_model in (model, other)
    ]
    assert [found.count("Vectors") for found in names] == [2, 0]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_alike(model, other)


def _require_kernels() -> None:
    """Skip where fbgemm is the build for CPUs, or is not there."""
    try:
        version("fbgemm-gpu-cpu")
    except PackageNotFoundError:
        pytest.importorskip("torchrec")
    else:
        pytest.skip("fbgemm has no kernels for GPUs here")


@pytest.mark.parametrize("mixing", ["mmoe", "ple", "home"])
def test_forms_of_experts_for_gpus_train_like_the_loop_of_cpus(mixing: str) -> None:
    losses, expected = (trained(device, mixing=mixing)[1] for device in ("cuda", "cpu"))
    assert losses == pytest.approx(expected, rel=1e-3)


def test_parts_are_the_whole_batch() -> None:
    (model, losses), (other, expected) = (trained("cuda", parts=parts) for parts in (3, 1))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert_alike(model, other)


@pytest.mark.parametrize("mixing", ["mmoe", "home"])
def test_bf16_steps_are_near_those_of_float32(mixing: str) -> None:
    losses, expected = (
        trained("cuda", mixing=mixing, precision=precision)[1] for precision in ("bf16", "float32")
    )
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected
