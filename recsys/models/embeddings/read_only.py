"""Embedding tables that stay in their file: for whoever reads rows of tables that memory may not hold.

Axes: **N** ids, **M** bags, **R** rows that a batch reads, **K** embedding width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recsys.models.embeddings.tables import Bags, Part
from recsys.models.embeddings.whole import sum_rows
from recsys.tensor_files import StoredTensor


class StoredTables(nn.Module):
    """Tables on the CPU of which a lookup reads the rows it needs. They cannot be trained."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        super().__init__()
        self.stored = stored

    def forward(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        return {name: self._sum(self.stored[name], item) for name, item in bags.items()}

    def set_learning_rate(self, rate: float) -> None:
        raise AssertionError("tables in a file are not trained")

    def parts(self) -> list[Part]:
        raise AssertionError("tables in a file are not held in memory")

    def _sum(self, stored: StoredTensor, bags: Bags) -> Tensor:
        unique_R, position_N = torch.unique(bags.ids_N, return_inverse=True)
        return sum_rows(stored.take(unique_R), position_N, bags.lengths_M)
