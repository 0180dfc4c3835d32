"""Findings: each number that is beyond its threshold, said in plain words."""

from collections.abc import Iterator, Sequence
from statistics import median

from recsys.diagnosis import (
    SHARED,
    AucLoss,
    ExpertNumbers,
    Finding,
    GateNumbers,
    LevelNumbers,
    PairNumbers,
    Removal,
    TaskNumbers,
)
from recsys.evaluation.checks import CHECKS, finding, percent, reader_name
from recsys.evaluation.collapse import collapse

# A shared expert of which nobody takes this much serves nobody, and monopoly of it is no loss.
_LEAST_TOP_WEIGHT = 0.2
_FEWEST_READERS = 1.5
# A self gate that adds less to the mixture is no way worth the name.
_LEAST_SELF_CONTRIBUTION = 0.1
# How far apart the tasks' relative masses must lie for their order to mean anything.
_COUPLED_SPREAD = 0.5
_NEGATIVE_BATCHES = 0.75
_FEWEST_BATCHES = 4
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
        found += collapse(level)
        found += _degradation(level, removals or ())
        found += _underfitting(level)
    found += _starving(tasks)
    found += _useless(removals or ())
    found += _conflicts(tasks, pairs)
    return tuple(found)


def _degradation(level: LevelNumbers, removals: Sequence[Removal]) -> Iterator[Finding]:
    for expert in level.experts:
        held = _held(level, expert, removals)
        if held is not None:
            yield held
        else:
            yield from _serves_one(level, expert, removals)
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
            f"most tasks leave the shared experts of level {level.level} aside: {percent(middle)} of an even share "
            "in the median"
        )
        yield finding("shared_unused", middle, verdict, level=level)


def _held(
    level: LevelNumbers, expert: ExpertNumbers, removals: Sequence[Removal]
) -> Finding | None:
    """An expert that several may use and one does, by weight or by contribution."""
    use = expert.occupancy
    if use is None or use.top_weight < _LEAST_TOP_WEIGHT:
        return None
    score = max(use.score, use.score_by_contribution)
    readers = min(
        use.effective_readers, use.effective_readers_by_contribution or use.effective_readers
    )
    if score <= CHECKS["degradation"].threshold and readers >= _FEWEST_READERS:
        return None
    verdict = (
        f"{_shared_name(level, expert)} serves only {reader_name(use.main_reader)} "
        f"({percent(use.top_share)} of its use){_confirmed(level.level, expert.number, removals)}"
    )
    return finding(
        "degradation", score, verdict, level=level, expert=expert.number, task=use.main_reader
    )


def _serves_one(
    level: LevelNumbers, expert: ExpertNumbers, removals: Sequence[Removal]
) -> Iterator[Finding]:
    """An expert whose removal costs one task, and surely costs no other a fifth of that."""
    if expert.occupancy is None:
        return
    for removal in removals:
        if (removal.level, removal.expert) != (level.level, expert.number):
            continue
        if len(removal.losses) < 2:
            return
        most = max(removal.losses, key=lambda loss: loss.difference)
        if not _costs(most):
            return
        next_loss = max(_most_lost(loss) for loss in removal.losses if loss is not most)
        share = max(next_loss, 0.0) / most.difference
        if share < CHECKS["serves_one"].threshold:
            verdict = (
                f"without {_shared_name(level, expert)} only task {most.task} loses AUC ({most.difference:.4f}, "
                f"standard error {most.standard_error:.4f}); any other at most {percent(share)} of that"
            )
            yield finding(
                "serves_one", share, verdict, level=level, expert=expert.number, task=most.task
            )


def _costs(loss: AucLoss) -> bool:
    """Whether a task surely loses, and enough to matter."""
    least = max(_CERTAIN_ERRORS * loss.standard_error, _TELLING_STANDARD_ERROR)
    return loss.difference > least


def _most_lost(loss: AucLoss) -> float:
    """The most that a task may well lose."""
    return loss.difference + _CERTAIN_ERRORS * loss.standard_error


def _shared_name(level: LevelNumbers, expert: ExpertNumbers) -> str:
    kind = "shared expert" if expert.group == SHARED else f"expert of {expert.group}:"
    return f"{kind} {expert.number} of level {level.level}"


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
        if gate.own_mass is None or relative is None or _reached_past_the_gate(gate):
            continue
        if relative < CHECKS["own_experts_unused"].threshold:
            verdict = (
                f"{reader_name(gate.reader)} leaves its own experts of level {level.level} aside: "
                f"{percent(gate.own_mass)} of its mixture, {percent(relative)} of an even share"
            )
            yield finding("own_experts_unused", relative, verdict, level=level, task=gate.reader)
    coupling = min(level.density_coupling_by_half or (0.0,))
    masses = [
        gate.own_mass_relative
        for gate in level.gates
        if gate.own_mass_relative is not None and not _reached_past_the_gate(gate)
    ]
    if coupling <= CHECKS["density_coupling"].threshold or not masses:
        return
    if min(masses) < _COUPLED_SPREAD * max(masses):
        verdict = (
            f"the fewer labels a task has, the less it uses its own experts of level {level.level} (rank "
            f"correlation {coupling:.2f} or more in each half of the rows)"
        )
        yield finding("density_coupling", coupling, verdict, level=level)


def _reached_past_the_gate(gate: GateNumbers) -> bool:
    """Whether a reader's own experts reach it by another way than the gate, as far as that is known."""
    if gate.self_contribution is None:
        return gate.native
    return gate.self_contribution >= _LEAST_SELF_CONTRIBUTION


def _starving(tasks: Sequence[TaskNumbers]) -> Iterator[Finding]:
    for item in tasks:
        reach = item.gradient_reach
        if reach is not None and reach < CHECKS["gradient_reach"].threshold:
            verdict = f"own experts of task {item.task} get {percent(reach)} of the gradient it sends to shared ones"
            yield finding("gradient_reach", reach, verdict, task=item.task)


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
                yield finding("own_experts_useless", errors, verdict, task=loss.task)


def _conflicts(tasks: Sequence[TaskNumbers], pairs: Sequence[PairNumbers]) -> Iterator[Finding]:
    for pair in pairs:
        if pair.cosine is None or pair.negative_share is None or pair.batches < _FEWEST_BATCHES:
            continue
        if pair.cosine < CHECKS["conflict"].threshold and pair.negative_share >= _NEGATIVE_BATCHES:
            verdict = (
                f"tasks {pair.first} and {pair.second} pull what they share apart: cosine {pair.cosine:.2f}, negative "
                f"in {percent(pair.negative_share)} of {pair.batches} batches"
            )
            yield finding("conflict", pair.cosine, verdict)
    for item in tasks:
        share = item.gradient_share
        if len(tasks) > 1 and share is not None and share > CHECKS["gradient_share"].threshold:
            verdict = f"task {item.task} makes {percent(share)} of the gradient on what tasks share"
            yield finding("gradient_share", share, verdict, task=item.task)
