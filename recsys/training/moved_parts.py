"""Parts of an old model's parameters, put where they belong in a new one's, with AdamW's moments of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.training.optim import DenseOptimizer


@dataclass(frozen=True)
class Places:
    """Parts of the parameter `key` of one model: `indices` of its first axes, which have `sizes`; whole where none."""

    key: str
    sizes: tuple[int, ...]
    indices: tuple[tuple[int, ...], ...]

    def select(self, tensor: Tensor) -> Tensor:
        return self._view(tensor)[self._grid]

    def assign(self, tensor: Tensor, parts: Tensor) -> None:
        self._view(tensor)[self._grid] = parts

    def _view(self, tensor: Tensor) -> Tensor:
        return tensor.view(*self.sizes, -1)

    @property
    def _grid(self) -> tuple[Tensor, ...]:
        """All combinations of the axes' indices."""
        axes = len(self.indices)
        return tuple(
            torch.tensor(found, dtype=torch.int64).view(-1, *[1] * (axes - 1 - axis))
            for axis, found in enumerate(self.indices)
        )


@dataclass(frozen=True)
class Moved:
    """Parts of a new model's parameter, and in the same order the parts of an old one's that they come from."""

    to: Places
    origin: Places


def move_parameters(
    moved: Iterable[Moved], stored: Mapping[str, Tensor], program: nn.Module
) -> None:
    """Put the parts of stored parameters and buffers into a program; its others stay as they are."""
    own, filled = program.state_dict(), {}
    for item in moved:
        filled[item.to.key] = own[item.to.key].cpu().clone()
        item.to.assign(filled[item.to.key], item.origin.select(stored[item.origin.key]))
    program.load_state_dict(filled, strict=False)


def move_moments(
    moved: Iterable[Moved],
    stored: Mapping[str, Tensor],
    program: nn.Module,
    optimizer: DenseOptimizer,
) -> None:
    """Put AdamW's stored moments of the parts into the optimizer of a program.

    A parameter has one count of steps, so that parts which begin anew get no correction for beginning at zero, and a
    second moment of zero would make their first steps several times too long: it begins at the mean of the kept ones.
    """
    shapes = {name: item.shape for name, item in program.named_parameters()}
    state: dict[str, Tensor] = {}
    for item in moved:
        origin = f"{item.origin.key}/"
        if f"{origin}step" not in stored:
            continue
        for quantity in ("exp_avg", "exp_avg_sq"):
            parts = item.origin.select(stored[origin + quantity])
            start = parts.mean() if quantity == "exp_avg_sq" else parts.new_zeros(())
            found = start.repeat(shapes[item.to.key].numel()).view(shapes[item.to.key])
            item.to.assign(found, parts)
            state[f"{item.to.key}/{quantity}"] = found
        state[f"{item.to.key}/step"] = stored[f"{origin}step"].clone()
    optimizer.load_state(state)
