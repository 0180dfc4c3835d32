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
from recsys.models.embeddings.updates import Quantity

# Rows drawn at once when a table is initialised: bounds memory, and is part of what a seed means.
_INITIAL_ROWS = 65_536
# Until `set_learning_rate` says another.
INITIAL_RATE = 0.02


class EmbeddingsConfig(Config):
    """Which backend looks rows up, and the constants of the tables' optimizer.

    `auto` is TorchRec where it imports, plain torch elsewhere. Rows begin as a normal sample of deviation
    `initial_deviation`; `initial_accumulator` is where Adagrad's sum of squared gradients begins.
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

    Its first number is the table's at `first_row`, `first_column`. `state` is what the optimizer remembers of it, by
    the names of `recsys.models.embeddings.updates`. A part `on_every_rank` is the same in all processes.
    """

    table: str
    weight_RK: Tensor
    state: Mapping[str, Tensor]
    first_row: int = 0
    first_column: int = 0
    on_every_rank: bool = False

    @property
    def rows(self) -> slice:
        """Which of the table's rows it has."""
        return slice(self.first_row, self.first_row + self.weight_RK.shape[0])

    @property
    def columns(self) -> slice:
        """Which of the table's columns it has."""
        return slice(self.first_column, self.first_column + self.weight_RK.shape[1])

    def place(self, quantity: Quantity) -> tuple[slice, ...]:
        """Which part of a table's quantity belongs to it."""
        places: dict[str, tuple[slice, ...]] = {
            "table": (slice(0, 1),),
            "row": (self.rows,),
            "number": (self.rows, self.columns),
        }
        return places[quantity.of]

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
    """A set of embedding tables with a fused optimizer, one of `recsys.models.embeddings.updates`."""

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
            for name, values in part.state.items():
                values.fill_(_beginning(name, config))


@torch.no_grad()
def begin_anew(
    parts: Sequence[Part],
    spec: TableSpec,
    rows_E: Tensor,
    config: EmbeddingsConfig,
    *,
    quantities: Sequence[Quantity],
    seed: int,
    time: int,
) -> None:
    """Give rows of a table values to begin with once more, and of these quantities of an optimizer's state theirs.

    The values are a function of the seed, the table's name, the `time` and the rows' order, whatever part holds them.
    """
    generator = torch.Generator().manual_seed(
        (seed << 32) ^ zlib.crc32(f"{spec.name} {time}".encode())
    )
    drawn_EK = torch.randn(len(rows_E), spec.dim, generator=generator)
    drawn_EK = drawn_EK.mul_(config.initial_deviation).to(rows_E.device)
    for part in parts:
        if part.table != spec.name:
            continue
        own_E = (rows_E >= part.rows.start) & (rows_E < part.rows.stop)
        here_E = rows_E[own_E] - part.first_row
        part.weight_RK[here_E] = drawn_EK[own_E][:, part.columns]
        for item in quantities:
            if item.of != "table":
                part.state[item.name][here_E] = _beginning(item.name, config)


def _beginning(quantity: str, config: EmbeddingsConfig) -> float:
    return config.initial_accumulator if quantity == "sum" else 0.0


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
