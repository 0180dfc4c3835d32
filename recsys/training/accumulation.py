"""How a batch becomes gradients: at once, or in parts of which only one is in memory at a time.

Tables update themselves in their backward pass, and Adagrad on k gradients is not Adagrad on their sum. So a step looks
all of its rows up at once and goes back into the tables once; what lies between, the program, runs part after part:

```
ids of the batch -> tables -> blocks ─┬─ part 1 -> program -> loss ─┐
                                      ├─ part 2 -> program -> loss ─┤ gradients of the parts' blocks, one after the
                                      └─ part k -> program -> loss ─┘ other, are those of the blocks -> tables
```

What a part keeps for its backward pass is free before the next one begins. Parts are sums over rows divided by the
whole batch's weights, so they add up to the batch's own loss and gradients, each task's too: a method that combines the
tasks' gradients of shared parameters (`recsys.training.balancing`) gathers them part by part, and combines them once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.models import Blocks
from recsys.ranks import add_up
from recsys.training.balancing import Balance
from recsys.training.forward import Forward
from recsys.training.objective import Loss


class Backward(Protocol):
    """From a batch to its gradients."""

    def __call__(self, batch: Batch, step: int) -> Loss:
        """Fill all gradients of a batch, update the tables, and give the batch's loss."""

    def repeat(self, batch: Batch) -> Callable[[], Loss]:
        """What computes the batch's loss again, later, with the dropout of now (`Forward.repeated`)."""


def build_backward(forward: Forward, balance: Balance, *, parts: int) -> Backward:
    """The way of `train.accumulate`."""
    return AtOnce(forward, balance) if parts == 1 else InParts(forward, balance, parts=parts)


@dataclass(frozen=True, eq=False)
class AtOnce:
    """One forward and one backward pass."""

    forward: Forward
    balance: Balance

    def __call__(self, batch: Batch, step: int) -> Loss:
        loss = self.forward.loss(batch)
        self.balance.backward([loss], step, whole=lambda: loss)
        return loss

    def repeat(self, batch: Batch) -> Callable[[], Loss]:
        return self.forward.repeated(lambda: self.forward.loss(batch))


@dataclass(frozen=True, eq=False)
class InParts:
    """The program's two passes over each of so many parts of a batch; several ranks go through theirs in step.

    Parts may be empty: ranks that normalise over the rows of all need as many on each.
    """

    forward: Forward
    balance: Balance
    parts: int = field(kw_only=True)

    def __call__(self, batch: Batch, step: int) -> Loss:
        blocks = self.forward.blocks(batch)
        pieces = self._pieces(blocks, batch)
        weight_T = self._weight(batch)
        by_task_T = torch.zeros_like(weight_T)

        def shares() -> Iterator[Loss]:
            for share in self._shares(pieces, batch, weight_T):
                by_task_T.add_(share.by_task_T.detach())
                yield share

        self.balance.backward(
            shares(),
            step,
            # Once more than the passes below, which begin from the same generators and so drop the same units.
            whole=lambda: self.forward.repeated(lambda: self._loss(pieces, batch, weight_T))(),
        )
        _into_tables(blocks, pieces)
        return self.forward.objective.loss(add_up(by_task_T), weight_T)

    def repeat(self, batch: Batch) -> Callable[[], Loss]:
        return self.forward.repeated(
            lambda: self._loss(
                self._pieces(self.forward.blocks(batch), batch), batch, self._weight(batch)
            )
        )

    def _loss(self, pieces: Sequence["_Piece"], batch: Batch, weight_T: Tensor) -> Loss:
        """The whole batch's, of all ranks."""
        by_task_T = torch.zeros_like(weight_T)
        for share in self._shares(pieces, batch, weight_T):
            by_task_T += share.by_task_T
        return self.forward.objective.loss(add_up(by_task_T), weight_T)

    def _shares(self, pieces: Sequence["_Piece"], batch: Batch, weight_T: Tensor) -> Iterator[Loss]:
        """What each piece adds to the batch's loss, computed when it is asked for."""
        for piece in pieces:
            yield self.forward.objective.share(
                self.forward.logits(piece.blocks),
                batch.labels_BT[piece.rows],
                batch.observed_BT[piece.rows],
                batch.weights_B[piece.rows],
                weight_T=weight_T,
            )

    def _pieces(self, blocks: Blocks, batch: Batch) -> list["_Piece"]:
        return [_Piece.of(blocks, rows) for rows in _cuts(batch.rows, self.parts)]

    def _weight(self, batch: Batch) -> Tensor:
        return self.forward.objective.weight_of(batch.observed_BT, batch.weights_B)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some rows of a batch's blocks, as leaves that gather gradients of their own."""

    rows: slice
    blocks: Blocks

    @classmethod
    def of(cls, blocks: Blocks, rows: slice) -> "_Piece":
        return cls(
            rows,
            replace(
                blocks,
                user_UI=_leaf(blocks.user_UI, rows),
                candidate_NI=_leaf(blocks.candidate_NI, rows),
                tokens={name: _leaf(item, rows) for name, item in blocks.tokens.items()},
                valid={name: item[rows] for name, item in blocks.valid.items()},
            ),
        )


def _into_tables(blocks: Blocks, pieces: Sequence[_Piece]) -> None:
    """One backward pass from the blocks, by the gradients that the pieces have gathered."""
    ends, gradients = [], []
    by_piece = zip(*(_learned(piece.blocks) for piece in pieces), strict=True)
    for whole, leaves in zip(_learned(blocks), by_piece, strict=True):
        # A block that the program does not read has no gradient, in whatever part.
        if whole.requires_grad and any(leaf.grad is not None for leaf in leaves):
            ends.append(whole)
            gradients.append(torch.cat([_gradient(leaf) for leaf in leaves]))
    if ends:
        torch.autograd.backward(ends, gradients)


def _learned(blocks: Blocks) -> list[Tensor]:
    return [blocks.user_UI, blocks.candidate_NI, *blocks.tokens.values()]


def _leaf(block: Tensor, rows: slice) -> Tensor:
    return block.detach()[rows].requires_grad_(block.requires_grad)


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _cuts(rows: int, parts: int) -> Iterator[slice]:
    """Runs of rows whose lengths differ by one at most."""
    bounds = [rows * part // parts for part in range(parts + 1)]
    return (slice(low, high) for low, high in pairwise(bounds))
