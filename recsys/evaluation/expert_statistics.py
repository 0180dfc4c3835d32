"""Sums over the rows that pass through a mixing stage, from which every number about its experts follows.

Axes: **B** rows, **E** experts, **H** expert width, **G** gates, **K** bins of a histogram, **W** halves of the rows,
**I** a feature gate's width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.gates import mix
from recsys.models.probe import Level, Probe, Watchable, Watched, choices
from recsys.ranks import add_up_all, on_first

# An output this small counts as zero. Below -6 Swish's slope is under 0.0123: a unit there hardly learns.
_ZERO = 1e-6
_SWISH_INACTIVE = -6.0
BINS = 64
# The histogram's range, in deviations about the mean of the first rows.
_REACH = 4.0
# A histogram of every fourth row is as telling, and was half of what watching cost.
_HISTOGRAM_EVERY = 4


class LevelStatistics:
    """Sums of one level, in float64 on the model's device; of fixed size however many rows are added."""

    def __init__(self, watched: Watched) -> None:
        assert watched.gates is not None
        bank, weight = watched.bank, watched.bank.weights[0]
        experts, choices_GE = bank.experts, choices(watched.gates).to(weight.device)
        self.watched = watched
        self.choices_GE = choices_GE
        self._smooth = isinstance(bank.activation, nn.SiLU)
        self._range: tuple[float, float] | None = None
        self._zeros = {"dtype": torch.float64, "device": weight.device}
        self.rows_W = [0, 0]
        self.gate_WGE = torch.zeros(2, *choices_GE.shape, **self._zeros)
        self.strength_GE = torch.zeros(choices_GE.shape, **self._zeros)
        self.entropy_G, self.self_share_G = torch.zeros(2, len(choices_GE), **self._zeros)
        self.active_EH, self.sum_EH, self.square_EH = torch.zeros(
            3, experts, bank.width, **self._zeros
        )
        self.magnitude_E = torch.zeros(experts, **self._zeros)
        self.histogram_EK = torch.zeros(experts, BINS, **self._zeros)
        self.cosine_EE, self.distance_EE = torch.zeros(2, experts, experts, **self._zeros)
        self.feature_gates_I: list[Tensor] = []

    @property
    def rows(self) -> int:
        return sum(self.rows_W)

    @torch.no_grad()
    def add(self, level: Level, *, first_half: int) -> None:
        """Add the rows of a forward pass, of which so many are in the first half."""
        assert level.out_BEH is not None
        assert level.pre_BEH is not None
        assert level.gate_BTE is not None
        out_BEH, gate_BGE = level.out_BEH.float(), level.gate_BTE.float()
        for half, part_BGE in enumerate((gate_BGE[:first_half], gate_BGE[first_half:])):
            self.rows_W[half] += len(part_BGE)
            self.gate_WGE[half] += part_BGE.sum(dim=0)
        self._add_outputs(out_BEH, level.pre_BEH)
        norm_BE = self._add_pairs(out_BEH)
        self.strength_GE += (gate_BGE * norm_BE[:, None]).sum(dim=0)
        self.entropy_G += torch.special.entr(gate_BGE).sum(dim=(0, 2))
        if level.self_gate_BGE is not None:
            own_BGE = level.self_gate_BGE.float()
            self.self_share_G += _share_of_norm(own_BGE, gate_BGE, out_BEH).sum(dim=0)
        self._add_feature_gates(level.feature_gates_BI)

    def _add_outputs(self, out_BEH: Tensor, pre_BEH: Tensor) -> None:
        active_BEH = pre_BEH >= _SWISH_INACTIVE if self._smooth else out_BEH > _ZERO
        self.active_EH += active_BEH.sum(dim=0)
        sum_EH = out_BEH.sum(dim=0)
        self.sum_EH += sum_EH
        self.square_EH += out_BEH.square().sum(dim=0)
        # What a ReLU gives is its own magnitude.
        self.magnitude_E += (
            out_BEH.abs().sum(dim=(0, 2)) if self._smooth else sum_EH.double().sum(dim=1)
        )
        self.histogram_EK += self._histogram(out_BEH[::_HISTOGRAM_EVERY])

    def _add_pairs(self, out_BEH: Tensor) -> Tensor:
        """Cosines and distances of every two experts' outputs; the norms [B, E] of the outputs come back."""
        product_BEE = torch.bmm(out_BEH, out_BEH.transpose(1, 2))
        square_BE = product_BEE.diagonal(dim1=1, dim2=2)
        norm_BE = square_BE.sqrt()
        scale_BEE = norm_BE[:, :, None] * norm_BE[:, None]
        self.cosine_EE += (product_BEE / scale_BEE.clamp(min=1e-24)).sum(dim=0)
        apart_BEE = square_BE[:, :, None] + square_BE[:, None] - 2 * product_BEE
        self.distance_EE += apart_BEE.clamp(min=0).sqrt().sum(dim=0)
        return norm_BE

    def _add_feature_gates(self, gates_BI: list[Tensor]) -> None:
        sums = [gate_BI.sum(dim=0, dtype=torch.float64) for gate_BI in gates_BI]
        before = self.feature_gates_I or [torch.zeros_like(sum_I) for sum_I in sums]
        self.feature_gates_I = [
            total_I + sum_I for total_I, sum_I in zip(before, sums, strict=True)
        ]

    def add_up_ranks(self) -> None:
        """Make the sums those over the rows of all ranks."""
        rows_W = self.entropy_G.new_tensor(self.rows_W)
        gates = (self.gate_WGE, self.strength_GE, self.entropy_G, self.self_share_G)
        outputs = (self.active_EH, self.sum_EH, self.square_EH, self.magnitude_E, self.histogram_EK)
        pairs = (self.cosine_EE, self.distance_EE)
        add_up_all([rows_W, *gates, *outputs, *pairs, *self.feature_gates_I])
        self.rows_W = [int(rows) for rows in rows_W]

    def _histogram(self, out_BEH: Tensor) -> Tensor:
        """Counts [E, K] over a range that the first rows fixed; what lies outside falls into the outer bins."""
        if self._range is None:
            self._range = on_first(lambda: _range_of(out_BEH))
        low, high = self._range
        bins_BEH = ((out_BEH - low) * (BINS / max(high - low, _ZERO))).long().clamp_(0, BINS - 1)
        experts = out_BEH.shape[1]
        bins_BEH += BINS * torch.arange(experts, device=out_BEH.device)[:, None]
        return torch.bincount(bins_BEH.flatten(), minlength=experts * BINS).view(experts, BINS)


