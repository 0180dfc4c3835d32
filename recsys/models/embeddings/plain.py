"""Embedding tables in pure torch: the reference, and the backend of hosts without fbgemm.

The gradient that autograd builds is of the rows a step read, never of the table: rows are gathered once, a hook on
the gathered copy applies the update during the backward pass and drops the gradient.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.embeddings.tables import (
    INITIAL_RATE,
    Bags,
    EmbeddingsConfig,
    Part,
    TableSpec,
    initialise,
    module_name,
)
from recsys.models.embeddings.updates import QUANTITIES, TableOptimizer, step_of


class PlainTables(nn.Module):
    """Tables as buffers: no dense optimizer sees them. The contract is `recsys.models.embeddings.tables.Tables`.

    On torch's meta device they hold nothing.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: EmbeddingsConfig,
        *,
        optimizer: TableOptimizer,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._epsilon = config.epsilon
        self._rate = INITIAL_RATE
        self._rows = nn.ModuleDict()
        for spec in specs:
            table = nn.Module()
            table.register_buffer("weight", torch.empty(spec.rows, spec.dim, device=device))
            for quantity in QUANTITIES[optimizer]:
                shape = quantity.shape(spec.rows, spec.dim)
                table.register_buffer(quantity.name, torch.empty(shape, device=device))
            self._rows[module_name(spec.name)] = table
        self._names = tuple(spec.name for spec in specs)
        if device.type != "meta":
            initialise(self.parts(), specs, config, seed=seed)

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        return {name: self._sum(name, item) for name, item in bags.items()}

    def set_learning_rate(self, rate: float) -> None:
        self._rate = rate

    def parts(self) -> list[Part]:
        tables = {name: self._rows[module_name(name)] for name in self._names}
        return [
            Part(name, table.get_buffer("weight"), self._state(table))
            for name, table in tables.items()
        ]

    def _sum(self, name: str, bags: Bags) -> Tensor:
        weight = self._rows[module_name(name)].get_buffer("weight")
        if not torch.is_grad_enabled():
            return sum_rows(weight, bags.ids_N, bags.lengths_M)
        unique_R, position_N = torch.unique(bags.ids_N, return_inverse=True)
        rows_RK = weight.index_select(0, unique_R).requires_grad_()
        summed_MK = sum_rows(rows_RK, position_N, bags.lengths_M)

        rate = self._rate

        def update(rows_RK: Tensor) -> None:
            assert rows_RK.grad is not None
            self._update(name, unique_R, rows_RK.grad, rate=rate)
            rows_RK.grad = None

        rows_RK.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]
        return summed_MK

    @torch.no_grad()
    def _update(self, name: str, unique_R: Tensor, gradient_RK: Tensor, *, rate: float) -> None:
        table = self._rows[module_name(name)]
        state = self._state(table)
        # A number of the whole table is changed where it lies.
        read = {
            quantity.name: state[quantity.name].index_select(0, unique_R)
            for quantity in QUANTITIES[self._optimizer]
            if quantity.of != "table"
        }
        step_RK = step_of(
            self._optimizer, gradient_RK, state | read, rate=rate, epsilon=self._epsilon
        )
        for quantity, values in read.items():
            state[quantity].index_copy_(0, unique_R, values)
        table.get_buffer("weight").index_add_(0, unique_R, step_RK, alpha=-1.0)

    def _state(self, table: nn.Module) -> dict[str, Tensor]:
        return {item.name: table.get_buffer(item.name) for item in QUANTITIES[self._optimizer]}


def sum_rows(weight: Tensor, ids_N: Tensor, lengths_M: Tensor | None) -> Tensor:
    """The sum of each bag's rows, [M, K]; the ids' own rows for bags of one."""
    if lengths_M is None:
        return F.embedding(ids_N, weight)
    offsets_M = lengths_M.long().cumsum(0) - lengths_M
    return F.embedding_bag(ids_N, weight, offsets_M, mode="sum")
