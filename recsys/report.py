"""The evaluation report: what `report.json` holds, how it is written and read, and its plain-text table.

Every entry names the rows it is about: `purchase` counts all impressions (for a funnel that is CTCVR), and
`purchase|click` the clicked ones alone (CVR). The two are never one number.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.diagnosis import Diagnosis, finding_lines
from recsys.errors import ArtifactError
from recsys.publish import resolve

# Version 2 adds `experts`; reports of version 1 are read as reports without it.
FORMAT_VERSION = 2
REPORT = "report.json"
PREDICTIONS = "predictions"
KIND = "report"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Gauc(_Frozen):
    """AUC within users, averaged by impressions over the users with both classes.

    `rows_share` is the share of impressions that count; `groups` of `groups_total` users do.
    """

    value: float
    groups: int
    groups_total: int
    rows_share: float


class ReferenceComparison(_Frozen):
    """The model beside another probability for the same rows: the oracle's, or a previous model's.

    `difference` is model minus reference in AUC, `low` and `high` its 95 % interval (DeLong, paired); what is missing
    to an oracle is at most `-low`. `standard_error_by_group` is the one to use where users repeat.
    """

    auc: float
    difference: float
    low: float
    high: float
    standard_error: float
    standard_error_by_group: float | None
    log_loss: float
    normalized_entropy: float


class BinaryMetrics(_Frozen):
    """One entry of a binary task. A metric is None where it is undefined; `note` says why, and what else to know."""

    kind: Literal["binary"] = "binary"
    name: str
    task: str
    given: str | None
    rows: int
    positives: int
    weight: float
    positive_rate: float | None
    mean_prediction: float | None
    auc: float | None
    auc_standard_error: float | None
    auc_standard_error_by_group: float | None
    log_loss: float | None
    normalized_entropy: float | None
    predicted_over_observed: float | None
    gauc: Gauc | None
    reference: ReferenceComparison | None
    note: str | None


class RegressionMetrics(_Frozen):
    """One regression task, in the label's own units."""

    kind: Literal["regression"] = "regression"
    name: str
    rows: int
    weight: float
    mean_label: float | None
    mean_prediction: float | None
    rmse: float | None
    mae: float | None
    r2: float | None
    note: str | None


Entry: TypeAlias = Annotated[BinaryMetrics | RegressionMetrics, Field(discriminator="kind")]


class EvaluatedDay(_Frozen):
    """A day (or split) of data, and the build of it that was read."""

    day: str
    build: str
    rows: int


class EvaluatedModel(_Frozen):
    """Which model was evaluated. `checkpoint` is the name of a published version."""

    run: str
    checkpoint: str
    step: int
    bottom: str
    mixing: str
    parameters: int


class Report(_Frozen):
    """The whole of `report.json`. `references` names the column behind each task's reference probability.

    `experts` is the doctor's section; None in a report of a model that has no stages, such as boosted trees.
    """

    format_version: Literal[1, 2] = 2
    created: str
    model: EvaluatedModel
    data_digest: str
    model_digest: str
    encoder_digest: str
    days: tuple[EvaluatedDay, ...]
    rows: int
    references: dict[str, str] = {}
    entries: tuple[Entry, ...]
    experts: Diagnosis | None = None

    def binary(self, name: str) -> BinaryMetrics:
        """The binary entry of that name, such as `purchase|click`. Raises KeyError."""
        for entry in self.entries:
            if entry.name == name and isinstance(entry, BinaryMetrics):
                return entry
        raise KeyError(name)


def write_report(directory: Path, report: Report) -> None:
    """Write `report.json` into a directory, normally the draft of a publication of kind "report"."""
    (directory / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """The report published at a path. Raises ArtifactError when there is none, or it is damaged or too new."""
    file = resolve(path, kind=KIND).path / REPORT
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); evaluate again") from error
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"]) or "file"
        if where == "format_version":
            raise ArtifactError(
                f"{file}: report format {detail['input']}, this release reads up to {FORMAT_VERSION}; evaluate again"
            ) from error
        raise ArtifactError(
            f"{file}: damaged at {where} ({detail['msg']}); evaluate again"
        ) from error


_CHANCE = 0.5
# Standard errors on either side of a 95 % interval.
_NORMAL_95 = 1.96

_BINARY_HEADER = (
    "task",
    "rows",
    "positives",
    "AUC",
    "std. err.",
    "log loss",
    "NE",
    "pred/obs",
    "GAUC",
    "GAUC rows",
)
_REFERENCE_HEADER = (
    "task",
    "AUC",
    "reference",
    "difference",
    "95 % interval",
    "NE",
    "reference NE",
)
_REGRESSION_HEADER = ("task", "rows", "RMSE", "MAE", "R2", "mean label", "mean prediction")


