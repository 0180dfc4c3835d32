"""How a batch becomes gradients: at once, or in parts of which only one is in memory at a time.

Tables update themselves in their backward pass, and Adagrad on k gradients is not Adagrad on their sum. So a step looks
all of its rows up at once and goes back into the tables once; what lies between, the program, runs part after part:

```
ids of the batch -> tables -> blocks ─┬─ part 1 -> program -> loss ─┐
                                      ├─ part 2 -> program -> loss ─┤ gradients of the parts' blocks, one after the
                                      └─ part k -> program -> loss ─┘ other, are those of the blocks -> tables
```

What a part keeps for its backward pass is free before the next one begins. Parts are sums over rows divided by the
whole batch's weights, so they add up to the batch's own loss and gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.errors import ConfigError
from recsys.models import Blocks
from recsys.ranks import add_up
from recsys.training.balancing import Balance
from recsys.training.forward import Forward
from recsys.training.objective import Loss


class Backward(Protocol):
    """Fills all gradients of a batch, updates the tables, and gives the batch's loss."""

    def __call__(self, batch: Batch, step: int) -> Loss: ...


def build_backward(forward: Forward, balance: Balance, *, parts: int) -> Backward:
    """The way of `train.accumulate`. Raises ConfigError for a balancing method that must see a whole batch."""
    if parts == 1:
        return AtOnce(forward, balance)
    if not balance.adds_up:
        raise ConfigError(
            f"train.accumulate is {parts}, and this method of objective.balance looks at the gradients of a whole "
            'batch; take accumulate out, or balance = { kind = "none" }, "uncertainty" or "dwa"'
        )
    return InParts(forward, balance, parts=parts)


@dataclass(frozen=True, eq=False)
class AtOnce:
    """One forward and one backward pass."""

    forward: Forward
    balance: Balance

    def __call__(self, batch: Batch, step: int) -> Loss:
        loss = self.forward.loss(batch)
        self.balance.backward(loss, step)
        return loss


@dataclass(frozen=True, eq=False)
class InParts:
    """The program's two passes over each of so many parts of a batch; several ranks go through theirs in step.

    Parts may be empty: ranks that normalise over the rows of all need as many on each.
    """

    forward: Forward
    balance: Balance
    parts: int = field(kw_only=True)

    def __call__(self, batch: Batch, step: int) -> Loss:
        blocks, objective = self.forward.blocks(batch), self.forward.objective
        weight_T = objective.weight_of(batch.observed_BT, batch.weights_B)
        pieces = [_Piece.of(blocks, rows) for rows in _cuts(batch.rows, self.parts)]
        by_task_T = torch.zeros_like(weight_T)
        for piece in pieces:
            share = objective.share(
                self.forward.logits(piece.blocks),
                batch.labels_BT[piece.rows],
                batch.observed_BT[piece.rows],
                batch.weights_B[piece.rows],
                weight_T=weight_T,
            )
            self.balance.backward(share, step)
            by_task_T += share.by_task_T.detach()
        _into_tables(blocks, pieces)
        return objective.loss(add_up(by_task_T), weight_T)


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
