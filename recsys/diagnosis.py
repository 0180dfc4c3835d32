"""The `experts` section of a report: what was measured of a model's experts, and the findings it led to.

Levels and experts count from 1. A gate is named for who reads its mixture: a task, `group NAME`, `shared` or another
expert. docs/doctor.md says what each number means.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

# The group of experts, or the stream, that belongs to nobody in particular.
SHARED = "shared"
Severity: TypeAlias = Literal["warning", "alarm"]
# Below this many rows, shares and correlations are rough.
FEWEST_ROWS = 20_000


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GateNumbers(_Frozen):
    """One gate of a level. `weights` and `contributions` hold one share an expert, 0 where it may not choose.

    `effective_experts` counts those of the mean gate, `effective_experts_by_row` those of a row's; `routing` is their
    difference in nats. `own_mass` is the weight on the reader's own experts, `own_mass_relative` beside an even gate's;
    where `native`, own experts reach the reader past the gate as well. `self_contribution`: the mean over rows of the
    norm of what a self gate adds, beside that of the whole mixture.
    """

    reader: str
    choices: int
    weights: tuple[float, ...]
    contributions: tuple[float, ...]
    effective_experts: float
    effective_experts_by_row: float
    routing: float
    own_mass: float | None
    own_mass_relative: float | None
    native: bool
    self_contribution: float | None = None
    shared_mass: float | None
    shared_mass_relative: float | None


class FeatureGateNumbers(_Frozen):
    """A group's mean feature gate: its deviation over units, and the share of those below 0.1 or above 1.9."""

    group: str
    spread: float
    extreme: float


class Occupancy(_Frozen):
    """Who uses an expert that several may. `score` is 0 when all use it alike and 1 when `main_reader` alone does.

    `score_by_gradient` is over the tasks' gradients on the expert. `evenness` is the logarithm of the effective
    readers beside that of all readers.
    """

    readers: int
    main_reader: str
    top_weight: float
    top_share: float
    score: float
    score_by_contribution: float
    score_by_gradient: float | None
    effective_readers: float
    effective_readers_by_contribution: float | None = None
    evenness: float | None = None


class ExpertNumbers(_Frozen):
    """One expert. `group` says whose it is; `movement` is how far training took it from its first weights."""

    number: int
    group: str
    zero_share: float
    dead_units: float
    magnitude: float
    deviation: float
    movement: float | None
    occupancy: Occupancy | None


class DistanceNumbers(_Frozen):
    """Distances of a level's experts two by two: the largest and the mean.

    `gaussian_kl` (nats) and `wasserstein` (squared, in the outputs' units) are of Gaussian fits unit by unit, the mean
    over units; `gaussian_kl` is None where no unit varies in both. `diversity` is the mean distance of two experts'
    outputs on a row beside the largest pair's.
    """

    gaussian_kl: float | None
    gaussian_kl_mean: float | None
    wasserstein: float
    wasserstein_mean: float
    diversity: float


class LevelNumbers(_Frozen):
    """One level. `divergence` is the Jensen-Shannon divergence of two experts' outputs in bits."""

    level: int
    experts: tuple[ExpertNumbers, ...]
    gates: tuple[GateNumbers, ...]
    feature_gates: tuple[FeatureGateNumbers, ...] = ()
    deviation_ratio: float
    magnitude_ratio: float
    divergence: float
    divergence_mean: float
    divergent_experts: tuple[int, int] | None
    distances: DistanceNumbers | None = None
    redundancy: float | None
    dominance: float
    dominance_by_contribution: float
    density_coupling: float | None
    density_coupling_by_half: tuple[float, float] | None = None


class TaskNumbers(_Frozen):
    """One task: how many labels it had (positives of a binary task, else observed rows), and its gradients.

    `gradient_share` is of the parameters that tasks share. On own experts, beside shared ones: `gradient_supply` is the
    gradient of all losses, `gradient_reach` that of the task's own.
    """

    task: str
    labels: int
    gradient_share: float | None
    gradient_supply: float | None
    gradient_reach: float | None = None
    gradient_signal: float | None


class PairNumbers(_Frozen):
    """Two tasks: the cosine of their gradients on what they share, over `batches`, and how alike their gates are."""

    first: str
    second: str
    batches: int
    cosine: float | None
    cosine_low: float | None
    negative_share: float | None
    gate_similarity: float | None


class AucLoss(_Frozen):
    """What a task's AUC loses without some experts, and the standard error of that."""

    task: str
    difference: float
    standard_error: float


class Removal(_Frozen):
    """An experiment: a level's expert removed, or with `own` a task's own experts of all levels."""

    level: int | None
    expert: int | None
    own: str | None
    losses: tuple[AucLoss, ...]


class Finding(_Frozen):
    """One verdict in plain words, the number and threshold behind it, and what to try."""

    check: str
    severity: Severity
    level: int | None = None
    expert: int | None = None
    task: str | None = None
    number: float
    threshold: float
    verdict: str
    advice: str


class Diagnosis(_Frozen):
    """What the doctor found over `rows` sampled rows. `note` says what could not be measured, or how surely.

    `removals` is None where nothing was removed: a report's diagnosis leaves that to `recsys doctor`.
    """

    rows: int
    note: str | None
    levels: tuple[LevelNumbers, ...]
    tasks: tuple[TaskNumbers, ...]
    pairs: tuple[PairNumbers, ...]
    removals: tuple[Removal, ...] | None
    findings: tuple[Finding, ...]


def finding_lines(diagnosis: Diagnosis) -> list[str]:
    """One line a finding, alarms first; a line that says so where there is none; then the note."""
    ordered = sorted(diagnosis.findings, key=lambda item: item.severity != "alarm")
    lines = [f"experts: {item.severity}: {item.verdict}" for item in ordered]
    if not lines and diagnosis.levels:
        lines.append("experts: nothing to report")
    return lines if diagnosis.note is None else [*lines, f"experts: {diagnosis.note}"]
