"""Embedding tables in pure torch: the reference, and the backend of hosts without fbgemm.

The gradient that autograd builds is of the rows a step read, never of the table: rows are gathered once, a hook on
the gathered copy applies the update during the backward pass and drops the gradient.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from recsys.models.embeddings.tables import Bags
from recsys.models.embeddings.updates import QUANTITIES, step_of
from recsys.models.embeddings.whole import WholeTables, sum_rows


class PlainTables(WholeTables):
    """Whole tables in one process. The contract is `recsys.models.embeddings.tables.Tables`."""

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        return {name: self._sum(name, item) for name, item in bags.items()}

    def _sum(self, name: str, bags: Bags) -> Tensor:
        weight = self.weight(name)
        if not torch.is_grad_enabled():
            return sum_rows(weight, bags.ids_N, bags.lengths_M)
        unique_R, position_N = torch.unique(bags.ids_N, return_inverse=True)
        rows_RK = weight.index_select(0, unique_R).requires_grad_()
        summed_MK = sum_rows(rows_RK, position_N, bags.lengths_M)

        rate = self.rate

        def update(rows_RK: Tensor) -> None:
            assert rows_RK.grad is not None
            self._update(name, unique_R, rows_RK.grad, rate=rate)
            rows_RK.grad = None

        rows_RK.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]
        return summed_MK

    @torch.no_grad()
    def _update(self, name: str, unique_R: Tensor, gradient_RK: Tensor, *, rate: float) -> None:
        state = self.state(name)
        # A number of the whole table is changed where it lies.
        read = {
            quantity.name: state[quantity.name].index_select(0, unique_R)
            for quantity in QUANTITIES[self.optimizer]
            if quantity.of != "table"
        }
        step_RK = step_of(
            self.optimizer, gradient_RK, state | read, rate=rate, epsilon=self.epsilon
        )
        for quantity, values in read.items():
            state[quantity].index_copy_(0, unique_R, values)
        self.weight(name).index_add_(0, unique_R, step_RK, alpha=-1.0)