def render_table(report: Report) -> str:
    """The report as aligned plain text: tables by kind of task, notes, findings; no trailing newline.

    The standard error shown is the larger of the two that the report holds.
    """
    binary = _binary(report)
    regression = [entry for entry in report.entries if isinstance(entry, RegressionMetrics)]
    compared = [(entry, entry.reference) for entry in binary if entry.reference is not None]
    blocks = [_heading(report)]
    if binary:
        blocks.append(aligned_table(_BINARY_HEADER, [_binary_cells(entry) for entry in binary]))
    if compared:
        blocks.append(
            aligned_table(_REFERENCE_HEADER, [_reference_cells(*pair) for pair in compared])
        )
    if regression:
        blocks.append(
            aligned_table(_REGRESSION_HEADER, [_regression_cells(entry) for entry in regression])
        )
    notes = _notes(report)
    if notes:
        blocks.append("\n".join(notes))
    if report.experts is not None:
        blocks.append("\n".join(finding_lines(report.experts)))
    return "\n\n".join(blocks)


def _heading(report: Report) -> str:
    days = [item.day for item in report.days]
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "no days"
    model = report.model
    return (
        f"{model.bottom} + {model.mixing}, step {model.step:,}, checkpoint {model.checkpoint}\n"
        f"{report.rows:,} rows of {span}"
    )


def _binary_cells(entry: BinaryMetrics) -> tuple[str, ...]:
    return (
        entry.name,
        f"{entry.rows:,}",
        f"{entry.positives:,}",
        _number(entry.auc),
        _number(_larger_error(entry)),
        _number(entry.log_loss),
        _number(entry.normalized_entropy),
        _number(entry.predicted_over_observed, digits=3),
        _number(entry.gauc.value if entry.gauc else None),
        f"{entry.gauc.rows_share:.0%}" if entry.gauc else "-",
    )


def _larger_error(entry: BinaryMetrics) -> float | None:
    errors = (entry.auc_standard_error, entry.auc_standard_error_by_group)
    return max((error for error in errors if error is not None), default=None)


def _reference_cells(entry: BinaryMetrics, reference: ReferenceComparison) -> tuple[str, ...]:
    return (
        entry.name,
        _number(entry.auc),
        _number(reference.auc),
        f"{reference.difference:+.4f}",
        f"{reference.low:+.4f} .. {reference.high:+.4f}",
        _number(entry.normalized_entropy),
        _number(reference.normalized_entropy),
    )


def _regression_cells(entry: RegressionMetrics) -> tuple[str, ...]:
    numbers = (entry.rmse, entry.mae, entry.r2, entry.mean_label, entry.mean_prediction)
    return (entry.name, f"{entry.rows:,}", *(_number(value) for value in numbers))


def _notes(report: Report) -> list[str]:
    notes = [
        f"{entry.name}: on rows with {entry.given} = 1"
        for entry in report.entries
        if isinstance(entry, BinaryMetrics) and entry.given is not None
    ]
    notes += [f"{entry.name}: {entry.note}" for entry in report.entries if entry.note]
    notes += [f"{entry.name}: {doubt}" for entry in _binary(report) for doubt in _doubts(entry)]
    if any(_larger_error(entry) != entry.auc_standard_error for entry in _binary(report)):
        notes.append("std. err.: of the AUC, by rows (DeLong) or by users, whichever is larger")
    if report.references:
        named = ", ".join(f"{task} from {column!r}" for task, column in report.references.items())
        notes.append(f"reference: {named}; difference is model minus reference")
    return notes


def _binary(report: Report) -> list[BinaryMetrics]:
    return [entry for entry in report.entries if isinstance(entry, BinaryMetrics)]


def _doubts(entry: BinaryMetrics) -> list[str]:
    """What a reader should not take for a result: an order or probabilities that a constant may well match."""
    doubts: list[str] = []
    error = _larger_error(entry)
    if entry.auc is not None and error is not None and entry.auc - _NORMAL_95 * error <= _CHANCE:
        doubts.append(
            f"its AUC is not surely above {_CHANCE}, which chance gives ({entry.positives:,} positives)"
        )
    if entry.normalized_entropy is not None and entry.normalized_entropy >= 1:
        doubts.append(
            f"its probabilities tell no more than the mean label would (NE {entry.normalized_entropy:.3f})"
        )
    return doubts


def _number(value: float | None, *, digits: int = 4) -> str:
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    # A rare task's log loss and a standard error are small: keep their figures, not zeros.
    return text if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def aligned_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table whose first column is flush left and whose others are flush right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = (header, tuple("-" * width for width in widths), *rows)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
