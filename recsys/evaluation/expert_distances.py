"""How far apart the outputs of a level's experts are, two by two: in distribution, in direction, and row by row.

Axes: **E** experts, **H** expert width, **K** bins of a histogram.
"""

import math

import torch
from torch import Tensor

from recsys.diagnosis import DistanceNumbers
from recsys.evaluation.expert_statistics import LevelStatistics

# Of the level's own deviation: a unit that varies less has no Gaussian fit worth the name.
_LEAST_DEVIATION = 1e-3


def distance_numbers(statistics: LevelStatistics) -> DistanceNumbers | None:
    """Distances of every two experts of a level, their mean and the largest; None for a single expert."""
    if statistics.watched.bank.experts < 2:
        return None
    rows = max(statistics.rows, 1)
    mean_EH = (statistics.sum_EH / rows).cpu()
    deviation_EH = (statistics.square_EH.cpu() / rows - mean_EH.square()).clamp(min=0).sqrt()
    kl_EE = gaussian_divergences(mean_EH, deviation_EH)
    wasserstein_EE = gaussian_transports(mean_EH, deviation_EH)
    distance_EE = (statistics.distance_EE / rows).cpu()
    largest = float(distance_EE.max())
    return DistanceNumbers(
        gaussian_kl=_finite(largest_of(kl_EE)),
        gaussian_kl_mean=_finite(mean_of_pairs(kl_EE)),
        wasserstein=largest_of(wasserstein_EE),
        wasserstein_mean=mean_of_pairs(wasserstein_EE),
        diversity=mean_of_pairs(distance_EE) / largest if largest > 0 else 0.0,
    )


def divergences(histogram_EK: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits, 0 to 1, of every two of some distributions, [E, E]."""
    middle_EEK = (histogram_EK[:, None] + histogram_EK[None]) / 2
    own_E = torch.special.entr(histogram_EK).sum(dim=1)
    middle_EE = torch.special.entr(middle_EEK).sum(dim=2)
    bits_EE: Tensor = (middle_EE - (own_E[:, None] + own_E) / 2) / math.log(2)
    return bits_EE.clamp(0, 1)


def gaussian_divergences(mean_EH: Tensor, deviation_EH: Tensor) -> Tensor:
    """Symmetric KL divergence in nats of the Gaussian fits of every two experts, [E, E].

    (KL(p, q) + KL(q, p)) / 2 unit by unit, as gates add experts up unit by unit; the mean over the units that vary in
    both, NaN where none does: a unit that never fires is told by other numbers, and would make this one endless.
    """
    least = _LEAST_DEVIATION * float(deviation_EH.square().mean().sqrt())
    lives_EH = deviation_EH > least
    variance_EH = deviation_EH.square()
    apart_EEH = (mean_EH[:, None] - mean_EH).square()
    first_EEH, second_EEH = variance_EH[:, None], variance_EH[None]
    nats_EEH = ((first_EEH + apart_EEH) / second_EEH + (second_EEH + apart_EEH) / first_EEH - 2) / 4
    both_EEH = lives_EH[:, None] & lives_EH
    counted_EEH = torch.where(both_EEH, nats_EEH, 0.0)
    return counted_EEH.sum(dim=2) / both_EEH.sum(dim=2)


def gaussian_transports(mean_EH: Tensor, deviation_EH: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of the Gaussian fits of every two experts, the mean over units, [E, E]."""
    apart_EEH = (mean_EH[:, None] - mean_EH).square()
    return (apart_EEH + (deviation_EH[:, None] - deviation_EH).square()).mean(dim=2)


def mean_of_pairs(value_EE: Tensor) -> float:
    """The mean over two different experts; NaNs are left out."""
    return float(_pairs(value_EE).nanmean())


def largest_of(value_EE: Tensor) -> float:
    """The largest over two different experts; NaN where all are."""
    known = _pairs(value_EE)
    known = known[~known.isnan()]
    return float(known.max()) if len(known) else math.nan


def largest_pair(value_EE: Tensor) -> tuple[int, int]:
    """The numbers, from 1, of the two experts with the largest value."""
    first, second = torch.triu_indices(len(value_EE), len(value_EE), offset=1)
    place = int(value_EE[first, second].argmax())
    return int(first[place]) + 1, int(second[place]) + 1


def _pairs(value_EE: Tensor) -> Tensor:
    experts = len(value_EE)
    return value_EE[tuple(torch.triu_indices(experts, experts, offset=1))]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
