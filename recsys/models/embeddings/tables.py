"""What every embedding backend does: sums of rows per bag, and an update of just those rows inside the backward pass.

A process holds parts of tables: all of every table where it trains alone.

Axes: **N** ids, **M** bags, **R** rows of a table, **K** embedding width.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True, eq=False)
class Part:
    """A block of a table that this process holds, as views: writing into them writes the table.

    Its first number is the table's at `first_row`, `first_column`. `accumulator_R` is row-wise Adagrad's G.
    """

    table: str
    weight_RK: Tensor
    accumulator_R: Tensor
    first_row: int = 0
    first_column: int = 0

    @property
    def rows(self) -> slice:
        """Which of the table's rows it has."""
        return slice(self.first_row, self.first_row + self.weight_RK.shape[0])

    @property
    def columns(self) -> slice:
        """Which of the table's columns it has."""
        return slice(self.first_column, self.first_column + self.weight_RK.shape[1])

    def put_rows(self, start: int, rows_RK: Tensor) -> None:
        """Copy what belongs here of the table's rows from `start` on."""
        low, high = max(start, self.rows.start), min(start + len(rows_RK), self.rows.stop)
        if low < high:
            found_RK = rows_RK[low - start : high - start, self.columns]
            self.weight_RK[low - self.first_row : high - self.first_row] = found_RK


class Readable(Protocol):
    """A tensor in memory or in a file."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: Any) -> Tensor: ...


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

    def parts(self) -> list[Part]:
        """What this process holds of the tables."""
        ...


@torch.no_grad()
def initialise(
    parts: Sequence[Part], specs: Sequence[TableSpec], config: EmbeddingsConfig, *, seed: int
) -> None:
    """Give parts of tables the values that they begin with."""
    for spec in specs:
        own = [part for part in parts if part.table == spec.name]
        if not own:
            continue
        for start, rows_RK in initial_rows(spec, seed=seed, deviation=config.initial_deviation):
            for part in own:
                part.put_rows(start, rows_RK)
        for part in own:
            part.accumulator_R.fill_(config.initial_accumulator)


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
