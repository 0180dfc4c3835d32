"""Steps of two ranks on tables that both hold whole, and the same steps by hand; what workers for tests run of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.layout import slots
from recsys.models.embeddings.lookup import Embeddings
from recsys.models.embeddings.replicated import ReplicatedTables
from recsys.models.embeddings.tables import EmbeddingsConfig
from recsys.models.embeddings.updates import FUSED, TableOptimizer
from recsys.ranks import rank
from recsys.schema import Schema
from recsys.tensor_files import write_tensors
from recsys.training.soundness import Soundness
from tests.recsys.test_embeddings import RATE, TREE, naive_blocks, random_batch, some_loss

EPSILON, START = 1e-3, 0.1
CONFIG = EmbeddingsConfig(
    backend="plain", initial_deviation=0.5, initial_accumulator=START, epsilon=EPSILON
)


def schema() -> Schema:
    return Schema.parse(TREE, where="schema.toml")


def embeddings(optimizer: TableOptimizer, kind: Any = ReplicatedTables) -> Embeddings:
    cpu = torch.device("cpu")
    module = Embeddings(schema(), CONFIG, seed=0, device=cpu, optimizer=optimizer)
    module.tables = kind(module.specs, CONFIG, optimizer=optimizer, seed=0, device=cpu)
    module.set_learning_rate(RATE)
    return module


def steps() -> list[tuple[Batch, Batch]]:
    """Batches of both ranks: one has fewer rows, no rows, no ids in bags and sequences, or both have none."""
    own = schema()
    none = random_batch(own, 4, rows=0)
    empty = without_ids(random_batch(own, 5, rows=3))
    return [
        (random_batch(own, 0), random_batch(own, 1, rows=5)),
        (random_batch(own, 2), none),
        (none, random_batch(own, 3)),
        (empty, random_batch(own, 6)),
        (empty, none),
        (random_batch(own, 7), random_batch(own, 8)),
    ]


def without_ids(batch: Batch) -> Batch:
    """The batch with single ids alone."""
    counts = batch.lengths_FB.sum(dim=1).tolist()
    single = [slot.kind == "single" for slot in slots(schema())]
    kept_N = torch.repeat_interleave(torch.tensor(single), torch.tensor(counts))
    assert batch.weights_N is not None
    return replace(
        batch,
        values_N=batch.values_N[kept_N],
        weights_N=batch.weights_N[kept_N],
        lengths_FB=batch.lengths_FB * torch.tensor(single)[:, None],
    )


def by_hand(optimizer: TableOptimizer) -> dict[str, Tensor]:
    """Weights and state of all tables after the steps: dense gradients of both ranks' losses, whole tables moved."""
    module = embeddings(optimizer)
    tables = {part.table: part.weight_RK.clone() for part in module.tables.parts()}
    sums = {name: torch.full_like(table, START) for name, table in tables.items()}
    for batches in steps():
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        for batch in batches:
            if batch.rows:
                some_loss(naive_blocks(schema(), leaves, batch)).backward()  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            square = gradient.square()
            if optimizer == "rowwise_adagrad":
                square = square.mean(dim=1, keepdim=True).expand_as(square)
            sums[name] += square
            divisor = 1.0 if optimizer == "sgd" else sums[name].sqrt() + EPSILON
            tables[name] -= RATE * gradient / divisor
    state = {
        f"{name}/sum": item[:, 0] if optimizer == "rowwise_adagrad" else item
        for name, item in sums.items()
        if optimizer != "sgd"
    }
    return tables | state


def held(module: Embeddings) -> dict[str, Tensor]:
    """Copies of weights and state."""
    parts = module.tables.parts()
    state = {f"{part.table}/{key}": item for part in parts for key, item in part.state.items()}
    return {name: item.clone() for name, item in state.items()} | {
        part.table: part.weight_RK.clone() for part in parts
    }


def train_share(folder: Path) -> None:
    """Make this rank's share of the steps with each optimizer; note what it then holds, and what unsound steps left."""
    found: dict[str, Tensor] = {}
    for optimizer in FUSED:
        module = embeddings(optimizer)
        for batches in steps():
            batch = batches[rank()]
            with torch.no_grad():
                some_loss(module(batch))
            some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]
        ended = held(module)
        found |= {f"{optimizer}/{name}": item for name, item in ended.items()}
        model: Any = SimpleNamespace(program=nn.Linear(1, 1), embeddings=module)
        soundness = Soundness(model, optimizer)
        soundness.begin()
        # Of one rank alone, in one block.
        bad = float("inf") if rank() == 1 else 1.0
        (bad * some_loss(module(steps()[0][rank()]))).backward()  # type: ignore[no-untyped-call]
        same = all(torch.equal(item, ended[name]) for name, item in held(module).items())
        found[f"{optimizer}: no trace"] = torch.tensor(same and not soundness.tables_are_touched())
    write_tensors(folder / f"tables-{rank()}.safetensors", found)
