"""Tables of which a process holds every row: their weights and optimizer's state, and sums of rows.

Axes: **N** ids, **M** bags, **R** rows of a table, **K** embedding width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.embeddings.tables import (
    INITIAL_RATE,
    EmbeddingsConfig,
    Part,
    TableSpec,
    initialise,
    module_name,
)
from recsys.models.embeddings.updates import QUANTITIES, TableOptimizer


class WholeTables(nn.Module):
    """Tables as buffers: no dense optimizer sees them. On torch's meta device they hold nothing."""

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
        self.names = tuple(spec.name for spec in specs)
        self.optimizer = optimizer
        self.epsilon = config.epsilon
        self.rate = INITIAL_RATE
        self._rows = nn.ModuleDict()
        for spec in specs:
            table = nn.Module()
            table.register_buffer("weight", torch.empty(spec.rows, spec.dim, device=device))
            for quantity in QUANTITIES[optimizer]:
                shape = quantity.shape(spec.rows, spec.dim)
                table.register_buffer(quantity.name, torch.empty(shape, device=device))
            self._rows[module_name(spec.name)] = table
        if device.type != "meta":
            initialise(self.parts(), specs, config, seed=seed)

    def set_learning_rate(self, rate: float) -> None:
        self.rate = rate

    def parts(self) -> list[Part]:
        return [Part(name, self.weight(name), self.state(name)) for name in self.names]

    def weight(self, name: str) -> Tensor:
        """A table's rows, [R, K]."""
        return self._rows[module_name(name)].get_buffer("weight")

    def state(self, name: str) -> dict[str, Tensor]:
        """What the optimizer remembers of a table."""
        table = self._rows[module_name(name)]
        return {item.name: table.get_buffer(item.name) for item in QUANTITIES[self.optimizer]}


def sum_rows(weight: Tensor, ids_N: Tensor, lengths_M: Tensor | None) -> Tensor:
    """The sum of each bag's rows, [M, K]; the ids' own rows for bags of one."""
    if lengths_M is None:
        return F.embedding(ids_N, weight)
    offsets_M = lengths_M.long().cumsum(0) - lengths_M
    return F.embedding_bag(ids_N, weight, offsets_M, mode="sum")
