"""Copies of tables in one process: beside other tables, in checkpoints, and when their message leaves.

Two ranks hold them in tests/recsys/test_workers.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.models.embeddings import replicated, stored
from recsys.models.embeddings.plain import PlainTables
from recsys.models.embeddings.replicated import MixedTables, ReplicatedTables
from recsys.models.embeddings.stored import read_table_optimizer, read_tables
from recsys.models.embeddings.updates import FUSED, TableOptimizer
from tests.recsys.replicated_tables import by_hand, embeddings, held, steps
from tests.recsys.test_embeddings import some_loss

COPIED = ("item", "pure")


def mixed(specs: Any, *arguments: Any, **named: Any) -> MixedTables:
    copies = [spec for spec in specs if spec.name in COPIED]
    others = [spec for spec in specs if spec.name not in COPIED]
    return MixedTables(
        ReplicatedTables(copies, *arguments, **named), PlainTables(others, *arguments, **named)
    )


def train(module: Any) -> None:
    """The batches of both ranks, one after the other."""
    for batches in steps():
        for batch in batches:
            some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("optimizer", FUSED)
def test_copies_beside_other_tables_learn_as_all_of_one_kind(optimizer: TableOptimizer) -> None:
    found, expected = embeddings(optimizer, mixed), embeddings(optimizer, PlainTables)
    for module in (found, expected):
        train(module)
    for name, tensor in held(expected).items():
        torch.testing.assert_close(held(found)[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("optimizer", FUSED)
def test_a_rank_begins_with_what_one_process_begins_with(optimizer: TableOptimizer) -> None:
    found, expected = (held(embeddings(optimizer, kind)) for kind in (mixed, PlainTables))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_copies_message_is_the_last_of_every_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one size, whatever the batch: ranks with other batches, or with none, wait for it at the same place."""
    module = embeddings("sgd", mixed)
    seen: list[Any] = []

    def note(gradients: Sequence[Tensor]) -> list[Tensor]:
        seen.append(tuple(gradient.shape for gradient in gradients))
        return list(gradients)

    def update(tables: PlainTables, name: str, *arguments: Any, **named: Any) -> None:
        seen.append(name)

    monkeypatch.setattr(replicated, "added_up", note)
    monkeypatch.setattr(PlainTables, "_update", update)
    for batches in steps():
        for batch in batches:
            seen.clear()
            some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]
            assert sorted(seen[:-1]) == ["tag", "user"]
            assert seen[-1] == ((40, 8), (20, 4))


def test_tables_that_no_loss_depends_on_stay_as_they_are() -> None:
    module = embeddings("rowwise_adagrad")
    before = held(module)
    batch = steps()[0][0]
    # The events' vectors: of items and tags.
    module(batch).tokens["seen"].sum().backward()
    after = held(module)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"item", "item/sum", "tag", "tag/sum"}


def test_an_evaluation_leaves_no_trace_and_a_rate_counts_from_its_lookup_on() -> None:
    module = embeddings("sgd")
    before, (batch, _) = held(module), steps()[0]
    with torch.no_grad():
        assert not module(batch).user_UI.requires_grad
    loss = some_loss(module(batch))
    module.set_learning_rate(0.0)
    some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(tensor, before[name]) for name, tensor in held(module).items())
    loss.backward()  # type: ignore[no-untyped-call]
    assert not torch.equal(held(module)["user"], before["user"])


@pytest.mark.parametrize("optimizer", FUSED)
def test_the_first_rank_alone_writes_copies_and_every_rank_reads_them(
    optimizer: TableOptimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the files that one process writes: which tables were copied is not told."""
    module = embeddings(optimizer, mixed)
    train(module)
    files = [tmp_path / name for name in ("tables", "state")]
    stored.write_tables(files[0], module)
    stored.write_table_optimizer(files[1], module)
    for kind in (PlainTables, ReplicatedTables, mixed):
        other = embeddings(optimizer, kind)
        read_tables(files[0], other)
        read_table_optimizer(files[1], other)
        assert all(torch.equal(held(other)[name], item) for name, item in held(module).items())
    written: list[str] = []
    monkeypatch.setattr(stored, "is_first", lambda: False)
    monkeypatch.setattr(
        stored, "write_blocks", lambda file, shapes, blocks: written.extend(b.name for b in blocks)
    )
    stored.write_tables(files[0], module)
    stored.write_table_optimizer(files[1], module)
    assert set(written) == {"user", "tag"}


def test_two_lookups_of_two_ranks_are_two_steps_of_one() -> None:
    """By hand, gradients are added up before the update: the oracle would notice ranks that did not."""
    module = embeddings("adagrad")
    train(module)
    expected = by_hand("adagrad")
    assert not torch.allclose(held(module)["item"], expected["item"], rtol=1e-3, atol=1e-3)


def test_adam_which_moves_rows_without_gradient_has_no_copies() -> None:
    with pytest.raises(AssertionError, match="Adam moves rows whose gradient is zero"):
        embeddings("adam")(steps()[0][0])
