"""Numbers about experts from the statistics of their levels: collapse, degradation, underfitting.

The three anomalies are HoME's (arXiv 2408.05430, section 3): experts whose outputs differ in scale until one wins
everywhere, shared experts that one task holds, and sparse tasks that leave their own experts aside.

Axes: **E** experts, **G** gates.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from recsys.diagnosis import ExpertNumbers, LevelNumbers
from recsys.evaluation.expert_distances import (
    distance_numbers,
    divergences,
    largest_pair,
    mean_of_pairs,
)
from recsys.evaluation.expert_statistics import ExpertWatch, LevelStatistics
from recsys.evaluation.gate_numbers import (
    Shares,
    density_coupling,
    feature_gate_numbers,
    gate_numbers,
    occupancy,
    shares,
)

# A dead expert's deviation is 0; the ratio to it must stay a number.
_LEAST_DEVIATION = 1e-8


def level_numbers(
    statistics: LevelStatistics,
    *,
    level: int,
    labels: Mapping[str, Sequence[int]],
    movement: Sequence[float] | None = None,
    gradient_norms: Mapping[str, Tensor] | None = None,
) -> LevelNumbers:
    """The numbers of a level, counted from 1.

    `labels` of each task in both halves of the rows; `gradient_norms` [E] of each task's loss.
    """
    rows = max(statistics.rows, 1)
    units = rows * statistics.watched.bank.width
    taken = shares(statistics)
    experts = _experts(statistics, taken=taken, movement=movement, gradient_norms=gradient_norms)
    divergence_EE = divergences((statistics.histogram_EK / units).cpu())
    several = len(experts) > 1
    coupling = density_coupling(statistics, labels)
    return LevelNumbers(
        level=level,
        experts=experts,
        gates=gate_numbers(statistics, taken),
        feature_gates=feature_gate_numbers(statistics),
        deviation_ratio=_ratio([expert.deviation for expert in experts]),
        magnitude_ratio=_ratio([expert.magnitude for expert in experts]),
        divergence=float(divergence_EE.max()),
        divergence_mean=mean_of_pairs(divergence_EE) if several else 0.0,
        divergent_experts=largest_pair(divergence_EE) if several else None,
        distances=distance_numbers(statistics),
        redundancy=mean_of_pairs((statistics.cosine_EE / rows).cpu()) if several else None,
        dominance=float(taken.weights_GE.mean(dim=0).max()),
        dominance_by_contribution=float(taken.contributions_GE.mean(dim=0).max()),
        density_coupling=coupling and coupling[0],
        density_coupling_by_half=coupling and coupling[1],
    )


def headlines(watch: ExpertWatch) -> dict[str, dict[str, float]]:
    """The worst of each number, level by level: what a training's records keep."""
    found = {}
    for number, statistics in enumerate(watch.levels, start=1):
        level = level_numbers(statistics, level=number, labels={})
        occupied = [expert.occupancy for expert in level.experts if expert.occupancy is not None]
        masses = [gate.own_mass_relative for gate in level.gates]
        numbers = {
            "zero_share": max(expert.zero_share for expert in level.experts),
            "dead_units": max(expert.dead_units for expert in level.experts),
            "scale_ratio": level.deviation_ratio,
            "divergence": level.divergence,
            "dominance": level.dominance,
            "effective_experts": min(gate.effective_experts for gate in level.gates),
            "degradation": max((item.score for item in occupied), default=None),
            "own_mass_relative": min((mass for mass in masses if mass is not None), default=None),
        }
        found[f"level_{number}"] = {
            name: value for name, value in numbers.items() if value is not None
        }
    return found


def _experts(
    statistics: LevelStatistics,
    *,
    taken: Shares,
    movement: Sequence[float] | None,
    gradient_norms: Mapping[str, Tensor] | None,
) -> tuple[ExpertNumbers, ...]:
    width = statistics.watched.bank.width
    units = max(statistics.rows, 1) * width
    active_E = statistics.active_EH.sum(dim=1).cpu()
    fires_E = (statistics.active_EH > 0).sum(dim=1).cpu()
    mean_E = (statistics.sum_EH.sum(dim=1) / units).cpu()
    square_E = (statistics.square_EH.sum(dim=1) / units).cpu()
    deviation_E = (square_E - mean_E.square()).clamp(min=0).sqrt()
    magnitude_E = (statistics.magnitude_E / units).cpu()
    return tuple(
        ExpertNumbers(
            number=e + 1,
            group=group,
            zero_share=1 - float(active_E[e]) / units,
            dead_units=1 - float(fires_E[e]) / width,
            magnitude=float(magnitude_E[e]),
            deviation=float(deviation_E[e]),
            movement=None if movement is None else movement[e],
            occupancy=occupancy(e, statistics, taken=taken, gradient_norms=gradient_norms),
        )
        for e, group in enumerate(statistics.watched.groups)
    )


def _ratio(values: Sequence[float]) -> float:
    return max(max(values), _LEAST_DEVIATION) / max(min(values), _LEAST_DEVIATION)