class ExpertWatch:
    """Statistics of all levels with gates, gathered from the forward passes inside `with watch.attached():`.

    Every n-th row counts. `rows` says how many will pass, so that the two halves of them can be told apart; without
    it all are in the first.
    """

    def __init__(self, mixing: Any, *, every: int = 1, rows: int | None = None) -> None:
        self._mixing = mixing
        self._every = every
        self._first_half = rows // 2 if rows is not None else None
        self._passed = 0
        # In the order of `watched()`; None for a level without gates, which has nothing to choose.
        self._statistics = [
            None if item.gates is None else LevelStatistics(item) for item in mixing.watched()
        ]

    @property
    def levels(self) -> list[LevelStatistics]:
        return [item for item in self._statistics if item is not None]

    def add_up_ranks(self) -> None:
        """Make the statistics those of the rows of all ranks, once every rank has seen its own."""
        for statistics in self.levels:
            statistics.add_up_ranks()

    @contextmanager
    def attached(self) -> Iterator["ExpertWatch"]:
        """Add every forward pass of the mixing stage until the block ends."""
        probe, stage = Probe(every=self._every), self._mixing
        assert isinstance(stage, nn.Module)

        def take(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = len(output)
            first_half = of_first_half(self._passed, rows, self._first_half)
            # Of every n-th row.
            sampled = rows if first_half is None else -(-first_half // self._every)
            self._passed += rows
            for statistics, level in zip(self._statistics, probe.levels, strict=True):
                if statistics is not None:
                    statistics.add(level, first_half=sampled)
                # Activations are not kept alive until the next pass.
                level.clear()

        handle = stage.register_forward_hook(take)
        try:
            with probe.attached(_watchable(stage)):
                yield self
        finally:
            handle.remove()


def of_first_half(passed: int, rows: int, first_half: int | None) -> int | None:
    """How many of the next rows are in the first half, where so many have passed; None where no half is known."""
    return None if first_half is None else min(max(first_half - passed, 0), rows)


def _share_of_norm(own_BGE: Tensor, gate_BGE: Tensor, out_BEH: Tensor) -> Tensor:
    """Norm of the self gate's part of each mixture beside the whole mixture's, [B, G]; 0 where both are 0."""
    own_BG = torch.linalg.vector_norm(mix(own_BGE, out_BEH), dim=2)
    whole_BG = torch.linalg.vector_norm(mix(gate_BGE + own_BGE, out_BEH), dim=2)
    share_BG: Tensor = own_BG / whole_BG.clamp(min=_ZERO)
    return share_BG


def _range_of(out_BEH: Tensor) -> tuple[float, float]:
    mean, reach = float(out_BEH.mean()), _REACH * float(out_BEH.std(correction=0))
    return max(mean - reach, float(out_BEH.min())), min(mean + reach, float(out_BEH.max()))


def _watchable(stage: Any) -> Watchable:
    found: Watchable = stage
    return found
