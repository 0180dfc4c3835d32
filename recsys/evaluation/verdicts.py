"""Findings: each number that is beyond its threshold, said in plain words."""

from collections.abc import Iterator, Sequence
from statistics import median

from recsys.diagnosis import (
    SHARED,
    ExpertNumbers,
    Finding,
    LevelNumbers,
    PairNumbers,
    Removal,
    Severity,
    TaskNumbers,
)
from recsys.evaluation.checks import CHECKS

_CERTAIN_DOMINANCE = 0.98
_FEWEST_CHOICES = 4
# A shared expert of which nobody takes this much serves nobody, and monopoly of it is no loss.
_LEAST_TOP_WEIGHT = 0.2
_FEWEST_READERS = 1.5
# How far apart the tasks' relative masses must lie for their order to mean anything.
_COUPLED_SPREAD = 0.5
_NEGATIVE_BATCHES = 0.75
_FEWEST_BATCHES = 4
_LEAST = 1e-8
# A removal says nothing where its standard error is larger than what would matter.
_TELLING_STANDARD_ERROR = 0.0025
# A difference beyond this many standard errors is one.
_CERTAIN_ERRORS = 2.0


def findings(
    levels: Sequence[LevelNumbers],
    tasks: Sequence[TaskNumbers],
    pairs: Sequence[PairNumbers],
    removals: Sequence[Removal] | None,
) -> tuple[Finding, ...]:
    """Every number beyond its threshold."""
    found: list[Finding] = []
    for level in levels:
        found += _collapse(level)
        found += _degradation(level, removals or ())
        found += _underfitting(level)
    found += _starving(tasks)
    found += _useless(removals or ())
    found += _conflicts(tasks, pairs)
    return tuple(found)


def _finding(
    check: str,
    number: float,
    verdict: str,
    *,
    severity: Severity | None = None,
    level: LevelNumbers | None = None,
    expert: int | None = None,
    task: str | None = None,
) -> Finding:
    rule = CHECKS[check]
    return Finding(
        check=check,
        severity=severity or rule.severity,
        level=None if level is None else level.level,
        expert=expert,
        task=task,
        number=number,
        threshold=rule.threshold,
        verdict=verdict,
        advice=rule.advice,
    )


def _collapse(level: LevelNumbers) -> Iterator[Finding]:
    living = []
    for expert in level.experts:
        name = f"expert {expert.number} of level {level.level}"
        if expert.zero_share > CHECKS["zero_share"].threshold:
            verdict = f"{name} is dead: {_percent(expert.zero_share)} of its outputs are inactive"
            yield _finding(
                "zero_share", expert.zero_share, verdict, level=level, expert=expert.number
            )
        else:
            living.append(expert)
        if expert.dead_units > CHECKS["dead_units"].threshold:
            verdict = f"{_percent(expert.dead_units)} of the units of {name} never fire"
            yield _finding(
                "dead_units", expert.dead_units, verdict, level=level, expert=expert.number
            )
    yield from _scales(level, living)
    yield from _movement(level)
    yield from _dominance(level)
    for gate in level.gates:
        if (
            gate.choices >= _FEWEST_CHOICES
            and gate.effective_experts < CHECKS["effective_experts"].threshold
        ):
            verdict = (
                f"{_reader(gate.reader)} uses {gate.effective_experts:.1f} of the {gate.choices} experts it may choose "
                f"at level {level.level}"
            )
            yield _finding(
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
        yield _finding("scale_ratio", ratio, verdict, level=level, expert=small)
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
        yield _finding("divergence", level.divergence, verdict, level=level, expert=first)
    if level.redundancy is not None and level.redundancy > CHECKS["redundancy"].threshold:
        verdict = (
            f"the experts of level {level.level} say the same (mean cosine {level.redundancy:.2f})"
        )
        yield _finding("redundancy", level.redundancy, verdict, level=level)


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
                f"expert {winner} of level {level.level} wins everywhere: {_percent(number)} of all {what}, "
                "in the mean over gates"
            )
            severity: Severity = "alarm" if number > _CERTAIN_DOMINANCE else "warning"
            yield _finding(
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
                f"expert {expert.number} of level {level.level} hardly moved in training: {_percent(share)} of "
                "what the others did"
            )
            yield _finding("movement", share, verdict, level=level, expert=expert.number)


