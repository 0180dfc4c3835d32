"""Sums over the rows that pass through a mixing stage, from which every number about its experts follows.

Axes: **B** rows, **E** experts, **H** expert width, **G** gates, **K** bins of a histogram.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.probe import Level, Probe, Watchable, Watched, choices

# An output this small counts as zero. Below -6 Swish's slope is under 0.0123: a unit there hardly learns.
_ZERO = 1e-6
_SWISH_INACTIVE = -6.0
BINS = 64
# The histogram's range, in deviations about the mean of the first rows.
_REACH = 4.0


class LevelStatistics:
    """Sums of one level, in float64 on the model's device; of fixed size however many rows are added."""

    def __init__(self, watched: Watched) -> None:
        assert watched.gates is not None
        bank, weight = watched.bank, watched.bank.weights[0]
        experts, choices_GE = bank.experts, choices(watched.gates).to(weight.device)
        self.watched = watched
        self.choices_GE = choices_GE
        self.rows = 0
        self._smooth = isinstance(bank.activation, nn.SiLU)
        self._range: tuple[float, float] | None = None
        zeros = {"dtype": torch.float64, "device": weight.device}
        self.inactive_E = torch.zeros(experts, **zeros)
        self.active_EH = torch.zeros(experts, bank.width, dtype=torch.bool, device=weight.device)
        self.magnitude_E, self.sum_E, self.square_E = torch.zeros(3, experts, **zeros)
        self.histogram_EK = torch.zeros(experts, BINS, **zeros)
        self.cosine_EE = torch.zeros(experts, experts, **zeros)
        self.gate_GE, self.strength_GE = torch.zeros(2, *choices_GE.shape, **zeros)
        self.entropy_G = torch.zeros(len(choices_GE), **zeros)

    @torch.no_grad()
    def add(self, level: Level, *, every: int = 1) -> None:
        """Add every n-th row of a forward pass."""
        assert level.out_BEH is not None
        assert level.pre_BEH is not None
        assert level.gate_BTE is not None
        out_BEH, gate_BGE = level.out_BEH[::every].float(), level.gate_BTE[::every].float()
        self.rows += len(out_BEH)
        inactive_BEH = (
            level.pre_BEH[::every] < _SWISH_INACTIVE if self._smooth else out_BEH.abs() <= _ZERO
        )
        self.inactive_E += inactive_BEH.sum(dim=(0, 2))
        self.active_EH |= ~inactive_BEH.all(dim=0)
        norm_BE = torch.linalg.vector_norm(out_BEH, dim=2)
        self.magnitude_E += out_BEH.abs().sum(dim=(0, 2))
        self.sum_E += out_BEH.sum(dim=(0, 2))
        self.square_E += norm_BE.square().sum(dim=0)
        self.histogram_EK += self._histogram(out_BEH)
        unit_BEH = F.normalize(out_BEH, dim=2)
        self.cosine_EE += torch.bmm(unit_BEH, unit_BEH.transpose(1, 2)).sum(dim=0)
        self.gate_GE += gate_BGE.sum(dim=0)
        self.strength_GE += (gate_BGE * norm_BE[:, None]).sum(dim=0)
        self.entropy_G += torch.special.entr(gate_BGE).sum(dim=(0, 2))

    def _histogram(self, out_BEH: Tensor) -> Tensor:
        """Counts [E, K] over a range that the first rows fixed; what lies outside falls into the outer bins."""
        if self._range is None:
            mean, reach = float(out_BEH.mean()), _REACH * float(out_BEH.std(correction=0))
            self._range = (
                max(mean - reach, float(out_BEH.min())),
                min(mean + reach, float(out_BEH.max())),
            )
        low, high = self._range
        bins_BEH = ((out_BEH - low) * (BINS / max(high - low, _ZERO))).long().clamp_(0, BINS - 1)
        experts = out_BEH.shape[1]
        bins_BEH += BINS * torch.arange(experts, device=out_BEH.device)[:, None]
        return torch.bincount(bins_BEH.flatten(), minlength=experts * BINS).view(experts, BINS)


class ExpertWatch:
    """Statistics of all levels with gates, gathered from the forward passes inside `with watch.attached():`."""

    def __init__(self, mixing: Any, *, every: int = 1) -> None:
        self._mixing = mixing
        self._every = every
        # In the order of `watched()`; None for a level without gates, which has nothing to choose.
        self._statistics = [
            None if item.gates is None else LevelStatistics(item) for item in mixing.watched()
        ]

    @property
    def levels(self) -> list[LevelStatistics]:
        return [item for item in self._statistics if item is not None]

    @contextmanager
    def attached(self) -> Iterator["ExpertWatch"]:
        """Add every forward pass of the mixing stage until the block ends."""
        probe, stage = Probe(), self._mixing
        assert isinstance(stage, nn.Module)

        def take(*_: Any) -> None:
            for statistics, level in zip(self._statistics, probe.levels, strict=True):
                if statistics is not None:
                    statistics.add(level, every=self._every)
                # Activations are not kept alive until the next pass.
                level.out_BEH = level.pre_BEH = level.gate_BTE = None

        handle = stage.register_forward_hook(take)
        try:
            with probe.attached(_watchable(stage)):
                yield self
        finally:
            handle.remove()


def _watchable(stage: Any) -> Watchable:
    found: Watchable = stage
    return found
