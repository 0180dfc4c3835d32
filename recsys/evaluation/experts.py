"""Numbers about experts from the statistics of their levels: collapse, degradation, underfitting.

The three anomalies are HoME's (arXiv 2408.05430, section 3): experts whose outputs differ in scale until one wins
everywhere, shared experts that one task holds, and sparse tasks that leave their own experts aside.

Axes: **E** experts, **G** gates, **K** bins of a histogram.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recsys.diagnosis import SHARED, ExpertNumbers, GateNumbers, LevelNumbers, Occupancy
from recsys.evaluation.expert_statistics import ExpertWatch, LevelStatistics
from recsys.models.probe import Watched

# A dead expert's deviation is 0; the ratio to it must stay a number.
_LEAST_DEVIATION = 1e-8
# With fewer tasks a rank correlation above 0.7 is too often chance.
_FEWEST_COUPLED = 8


def level_numbers(
    statistics: LevelStatistics,
    *,
    level: int,
    labels: Mapping[str, int],
    movement: Sequence[float] | None = None,
    gradient_norms: Mapping[str, Tensor] | None = None,
) -> LevelNumbers:
    """The numbers of a level, counted from 1. `labels` of each task; `gradient_norms` [E] of each task's loss."""
    watched, rows = statistics.watched, max(statistics.rows, 1)
    units = rows * watched.bank.width
    mean_E = (statistics.sum_E / units).cpu()
    deviation_E = (statistics.square_E.cpu() / units - mean_E.square()).clamp(min=0).sqrt()
    magnitude_E = (statistics.magnitude_E / units).cpu()
    weights_GE = (statistics.gate_GE / rows).cpu()
    strength_GE = statistics.strength_GE.cpu()
    contributions_GE = strength_GE / strength_GE.sum(dim=1, keepdim=True).clamp(min=1e-30)
    readers = readers_of(watched, len(weights_GE))
    gates = _gates(statistics, readers, weights_GE, contributions_GE)
    divergence_EE = divergences((statistics.histogram_EK / units).cpu())
    worst = _worst_pair(divergence_EE)
    return LevelNumbers(
        level=level,
        experts=tuple(
            ExpertNumbers(
                number=e + 1,
                group=group,
                zero_share=float(statistics.inactive_E[e]) / units,
                dead_units=1 - float(statistics.active_EH[e].double().mean()),
                magnitude=float(magnitude_E[e]),
                deviation=float(deviation_E[e]),
                movement=None if movement is None else movement[e],
                occupancy=_occupancy(
                    e, statistics, readers, weights_GE, contributions_GE, gradient_norms
                ),
            )
            for e, group in enumerate(watched.groups)
        ),
        gates=gates,
        deviation_ratio=_ratio(deviation_E),
        magnitude_ratio=_ratio(magnitude_E),
        divergence=float(divergence_EE.max()),
        divergence_mean=_mean_of_pairs(divergence_EE) or 0.0,
        divergent_experts=worst,
        redundancy=_mean_of_pairs((statistics.cosine_EE / rows).cpu()),
        dominance=float(weights_GE.mean(dim=0).max()),
        dominance_by_contribution=float(contributions_GE.mean(dim=0).max()),
        density_coupling=_density_coupling(gates, labels),
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


def readers_of(watched: Watched, gates: int) -> tuple[str, ...]:
    """A name for each gate of a level, by number where the mixing names none."""
    if len(watched.readers) == gates:
        return watched.readers
    return tuple(f"gate {number}" for number in range(1, gates + 1))


def effective_number(share_E: Tensor) -> float:
    """exp of the entropy of a distribution: how many equal parts would be as spread out."""
    return math.exp(float(torch.special.entr(share_E).sum()))


def divergences(histogram_EK: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits, 0 to 1, of every two of some distributions, [E, E]."""
    middle_EEK = (histogram_EK[:, None] + histogram_EK[None]) / 2
    own_E = torch.special.entr(histogram_EK).sum(dim=1)
    middle_EE = torch.special.entr(middle_EEK).sum(dim=2)
    bits_EE: Tensor = (middle_EE - (own_E[:, None] + own_E) / 2) / math.log(2)
    return bits_EE.clamp(0, 1)


def top_share_score(use_T: Tensor) -> float:
    """0 where all use it alike, 1 where one alone does: (max share - 1 / T) / (1 - 1 / T) of uses [T], T above 1."""
    total = float(use_T.sum())
    if total <= 0:
        return 0.0
    even = 1 / len(use_T)
    return (float(use_T.max()) / total - even) / (1 - even)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank; 0 where one side is constant."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1)
    scale = float(norms[0] * norms[1])
    return float(centred[0] @ centred[1]) / scale if scale > 0 else 0.0


def _gates(
    statistics: LevelStatistics,
    readers: Sequence[str],
    weights_GE: Tensor,
    contributions_GE: Tensor,
) -> tuple[GateNumbers, ...]:
    groups = statistics.watched.groups
    by_row_G = (statistics.entropy_G / max(statistics.rows, 1)).cpu()
    found = []
    for g, reader in enumerate(readers):
        chosen_E, weight_E = statistics.choices_GE[g].cpu(), weights_GE[g]
        entropy, by_row = float(torch.special.entr(weight_E).sum()), float(by_row_G[g])
        own = _mass(weight_E, chosen_E, groups, reader) if reader != SHARED else None
        shared = _mass(weight_E, chosen_E, groups, SHARED)
        found.append(
            GateNumbers(
                reader=reader,
                choices=int(chosen_E.sum()),
                weights=tuple(weight_E.tolist()),
                contributions=tuple(contributions_GE[g].tolist()),
                effective_experts=math.exp(entropy),
                effective_experts_by_row=math.exp(by_row),
                # Entropy is concave: less than 0 is rounding.
                routing=max(entropy - by_row, 0.0),
                own_mass=own and own[0],
                own_mass_relative=own and own[1],
                native=statistics.watched.native,
                shared_mass=shared and shared[0],
                shared_mass_relative=shared and shared[1],
            )
        )
    return tuple(found)


def _mass(
    weight_E: Tensor, chosen_E: Tensor, groups: Sequence[str], group: str
) -> tuple[float, float] | None:
    """Weight on a group's experts, and that beside an even gate's; None where there is no choice to make."""
    member_E = torch.tensor([name == group for name in groups]) & chosen_E
    members, chosen = int(member_E.sum()), int(chosen_E.sum())
    if not 0 < members < chosen:
        return None
    mass = float(weight_E[member_E].sum())
    return mass, mass * chosen / members


def _occupancy(
    expert: int,
    statistics: LevelStatistics,
    readers: Sequence[str],
    weights_GE: Tensor,
    contributions_GE: Tensor,
    gradient_norms: Mapping[str, Tensor] | None,
) -> Occupancy | None:
    """Who uses an expert of a group that several readers share; None for a reader's own, and for a sole reader's."""
    owner = statistics.watched.groups[expert]
    # What all streams read on is nobody's in particular.
    users = [
        g
        for g, reader in enumerate(readers)
        if reader != SHARED and bool(statistics.choices_GE[g, expert])
    ]
    if len(users) < 2 or (owner != SHARED and owner in readers):
        return None
    use_T = weights_GE[users, expert]
    named = [readers[g] for g in users]
    by_gradient = None
    if gradient_norms is not None and all(name in gradient_norms for name in named):
        by_gradient = top_share_score(torch.stack([gradient_norms[name][expert] for name in named]))
    total = float(use_T.sum())
    return Occupancy(
        readers=len(users),
        main_reader=named[int(use_T.argmax())],
        top_weight=float(use_T.max()),
        top_share=float(use_T.max()) / total if total > 0 else 0.0,
        score=top_share_score(use_T),
        score_by_contribution=top_share_score(contributions_GE[users, expert]),
        score_by_gradient=by_gradient,
        effective_readers=effective_number(use_T / total) if total > 0 else 0.0,
    )


def _density_coupling(gates: Sequence[GateNumbers], labels: Mapping[str, int]) -> float | None:
    """Rank correlation over tasks of labels and weight on own experts; None for fewer than 8 tasks that have both."""
    found = [
        (float(labels[gate.reader]), gate.own_mass)
        for gate in gates
        if gate.reader in labels and gate.own_mass is not None
    ]
    if len(found) < _FEWEST_COUPLED:
        return None
    return rank_correlation([labels for labels, _ in found], [mass for _, mass in found])


def _ranks(values: Sequence[float]) -> Tensor:
    value_N = torch.tensor(values, dtype=torch.float64)
    below = (value_N[None] < value_N[:, None]).sum(dim=1)
    equal = (value_N[None] == value_N[:, None]).sum(dim=1)
    return below + (equal + 1).double() / 2


def _ratio(value_E: Tensor) -> float:
    return float(
        value_E.max().clamp(min=_LEAST_DEVIATION) / value_E.min().clamp(min=_LEAST_DEVIATION)
    )


def _mean_of_pairs(value_EE: Tensor) -> float | None:
    experts = len(value_EE)
    if experts < 2:
        return None
    return float(value_EE.sum() - value_EE.diagonal().sum()) / (experts * (experts - 1))


def _worst_pair(value_EE: Tensor) -> tuple[int, int] | None:
    experts = len(value_EE)
    if experts < 2:
        return None
    first, second = divmod(int(value_EE.triu(diagonal=1).argmax()), experts)
    return (min(first, second) + 1, max(first, second) + 1) if first != second else (1, 2)
