"""What every embedding backend does: sums of rows per bag, and an update of just those rows inside the backward pass.

Axes: **N** ids, **M** bags, **K** embedding width.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from recsys.config import Config

# Rows drawn at once when a table is initialised: bounds memory, and is part of what a seed means.
_INITIAL_ROWS = 65_536
# Until `set_learning_rate` says another.
INITIAL_RATE = 0.02


class EmbeddingsConfig(Config):
    """Which backend looks rows up, and row-wise Adagrad's constants.

    `auto` is TorchRec where it imports, plain torch elsewhere. Rows begin as a normal sample of deviation
    `initial_deviation`; `initial_accumulator` is where the sum of squared gradients begins.
    """

    backend: Literal["auto", "torchrec", "plain"] = "auto"
    initial_deviation: float = Field(default=0.01, ge=0)
    initial_accumulator: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=1e-8, gt=0)


@dataclass(frozen=True)
class TableSpec:
    """One table to hold. `streams` are the slots that read it.

    `ragged` if one of them has as many bags as ids: a sequence's token, or ids with weights.
    """

    name: str
    rows: int
    dim: int
    streams: tuple[str, ...]
    ragged: bool


@dataclass(frozen=True, eq=False)
class Bags:
    """Ids of one table in one step: `lengths_M` ids for each bag, or None for bags of one id each."""

    ids_N: Tensor
    lengths_M: Tensor | None


class Tables(Protocol):
    """A set of embedding tables with a fused optimizer.

    Row-wise Adagrad (fbgemm's EXACT_ROWWISE_ADAGRAD): with g the sum of a row's gradients in the step,
    G += mean(g^2), then w -= lr * g / (sqrt(G) + epsilon). Rows that the step did not read keep weights and G.
    """

    def __call__(self, bags: Mapping[str, Bags]) -> dict[str, Tensor]:
        """Per table the sum of each bag's rows, [M, K]; an empty bag is zeros. Call once a step with all ids."""
        ...

    def set_learning_rate(self, rate: float) -> None:
        """Update at this rate from the next forward pass on: an update's rate is fixed when its rows are read."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Views of the tables' rows, [rows, K]: writing into them writes the tables."""
        ...

    def accumulators(self) -> dict[str, Tensor]:
        """Views of row-wise Adagrad's G, [rows]."""
        ...


def initial_rows(spec: TableSpec, *, seed: int, deviation: float) -> Iterator[tuple[int, Tensor]]:
    """Chunks (first row, rows) of a table's initial weights: a function of the seed and the table's name alone."""
    generator = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(spec.name.encode()))
    for start in range(0, spec.rows, _INITIAL_ROWS):
        rows = min(_INITIAL_ROWS, spec.rows - start)
        yield start, torch.randn(rows, spec.dim, generator=generator).mul_(deviation)


def module_name(table: str) -> str:
    """A table's name as the name of a module, which may hold no dot: a time gap's table is `<sequence>.<token>`."""
    return table.replace(".", "/")


def table_name(module: str) -> str:
    """The table that `module_name` was given."""
    return module.replace("/", ".")
