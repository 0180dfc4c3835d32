"""What the doctor asks of each number, and what to try when it fails.

Thresholds marked "paper" are HoME's (arXiv 2408.05430, section 3); the others are ours, set so that the injected faults
in the tests are found, and trained models without one raise nothing.
"""

from dataclasses import dataclass

from recsys.diagnosis import SHARED, Finding, LevelNumbers, Severity


@dataclass(frozen=True)
class Check:
    """What is asked of a number, and what to try when it fails."""

    threshold: float
    severity: Severity
    advice: str


CHECKS: dict[str, Check] = {
    # Paper: more than 90 % zeros.
    "zero_share": Check(
        0.9,
        "alarm",
        "lower optimizer.dense_lr or raise optimizer.warmup_steps and train again; home's experts are normalised "
        "and cannot die so",
    ),
    # A second level reads mixtures of ReLUs, none below 0, so that units whose weights sum below 0 fall silent: up to
    # 0.39 of them in models as good as any. A fault silences nearly all.
    "dead_units": Check(
        0.5,
        "warning",
        "lower optimizer.dense_lr or raise optimizer.warmup_steps, or give experts fewer units",
    ),
    # Paper: it saw a factor of 100 between means.
    "scale_ratio": Check(
        10.0,
        "alarm",
        "set optimizer.weight_decay or clip_norm, or take mixing home, whose experts are normalised",
    ),
    "divergence": Check(
        0.3,
        "warning",
        "gates then choose by scale, not by content; take mixing home, whose experts are normalised",
    ),
    # Paper: nearly all weight on one expert.
    "dominance": Check(
        0.9,
        "warning",
        "set gate_dropout (mmoe), or train with fewer experts and compare: the others add nothing now",
    ),
    "effective_experts": Check(
        1.5,
        "warning",
        "set gate_dropout (mmoe), or give fewer experts",
    ),
    "redundancy": Check(
        0.95,
        "warning",
        "give fewer experts, or set expert_dropout so that they learn different things",
    ),
    "degradation": Check(
        0.7,
        "alarm",
        "give that task more task_experts and the level fewer shared_experts, or group tasks that belong together "
        "(home's groups)",
    ),
    "serves_one": Check(
        0.2,
        "warning",
        "what this expert knows helps one task alone: give that task more task_experts and the level fewer "
        "shared_experts",
    ),
    "shared_unused": Check(
        0.1,
        "warning",
        "tasks share too little to gain from it: train with fewer shared_experts, or group tasks (home's groups)",
    ),
    "own_experts_unused": Check(
        0.2,
        "alarm",
        "the task has too few labels for experts of its own: give it fewer task_experts, or take mixing home or "
        "adatt, where own experts have a direct way",
    ),
    "density_coupling": Check(
        0.7,
        "alarm",
        "rare tasks leave their own experts to the frequent ones: take mixing home, or raise their "
        "objective.weights",
    ),
    # Of the task's own loss: beside the gradient of all losses, a rare task's is small by its labels alone, which an
    # optimizer that scales each entry (Adam) takes out again.
    "gradient_reach": Check(
        0.1,
        "warning",
        "own experts hardly learn: give the task fewer task_experts, or take mixing home or adatt, where own experts "
        "have a direct way",
    ),
    "movement": Check(
        0.1,
        "warning",
        "the expert is as it was before training: give fewer experts, or train longer",
    ),
    "own_experts_useless": Check(
        2.0,
        "warning",
        "these parameters can go: give the task fewer task_experts",
    ),
    "conflict": Check(
        -0.1,
        "warning",
        "separate the two: ple or home with experts of their own, or two groups in home",
    ),
    "gradient_share": Check(
        0.9,
        "warning",
        "lower that task's objective.weights, or scale its label down (a regression in seconds weighs more than in "
        "minutes)",
    ),
}


def finding(
    check: str,
    number: float,
    verdict: str,
    *,
    severity: Severity | None = None,
    level: LevelNumbers | None = None,
    expert: int | None = None,
    task: str | None = None,
) -> Finding:
    """A verdict with the threshold, severity and advice of its check."""
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


def reader_name(name: str) -> str:
    """A gate's reader in a sentence."""
    return name if " " in name or name == SHARED else f"task {name}"


def percent(share: float) -> str:
    """A share in a sentence; below 1 % with a decimal."""
    return f"{share:.0%}" if share >= 0.01 or share == 0 else f"{share:.1%}"
