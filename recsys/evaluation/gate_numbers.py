"""Numbers about gates: how a level's readers share its experts, which degradation and underfitting are read from.

Axes: **E** experts, **G** gates, **T** the readers of an expert, **W** halves of the rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.diagnosis import SHARED, FeatureGateNumbers, GateNumbers, Occupancy
from recsys.evaluation.expert_statistics import LevelStatistics
from recsys.models.probe import Watched

# With fewer tasks a rank correlation above 0.7 is too often chance.
_FEWEST_COUPLED = 8
# Of a feature gate in (0, 2): a unit below or above is shut or wide open for nearly all rows.
_SHUT, _OPEN = 0.1, 1.9


@dataclass(frozen=True, eq=False)
class Shares:
    """What each gate of a level takes of each expert, rows [G] that sum to 1: by weight, and by weight times size."""

    weights_GE: Tensor
    contributions_GE: Tensor


def shares(statistics: LevelStatistics) -> Shares:
    """The mean over all rows."""
    strength_GE = statistics.strength_GE.cpu()
    return Shares(
        weights_GE=(statistics.gate_WGE.sum(dim=0) / max(statistics.rows, 1)).cpu(),
        contributions_GE=strength_GE / strength_GE.sum(dim=1, keepdim=True).clamp(min=1e-30),
    )


def gate_numbers(statistics: LevelStatistics, taken: Shares) -> tuple[GateNumbers, ...]:
    """The numbers of every gate of a level."""
    watched, rows = statistics.watched, max(statistics.rows, 1)
    weights_GE, contributions_GE = taken.weights_GE, taken.contributions_GE
    by_row_G = (statistics.entropy_G / rows).cpu()
    self_share_G = (statistics.self_share_G / rows).cpu()
    found = []
    for g, reader in enumerate(readers_of(watched, len(weights_GE))):
        chosen_E, weight_E = statistics.choices_GE[g].cpu(), weights_GE[g]
        entropy, by_row = float(torch.special.entr(weight_E).sum()), float(by_row_G[g])
        own = _mass(weight_E, chosen_E, watched.groups, reader) if reader != SHARED else None
        shared = _mass(weight_E, chosen_E, watched.groups, SHARED)
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
                native=watched.native,
                self_contribution=float(self_share_G[g]) if watched.self_gates else None,
                shared_mass=shared and shared[0],
                shared_mass_relative=shared and shared[1],
            )
        )
    return tuple(found)


def readers_of(watched: Watched, gates: int) -> tuple[str, ...]:
    """A name for each gate of a level, by number where the mixing names none."""
    if len(watched.readers) == gates:
        return watched.readers
    return tuple(f"gate {number}" for number in range(1, gates + 1))


def occupancy(
    expert: int,
    statistics: LevelStatistics,
    *,
    taken: Shares,
    gradient_norms: Mapping[str, Tensor] | None,
) -> Occupancy | None:
    """Who uses an expert of a group that several readers share; None for a reader's own, and for a sole reader's."""
    owner = statistics.watched.groups[expert]
    readers = readers_of(statistics.watched, len(taken.weights_GE))
    allowed_G: list[bool] = statistics.choices_GE[:, expert].tolist()
    # What all streams read on is nobody's in particular.
    users = [g for g, reader in enumerate(readers) if reader != SHARED and allowed_G[g]]
    if len(users) < 2 or (owner != SHARED and owner in readers):
        return None
    use_T, contributed_T = taken.weights_GE[users, expert], taken.contributions_GE[users, expert]
    total = float(use_T.sum())
    effective = _effective_share(use_T)
    return Occupancy(
        readers=len(users),
        main_reader=readers[users[int(use_T.argmax())]],
        top_weight=float(use_T.max()),
        top_share=float(use_T.max()) / total if total > 0 else 0.0,
        score=top_share_score(use_T),
        score_by_contribution=top_share_score(contributed_T),
        score_by_gradient=_score_by_gradient(expert, [readers[g] for g in users], gradient_norms),
        effective_readers=effective,
        effective_readers_by_contribution=_effective_share(contributed_T),
        evenness=math.log(effective) / math.log(len(users)) if effective > 0 else 0.0,
    )


def feature_gate_numbers(statistics: LevelStatistics) -> tuple[FeatureGateNumbers, ...]:
    """How far each group's feature gate is from leaving its input as it is; empty where a level has none."""
    found = []
    sums = statistics.feature_gates_I
    for group, sum_I in zip(statistics.watched.gated if sums else (), sums, strict=True):
        mean_I = sum_I.cpu() / max(statistics.rows, 1)
        extreme_I = (mean_I < _SHUT) | (mean_I > _OPEN)
        found.append(
            FeatureGateNumbers(
                group=group,
                spread=float(mean_I.std(correction=0)),
                extreme=float(extreme_I.double().mean()),
            )
        )
    return tuple(found)


def density_coupling(
    statistics: LevelStatistics, labels: Mapping[str, Sequence[int]]
) -> tuple[float, tuple[float, float]] | None:
    """Rank correlation over tasks of labels and weight on own experts: over all rows, and in each half of them.

    None for fewer than 8 tasks that have both, or where no half is known. `labels` has each task's in both halves.
    """
    watched, choices_GE = statistics.watched, statistics.choices_GE.cpu()
    readers = readers_of(watched, len(choices_GE))
    if not all(statistics.rows_W):
        return None
    counts, masses_WT = list[Sequence[int]](), list[tuple[float, float]]()
    for g, reader in enumerate(readers):
        if reader not in labels:
            continue
        found = [
            _mass(sum_GE[g].cpu() / rows, choices_GE[g], watched.groups, reader)
            for sum_GE, rows in zip(statistics.gate_WGE, statistics.rows_W, strict=True)
        ]
        if found[0] is not None and found[1] is not None:
            counts.append(labels[reader])
            masses_WT.append((found[0][0], found[1][0]))
    if len(counts) < _FEWEST_COUPLED:
        return None
    first, second = (
        rank_correlation([count[half] for count in counts], [mass[half] for mass in masses_WT])
        for half in (0, 1)
    )
    rows = statistics.rows_W
    whole = rank_correlation(
        [sum(count) for count in counts],
        [mass[0] * rows[0] + mass[1] * rows[1] for mass in masses_WT],
    )
    return whole, (first, second)


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


def _effective_share(use_T: Tensor) -> float:
    """exp of the entropy of uses: how many equal users would be as spread out; 0 without any use."""
    total = use_T.sum()
    return math.exp(float(torch.special.entr(use_T / total).sum())) if total > 0 else 0.0


def _score_by_gradient(
    expert: int, readers: Sequence[str], gradient_norms: Mapping[str, Tensor] | None
) -> float | None:
    """`top_share_score` of tasks' gradients on an expert: of those that read it, or of all where none does directly."""
    if gradient_norms is None:
        return None
    tasks = [name for name in readers if name in gradient_norms] or list(gradient_norms)
    if len(tasks) < 2:
        return None
    return top_share_score(torch.stack([gradient_norms[name][expert] for name in tasks]))


def _ranks(values: Sequence[float]) -> Tensor:
    value_N = torch.tensor(values, dtype=torch.float64)
    below = (value_N[None] < value_N[:, None]).sum(dim=1)
    equal = (value_N[None] == value_N[:, None]).sum(dim=1)
    return below + (equal + 1).double() / 2
