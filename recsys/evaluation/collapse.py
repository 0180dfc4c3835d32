"""Findings of collapse: experts dead, of unlike scale, alike, untrained, or one that wins everywhere."""

from collections.abc import Iterator, Sequence
from statistics import median

from recsys.diagnosis import ExpertNumbers, Finding, LevelNumbers, Severity
from recsys.evaluation.checks import CHECKS, finding, percent, reader_name

_CERTAIN_DOMINANCE = 0.98
_FEWEST_CHOICES = 4
_LEAST = 1e-8


def collapse(level: LevelNumbers) -> Iterator[Finding]:
    """What a level's experts and gates show of it."""
    living = []
    for expert in level.experts:
        name = f"expert {expert.number} of level {level.level}"
        if expert.zero_share > CHECKS["zero_share"].threshold:
            verdict = f"{name} is dead: {percent(expert.zero_share)} of its outputs are inactive"
            yield finding(
                "zero_share", expert.zero_share, verdict, level=level, expert=expert.number
            )
        else:
            living.append(expert)
        if expert.dead_units > CHECKS["dead_units"].threshold:
            verdict = f"{percent(expert.dead_units)} of the units of {name} never fire"
            yield finding(
                "dead_units", expert.dead_units, verdict, level=level, expert=expert.number
            )
    yield from _scales(level, living)
    yield from _movement(level)
    yield from _dominance(level)
    yield from _narrow_gates(level)


def _narrow_gates(level: LevelNumbers) -> Iterator[Finding]:
    for gate in level.gates:
        if (
            gate.choices >= _FEWEST_CHOICES
            and gate.effective_experts < CHECKS["effective_experts"].threshold
        ):
            verdict = (
                f"{reader_name(gate.reader)} uses {gate.effective_experts:.1f} of the {gate.choices} experts it may "
                f"choose at level {level.level}"
            )
            yield finding(
                "effective_experts", gate.effective_experts, verdict, level=level, task=gate.reader
            )


def _scales(level: LevelNumbers, living: Sequence[ExpertNumbers]) -> Iterator[Finding]:
    """Of the living experts: a dead one has its own finding."""
    if len(living) < 2:
        return
    ratio, small, large = max(
        _extremes({expert.number: expert.deviation for expert in living}),
        _extremes({expert.number: expert.magnitude for expert in living}),
    )
    alive = {expert.number for expert in living}
    if ratio > CHECKS["scale_ratio"].threshold:
        verdict = (
            f"outputs of expert {large} of level {level.level} are {ratio:,.0f} times as large as those of "
            f"expert {small}"
        )
        yield finding("scale_ratio", ratio, verdict, level=level, expert=small)
    elif (
        level.divergence > CHECKS["divergence"].threshold
        and level.divergent_experts is not None
        and alive.issuperset(level.divergent_experts)
    ):
        first, second = level.divergent_experts
        verdict = (
            f"outputs of experts {first} and {second} of level {level.level} are distributed unlike each other "
            f"(divergence {level.divergence:.2f})"
        )
        yield finding("divergence", level.divergence, verdict, level=level, expert=first)
    if level.redundancy is not None and level.redundancy > CHECKS["redundancy"].threshold:
        verdict = (
            f"the experts of level {level.level} say the same (mean cosine {level.redundancy:.2f})"
        )
        yield finding("redundancy", level.redundancy, verdict, level=level)


def _extremes(values: dict[int, float]) -> tuple[float, int, int]:
    """The ratio of the largest value to the smallest, and whose these are: smallest, largest."""
    ordered = sorted(values, key=values.__getitem__)
    small, large = ordered[0], ordered[-1]
    return max(values[large], _LEAST) / max(values[small], _LEAST), small, large


def _dominance(level: LevelNumbers) -> Iterator[Finding]:
    if len(level.experts) < 2:
        return
    shares = {
        "weight": [gate.weights for gate in level.gates],
        "contribution": [gate.contributions for gate in level.gates],
    }
    for what, number in (
        ("weight", level.dominance),
        ("contribution", level.dominance_by_contribution),
    ):
        if number > CHECKS["dominance"].threshold:
            totals = [sum(parts) for parts in zip(*shares[what], strict=True)]
            winner = 1 + totals.index(max(totals))
            verdict = (
                f"expert {winner} of level {level.level} wins everywhere: {percent(number)} of all {what}, "
                "in the mean over gates"
            )
            severity: Severity = "alarm" if number > _CERTAIN_DOMINANCE else "warning"
            yield finding(
                "dominance", number, verdict, severity=severity, level=level, expert=winner
            )
            return


def _movement(level: LevelNumbers) -> Iterator[Finding]:
    known = [expert.movement for expert in level.experts if expert.movement is not None]
    if len(known) < 2:
        return
    typical = median(known)
    for expert in level.experts:
        if expert.movement is None or typical <= 0:
            continue
        share = expert.movement / typical
        if share < CHECKS["movement"].threshold:
            verdict = (
                f"expert {expert.number} of level {level.level} hardly moved in training: {percent(share)} of "
                "what the others did"
            )
            yield finding("movement", share, verdict, level=level, expert=expert.number)
