"""A moving average of the dense weights over steps: where it is asked for, what is validated, kept and exported.

Of the weights w_1 .. w_t after each step, with decay d:

    average_t = sum_i d^(t-i) w_i / sum_i d^(t-i)        or      average += (w_t - average) (1 - d) / (1 - d^t)

The denominator is the warm-up correction: without it the initial weights would stay in the average for 1 / (1 - d)
steps. Averages of the last iterates stand nearer to a minimum than these do (Polyak and Juditsky, 1992). Running
statistics of a normalisation are averaged with the weights that they belong to. Tables are not: a row changes only in
the steps that read it, and a second copy of all rows would double the memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """The averages of a module's parameters and buffers; without a decay there are none, and nothing is done.

    Ranks hold equal dense weights after every step, so that their averages are equal too.
    """

    def __init__(self, module: nn.Module, *, decay: float | None) -> None:
        self._decay = decay
        # Views: they follow the module.
        present = module.state_dict() if decay is not None else {}
        self._present = {name: item for name, item in present.items() if item.is_floating_point()}
        self._averages = {name: item.clone() for name, item in self._present.items()}

    @property
    def present(self) -> Mapping[str, Tensor]:
        """What the module holds itself: with the averages, all that is needed to go on."""
        return self._present

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Add the weights that a step, counted from 0, led to."""
        if self._decay is None:
            return
        share = (1.0 - self._decay) / (1.0 - self._decay ** (step + 1))
        torch._foreach_lerp_([*self._averages.values()], [*self._present.values()], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the module hold the averages inside the block."""
        trained = {name: item.clone() for name, item in self._present.items()}
        _copy(self._averages, self._present)
        try:
            yield
        finally:
            _copy(trained, self._present)

    def take(self, trained: Mapping[str, Tensor]) -> None:
        """Make averages of what the module holds, and have it hold what was `present` then."""
        _copy(self._present, self._averages)
        _copy(trained, self._present)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, item in target.items():
        item.copy_(source[name])