def _degradation(level: LevelNumbers, removals: Sequence[Removal]) -> Iterator[Finding]:
    for expert in level.experts:
        use = expert.occupancy
        if use is None or use.top_weight < _LEAST_TOP_WEIGHT:
            continue
        score = max(use.score, use.score_by_contribution)
        if score > CHECKS["degradation"].threshold or use.effective_readers < _FEWEST_READERS:
            kind = "shared expert" if expert.group == SHARED else f"expert of {expert.group}:"
            verdict = (
                f"{kind} {expert.number} of level {level.level} serves only {_reader(use.main_reader)} "
                f"({_percent(use.top_share)} of its use){_confirmed(level.level, expert.number, removals)}"
            )
            yield _finding(
                "degradation",
                score,
                verdict,
                level=level,
                expert=expert.number,
                task=use.main_reader,
            )
    masses = [
        gate.shared_mass_relative
        for gate in level.gates
        if gate.reader != SHARED and gate.shared_mass_relative is not None
    ]
    if len(masses) < 2:
        return
    middle = median(masses)
    if middle < CHECKS["shared_unused"].threshold:
        verdict = (
            f"most tasks leave the shared experts of level {level.level} aside: {_percent(middle)} of an even share "
            "in the median"
        )
        yield _finding("shared_unused", middle, verdict, level=level)


def _confirmed(level: int, expert: int, removals: Sequence[Removal]) -> str:
    """What the removal of an expert showed of its users."""
    for removal in removals:
        if (removal.level, removal.expert) == (level, expert):
            hurt = [
                f"{loss.task} {loss.difference:.4f}"
                for loss in removal.losses
                if loss.difference > _CERTAIN_ERRORS * loss.standard_error
            ]
            return f"; without it these lose AUC: {', '.join(hurt)}" if hurt else ""
    return ""


def _underfitting(level: LevelNumbers) -> Iterator[Finding]:
    for gate in level.gates:
        relative = gate.own_mass_relative
        if gate.native or gate.own_mass is None or relative is None:
            continue
        if relative < CHECKS["own_experts_unused"].threshold:
            verdict = (
                f"{_reader(gate.reader)} leaves its own experts of level {level.level} aside: "
                f"{_percent(gate.own_mass)} of its mixture, {_percent(relative)} of an even share"
            )
            yield _finding("own_experts_unused", relative, verdict, level=level, task=gate.reader)
    coupling = level.density_coupling
    if coupling is not None and coupling > CHECKS["density_coupling"].threshold:
        masses = [
            gate.own_mass_relative for gate in level.gates if gate.own_mass_relative is not None
        ]
        if min(masses) < _COUPLED_SPREAD * max(masses):
            verdict = (
                f"the fewer labels a task has, the less it uses its own experts of level {level.level} (rank "
                f"correlation {coupling:.2f})"
            )
            yield _finding("density_coupling", coupling, verdict, level=level)


def _starving(tasks: Sequence[TaskNumbers]) -> Iterator[Finding]:
    for item in tasks:
        supply = item.gradient_supply
        if supply is not None and supply < CHECKS["gradient_supply"].threshold:
            verdict = f"own experts of task {item.task} get {_percent(supply)} of the gradient that shared ones get"
            yield _finding("gradient_supply", supply, verdict, task=item.task)


def _useless(removals: Sequence[Removal]) -> Iterator[Finding]:
    for removal in removals:
        for loss in removal.losses:
            telling = 0 < loss.standard_error < _TELLING_STANDARD_ERROR
            if removal.own != loss.task or not telling:
                continue
            errors = loss.difference / loss.standard_error
            if errors < CHECKS["own_experts_useless"].threshold:
                verdict = (
                    f"task {loss.task} loses no AUC without its own experts ({loss.difference:+.4f}, standard error "
                    f"{loss.standard_error:.4f})"
                )
                yield _finding("own_experts_useless", errors, verdict, task=loss.task)


def _conflicts(tasks: Sequence[TaskNumbers], pairs: Sequence[PairNumbers]) -> Iterator[Finding]:
    for pair in pairs:
        if pair.cosine is None or pair.negative_share is None or pair.batches < _FEWEST_BATCHES:
            continue
        if pair.cosine < CHECKS["conflict"].threshold and pair.negative_share >= _NEGATIVE_BATCHES:
            verdict = (
                f"tasks {pair.first} and {pair.second} pull what they share apart: cosine {pair.cosine:.2f}, negative "
                f"in {_percent(pair.negative_share)} of {pair.batches} batches"
            )
            yield _finding("conflict", pair.cosine, verdict)
    for item in tasks:
        share = item.gradient_share
        if len(tasks) > 1 and share is not None and share > CHECKS["gradient_share"].threshold:
            verdict = (
                f"task {item.task} makes {_percent(share)} of the gradient on what tasks share"
            )
            yield _finding("gradient_share", share, verdict, task=item.task)


def _reader(name: str) -> str:
    """A gate's reader in a sentence."""
    return name if " " in name or name == SHARED else f"task {name}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or share == 0 else f"{share:.1%}"
