"""Every optimizer of the tables, in every backend that has it, against loops over rows by hand; its state stored."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.errors import ConfigError
from recsys.experiment import load_experiment
from recsys.models.embeddings.lookup import Embeddings
from recsys.models.embeddings.stored import read_table_optimizer, write_table_optimizer
from recsys.models.embeddings.updates import FUSED, QUANTITIES, TableOptimizer, state_bytes
from recsys.run import load_run
from recsys.schema import Schema
from recsys.tensor_files import read_tensors
from recsys.training.trainer import train
from tests.recsys.small_data import small_data
from tests.recsys.table_state import optimizer_state
from tests.recsys.test_embeddings import RATE, TREE, build, naive_blocks, random_batch, some_loss
from tests.recsys.test_training import TOML, assert_bit_equal, killed_after, weights_of

EPSILON = 1e-3
EVERY: list[tuple[str, TableOptimizer]] = [
    *(("plain", optimizer) for optimizer in QUANTITIES),
    *((backend, optimizer) for backend in ("torchrec", "vectors") for optimizer in FUSED),
]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema.parse(TREE, where="schema.toml")


def embeddings(schema: Schema, backend: str, optimizer: TableOptimizer) -> Embeddings:
    return build(schema, backend, optimizer, initial_deviation=0.5, epsilon=EPSILON)


def trained(module: Embeddings, schema: Schema, steps: int) -> None:
    module.set_learning_rate(RATE)
    for seed in range(steps):
        some_loss(module(random_batch(schema, seed))).backward()  # type: ignore[no-untyped-call]


class ByHand:
    """A row of a table, number by number: what each optimizer's paper does to it."""

    def __init__(self, row: Tensor) -> None:
        self.weights = row.tolist()
        self.sums, self.sum = [0.0] * len(row), 0.0
        self.means, self.squares = [0.0] * len(row), [0.0] * len(row)

    def rowwise_adagrad(self, gradients: list[float], step: int) -> None:
        self.sum += sum(g * g for g in gradients) / len(gradients)
        for k, g in enumerate(gradients):
            self.weights[k] -= RATE * g / (math.sqrt(self.sum) + EPSILON)

    def adagrad(self, gradients: list[float], step: int) -> None:
        for k, g in enumerate(gradients):
            self.sums[k] += g * g
            self.weights[k] -= RATE * g / (math.sqrt(self.sums[k]) + EPSILON)

    def sgd(self, gradients: list[float], step: int) -> None:
        for k, g in enumerate(gradients):
            self.weights[k] -= RATE * g

    def adam(self, gradients: list[float], step: int) -> None:
        for k, g in enumerate(gradients):
            self.means[k] = 0.9 * self.means[k] + 0.1 * g
            self.squares[k] = 0.999 * self.squares[k] + 0.001 * g * g
            mean = self.means[k] / (1 - 0.9 ** (step + 1))
            square = self.squares[k] / (1 - 0.999 ** (step + 1))
            self.weights[k] -= RATE * mean / (math.sqrt(square) + EPSILON)


@pytest.mark.parametrize(("backend", "optimizer"), EVERY)
def test_rows_move_as_by_hand(schema: Schema, backend: str, optimizer: TableOptimizer) -> None:
    """Ids of nine values: rows are left out by some steps, in which neither they nor their state may move."""
    module = embeddings(schema, backend, optimizer)
    tables = {
        name: [ByHand(row) for row in table] for name, table in module.table_weights().items()
    }
    for step in range(3):
        leaves = {
            name: torch.tensor([row.weights for row in rows], requires_grad=True)
            for name, rows in tables.items()
        }
        some_loss(naive_blocks(schema, leaves, random_batch(schema, step))).backward()  # type: ignore[no-untyped-call]
        for name, rows in tables.items():
            gradient = leaves[name].grad
            assert gradient is not None
            for row, g in zip(rows, gradient, strict=True):
                if g.any():
                    getattr(row, optimizer)(g.tolist(), step)
    trained(module, schema, 3)
    for name, table in module.table_weights().items():
        expected = torch.tensor([row.weights for row in tables[name]])
        torch.testing.assert_close(table, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backend", "optimizer"), EVERY)
def test_state_is_stored_whole_and_taken_back(
    schema: Schema, backend: str, optimizer: TableOptimizer, tmp_path: Path
) -> None:
    first, second = (embeddings(schema, backend, optimizer) for _ in range(2))
    trained(first, schema, 2)
    write_table_optimizer(tmp_path / "state", first)
    read_table_optimizer(tmp_path / "state", second)

    state = optimizer_state(first)
    assert_bit_equal(read_tensors(tmp_path / "state"), state)
    assert_bit_equal(optimizer_state(second), state)
    assert all(item.any() for item in state.values())
    size = sum(4 * item.numel() for item in state.values())
    counts = 4 * len(first.specs) if optimizer == "adam" else 0
    rows = sum(state_bytes(optimizer, rows=s.rows, columns=s.dim) for s in first.specs)
    assert size == rows
    by_formula = {
        "rowwise_adagrad": lambda r, k: 4 * r,
        "adagrad": lambda r, k: 4 * r * k,
        "sgd": lambda r, k: 0,
        "adam": lambda r, k: 8 * r * k,
    }[optimizer]
    assert size == sum(by_formula(spec.rows, spec.dim) for spec in first.specs) + counts


def test_what_torchrec_cannot_train_is_refused_or_trained_by_plain_tables(
    schema: Schema, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        ConfigError, match=r'"adam", .* by one of: rowwise_adagrad, adagrad, sgd; take'
    ):
        embeddings(schema, "torchrec", "adam")
    assert embeddings(schema, "auto", "adam").backend == "plain"
    assert "TorchRec has no adam here" in caplog.text
    assert embeddings(schema, "auto", "adagrad").backend == "torchrec"


@pytest.mark.parametrize(
    ("backend", "optimizer"), [("plain", "adam"), ("torchrec", "adagrad"), ("torchrec", "sgd")]
)
def test_a_killed_run_goes_on_bit_for_bit_and_is_read_by_any(
    backend: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data(tmp_path)
    (data.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    asked = load_experiment(
        data.root / "experiment.toml",
        overrides=[
            f"model.embeddings.backend={backend}",
            f"optimizer.embeddings={optimizer}",
            "train.steps=6",
            "train.checkpoint_every=2",
        ],
    )
    train(asked, tmp_path / "whole")
    with killed_after(monkeypatch, 4):
        train(asked, tmp_path / "resumed")
    train(asked, tmp_path / "resumed", resume=True)

    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed"))
    states = [
        read_tensors(load_run(tmp_path / run).checkpoint.path / "table_optimizer.safetensors")
        for run in ("whole", "resumed")
    ]
    assert_bit_equal(*states)
