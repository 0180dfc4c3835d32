"""How a table's rows move by their gradients, and what an optimizer remembers for that.

With g the sum of a row's gradients in a step, lr the rate and e `epsilon`; rows that a step did not read stay as they
are, and so does their state:

| optimizer | what a step does | state |
| --- | --- | --- |
| rowwise_adagrad | G += mean(g^2), w -= lr g / (sqrt(G) + e) | G: a number a row |
| adagrad | G += g^2, w -= lr g / (sqrt(G) + e), number by number (Duchi et al., JMLR 2011) | G: as many as the rows |
| sgd | w -= lr g | none |
| adam | m, v drawn to g, g^2; w -= lr m' / (sqrt(v') + e) (Kingma and Ba, ICLR 2015) | m, v: twice the rows |

m' and v' are m / (1 - 0.9^t) and v / (1 - 0.999^t) in the table's t-th step: as in fbgemm, a row that is read for the
first time late moves by more than lr.

Axes: **R** rows, **K** embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from recsys.errors import ConfigError

TableOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]

# What fbgemm trains on CPUs as on GPUs through TorchRec's collections; its Adam has no CPU kernel.
FUSED: tuple[TableOptimizer, ...] = ("rowwise_adagrad", "adagrad", "sgd")
TITLES: dict[TableOptimizer, str] = {
    "rowwise_adagrad": "row-wise Adagrad",
    "adagrad": "Adagrad",
    "sgd": "SGD",
    "adam": "Adam",
}
_BETA_MEAN, _BETA_SQUARE = 0.9, 0.999
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class Quantity:
    """Something that an optimizer remembers: a number for the `table`, for each `row`, or for each `number` in it."""

    name: str
    of: Literal["table", "row", "number"]

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return {"table": (1,), "row": (rows,), "number": (rows, columns)}[self.of]

    def key(self, table: str) -> str:
        """Its name among those of all tables: Adagrad's sum, the first there was, has the table's."""
        return table if self.name == "sum" else f"{table}/{self.name}"


QUANTITIES: dict[TableOptimizer, tuple[Quantity, ...]] = {
    "rowwise_adagrad": (Quantity("sum", "row"),),
    "adagrad": (Quantity("sum", "number"),),
    "sgd": (),
    "adam": (Quantity("mean", "number"), Quantity("square", "number"), Quantity("steps", "table")),
}


def state_bytes(optimizer: TableOptimizer, *, rows: int, columns: int) -> int:
    """Bytes of an optimizer's state for a shard of a table."""
    found = QUANTITIES[optimizer]
    return sum(_NUMBER_BYTES * prod(item.shape(rows, columns)) for item in found)


def check_fused(optimizer: TableOptimizer) -> None:
    """Raise ConfigError for an optimizer that the tables of backend `torchrec` do not have."""
    if optimizer not in FUSED:
        raise ConfigError(
            f'optimizer.embeddings is "{optimizer}", and tables of backend "torchrec" are trained by one of: '
            f'{", ".join(FUSED)}; take one of these, or set model.embeddings.backend = "plain"'
        )


def step_of(
    optimizer: TableOptimizer,
    gradient_RK: Tensor,
    state: Mapping[str, Tensor],
    *,
    rate: float,
    epsilon: float,
) -> Tensor:
    """What is taken off rows with these gradients, [R, K]; their part of the state changes in place."""
    match optimizer:
        case "sgd":
            return rate * gradient_RK
        case "rowwise_adagrad":
            sum_R = state["sum"].add_(gradient_RK.square().mean(dim=1))
            return gradient_RK * (rate / (sum_R.sqrt() + epsilon))[:, None]
        case "adagrad":
            sum_RK = state["sum"].add_(gradient_RK.square())
            return rate * gradient_RK / (sum_RK.sqrt() + epsilon)
        case "adam":
            steps = state["steps"].add_(1)
            mean_RK = state["mean"].lerp_(gradient_RK, 1 - _BETA_MEAN)
            square_RK = state["square"].lerp_(gradient_RK.square(), 1 - _BETA_SQUARE)
            # In float64: 1 - 0.999^t of the first steps would lose digits.
            mean_part, square_part = (
                (1 - torch.pow(beta, steps.double())).float() for beta in (_BETA_MEAN, _BETA_SQUARE)
            )
            return rate * (mean_RK / mean_part) / ((square_RK / square_part).sqrt() + epsilon)
