"""Tables that every rank holds whole: small ones that all rows read, whose gradients are cheaper to send than vectors.

Each rank looks its own rows' ids up and gets a gradient of the whole table, zeros where it read nothing. The sum over
ranks is the gradient that one process would have, so one and the same update everywhere keeps the copies equal bit by
bit. Rows whose gradient is zero stay as they are under every optimizer but Adam, which is therefore not there.

```
ids of this rank -> [weights of all tables] -> vectors
                              ^ gradients of all tables, zeros for those without ids here, in one message
```

All tables end in one node of autograd's graph. It is made before what other tables look up, so it comes last in the
backward pass of every rank, and it sends as many numbers whatever a rank has read: ranks without ids, or without rows,
make the same calls as all others.

Axes: **R** rows of a table, **K** embedding width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.embeddings.tables import Bags, Part, Tables
from recsys.models.embeddings.updates import FUSED, step_of
from recsys.models.embeddings.whole import WholeTables, sum_rows
from recsys.ranks import added_up

Update = Callable[[Sequence[Tensor]], None]


class ReplicatedTables(WholeTables):
    """Copies of tables, which all ranks update alike. The contract is `recsys.models.embeddings.tables.Tables`."""

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        weights = dict(zip(self.names, self._weights(), strict=True))
        return {
            name: sum_rows(weights[name], item.ids_N, item.lengths_M) for name, item in bags.items()
        }

    def parts(self) -> list[Part]:
        return [replace(part, on_every_rank=True) for part in super().parts()]

    def _weights(self) -> Sequence[Tensor]:
        weights = [self.weight(name) for name in self.names]
        if not torch.is_grad_enabled():
            return weights
        assert self.optimizer in FUSED, "Adam moves rows whose gradient is zero"
        leaves = [weight.detach().requires_grad_() for weight in weights]
        found: Sequence[Tensor] = _Learned.apply(partial(self._update, rate=self.rate), *leaves)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def _update(self, gradients: Sequence[Tensor], *, rate: float) -> None:
        for name, gradient_RK in zip(self.names, added_up(gradients), strict=True):
            step_RK = step_of(
                self.optimizer, gradient_RK, self.state(name), rate=rate, epsilon=self.epsilon
            )
            self.weight(name).sub_(step_RK)


class MixedTables(nn.Module):
    """Replicated tables and those whose parts are spread over ranks, as one set of tables."""

    def __init__(self, replicated: ReplicatedTables, spread: Tables) -> None:
        super().__init__()
        self.replicated = replicated
        self.spread = spread

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        own = {name: bags[name] for name in self.replicated.names}
        others = {name: item for name, item in bags.items() if name not in own}
        # In this order: what is looked up first comes last in the backward pass, behind the others' messages.
        found: dict[str, Tensor] = self.replicated(own)
        return found | self.spread(others)

    def set_learning_rate(self, rate: float) -> None:
        self.replicated.set_learning_rate(rate)
        self.spread.set_learning_rate(rate)

    def parts(self) -> list[Part]:
        return self.replicated.parts() + self.spread.parts()


class _Learned(torch.autograd.Function):
    """Weights as they are, whose gradients go into an update together."""

    @staticmethod
    def forward(ctx: Any, update: Update, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.update = update
        return tuple(weight.view_as(weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        # Zeros stand for a table that no loss depends on.
        ctx.update(gradients)
        return (None,) * (1 + len(gradients))
