"""A diagnosis as plain text: tables of numbers, then findings with what to try."""

from collections.abc import Sequence

from recsys.diagnosis import Diagnosis, ExpertNumbers, LevelNumbers, finding_lines
from recsys.report import aligned_table

_EXPERT_HEADER = (
    "expert",
    "group",
    "inactive",
    "dead units",
    "deviation",
    "main user",
    "its share",
    "held",
    "by gradient",
)
_GATE_HEADER = (
    "gate",
    "effective experts",
    "routing",
    "own",
    "shared",
    "self gate",
    "most used experts",
)
_FEATURE_GATE_HEADER = ("feature gate", "spread", "shut or wide open")
_TASK_HEADER = (
    "task",
    "labels",
    "gradient share",
    "own / shared gradient",
    "of its own loss",
    "gradient signal",
)
_PAIR_HEADER = ("tasks", "cosine", "10th percentile", "negative", "gates alike")
_REMOVAL_HEADER = ("without", "costs most", "AUC", "std. err.")
_SHOWN_EXPERTS = 3


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """Every level, the tasks, their pairs, removals, findings and advice; no trailing newline."""
    blocks = [_level(level) for level in diagnosis.levels]
    blocks += [_tasks(diagnosis)]
    if any(pair.cosine is not None for pair in diagnosis.pairs):
        blocks.append(_pairs(diagnosis))
    if diagnosis.removals:
        blocks.append(_removals(diagnosis))
    blocks.append("\n".join(finding_lines(diagnosis)))
    advice = dict.fromkeys(f"{item.check}: {item.advice}" for item in diagnosis.findings)
    if advice:
        blocks.append("\n".join(("what to try", *(f"  {line}" for line in advice))))
    return "\n\n".join(blocks)


def _level(level: LevelNumbers) -> str:
    facts = (
        f"level {level.level}: scale ratio {level.deviation_ratio:.3g}, divergence {level.divergence:.2f}, "
        f"dominance {level.dominance:.2f}"
    )
    if level.distances is not None:
        facts += (
            f"\ntwo experts: Gaussian divergence {_number(level.distances.gaussian_kl_mean)}, Wasserstein distance "
            f"{level.distances.wasserstein_mean:.3g}, diversity {level.distances.diversity:.2f} (means)"
        )
    experts = aligned_table(_EXPERT_HEADER, [_expert_cells(expert) for expert in level.experts])
    blocks = [facts, experts, aligned_table(_GATE_HEADER, _gate_rows(level))]
    if level.feature_gates:
        rows = [
            (gate.group, f"{gate.spread:.3f}", _share(gate.extreme)) for gate in level.feature_gates
        ]
        blocks.append(aligned_table(_FEATURE_GATE_HEADER, rows))
    return "\n\n".join(blocks)


def _expert_cells(expert: ExpertNumbers) -> tuple[str, ...]:
    use = expert.occupancy
    users = (
        (
            use.main_reader,
            f"{use.top_share:.0%}",
            f"{use.score:.2f}",
            _number(use.score_by_gradient),
        )
        if use is not None
        else ("-", "-", "-", "-")
    )
    return (
        str(expert.number),
        expert.group,
        f"{expert.zero_share:.1%}",
        f"{expert.dead_units:.1%}",
        f"{expert.deviation:.3g}",
        *users,
    )


def _gate_rows(level: LevelNumbers) -> list[tuple[str, ...]]:
    return [
        (
            gate.reader,
            f"{gate.effective_experts:.2f} of {gate.choices}",
            f"{gate.routing:.3f}",
            _share(gate.own_mass),
            _share(gate.shared_mass),
            _share(gate.self_contribution),
            _most_used(gate.weights),
        )
        for gate in level.gates
    ]


def _tasks(diagnosis: Diagnosis) -> str:
    rows = [
        (
            item.task,
            f"{item.labels:,}",
            _share(item.gradient_share),
            _number(item.gradient_supply),
            _number(item.gradient_reach),
            _number(item.gradient_signal),
        )
        for item in diagnosis.tasks
    ]
    return aligned_table(_TASK_HEADER, rows)


def _pairs(diagnosis: Diagnosis) -> str:
    rows = [
        (
            f"{pair.first} and {pair.second}",
            _number(pair.cosine),
            _number(pair.cosine_low),
            _share(pair.negative_share),
            _number(pair.gate_similarity),
        )
        for pair in diagnosis.pairs
    ]
    return aligned_table(_PAIR_HEADER, rows)


def _removals(diagnosis: Diagnosis) -> str:
    """One line a removal: the task that it costs most, in standard errors."""
    rows = []
    for removal in diagnosis.removals or ():
        asked = [loss for loss in removal.losses if removal.own in (None, loss.task)]
        if not asked:
            continue
        most = max(asked, key=lambda loss: loss.difference / max(loss.standard_error, 1e-12))
        what = (
            f"expert {removal.expert} of level {removal.level}"
            if removal.own is None
            else f"own experts of {removal.own}"
        )
        rows.append((what, most.task, f"{most.difference:+.4f}", f"{most.standard_error:.4f}"))
    return aligned_table(_REMOVAL_HEADER, rows)


def _most_used(weights: Sequence[float]) -> str:
    """The experts of most weight with their shares."""
    ordered = sorted(range(len(weights)), key=lambda e: -weights[e])[:_SHOWN_EXPERTS]
    return ", ".join(f"{e + 1} {weights[e]:.0%}" for e in ordered if weights[e] > 0)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
