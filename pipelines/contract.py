"""Hold raw rows against the schema before anything is fitted: what the columns hold, and what would go wrong."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.column_summary import ColumnSummary
from pipelines.files import Slice
from pipelines.parts import encode_rows
from pipelines.plan import Plan, load_plan
from pipelines.progress import tracked
from pipelines.repeated_keys import RepeatedKeys
from pipelines.rows import RowReader, Rows, Tally, open_rows
from recsys.encode import Encoder, load_encoder
from recsys.errors import DataError
from recsys.layout import slots
from recsys.raw import one_array
from recsys.schema import UNKNOWN_ROW, Task

logger = logging.getLogger(__name__)


@dataclass
class LabelSummary:
    """A task's labels in one day or split."""

    rows: int = 0
    observed: int = 0
    total: float = 0.0
    wrong: int = 0

    @property
    def mean(self) -> float | None:
        """The label rate, or the mean of a regression's label; none without observed rows."""
        return self.total / self.observed if self.observed else None

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "observed": self.observed, "mean": self.mean}


@dataclass
class CheckReport:
    """What a pipeline's rows hold. `problems` would stop a fit or build or spoil a model; `notes` are worth a look."""

    pipeline: Path
    tally: Tally = field(default_factory=Tally)
    columns: dict[str, ColumnSummary] = field(default_factory=dict)
    labels: dict[str, dict[str, LabelSummary]] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    unknown_share: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "pipeline": str(self.pipeline),
            "rows_read": self.tally.read,
            "rows": self.tally.kept,
            "filtered": self.tally.filtered,
            "unmatched": self.tally.unmatched,
            "days": dict(sorted(self.days.items())),
            "columns": {name: summary.to_json() for name, summary in self.columns.items()},
            "labels": {
                task: {day: summary.to_json() for day, summary in sorted(days.items())}
                for task, days in self.labels.items()
            },
            "unknown_share": self.unknown_share,
            "problems": self.problems,
            "notes": self.notes,
        }

    def render(self) -> str:
        """The report as text for people."""
        return "\n".join(
            [*self._column_lines(), "", *self._day_lines(), "", *self._closing_lines()]
        )

    def _column_lines(self) -> Iterator[str]:
        yield f"{'column':<24} {'nulls':>10} {'distinct':>10}  range"
        for name, item in self.columns.items():
            bounds = "" if item.least is None else f"{_short(item.least)} .. {_short(item.most)}"
            distinct = f"{item.distinct:,}" if item.exact else f"~{item.distinct:,}"
            yield f"{name:<24} {item.nulls:>10,} {distinct:>10}  {bounds}"

    def _day_lines(self) -> Iterator[str]:
        tasks = list(self.labels)
        yield f"{'day or split':<24} {'rows':>10} " + " ".join(f"{task:>14}" for task in tasks)
        for day, rows in sorted(self.days.items()):
            means = [self.labels[task][day].mean for task in tasks]
            shown = " ".join(f"{'-' if mean is None else f'{mean:.5f}':>14}" for mean in means)
            yield f"{day:<24} {rows:>10,} {shown}"

    def _closing_lines(self) -> Iterator[str]:
        yield f"{self.tally.read:,} rows read, {self.tally.kept:,} kept"
        for slot, share in self.unknown_share.items():
            yield f"unknown to the encoder: {share:.2%} of {slot}"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"problem: {problem}" for problem in self.problems)
        yield f"problems: {len(self.problems)}" if self.problems else "no problems"


def check(pipeline: Path, *, encoder: Path | None = None) -> CheckReport:
    """What the pipeline's rows hold and what is wrong with them; with an encoder, also the ids that it does not know.

    A part that cannot be read is a problem of the report, and the others are read on. Raises ConfigError, or DataError
    when there is no file to look at.
    """
    plan = load_plan(pipeline)
    fitted = None if encoder is None else load_encoder(encoder)
    report = CheckReport(pipeline)
    report.problems += _leaks(plan)
    reader = _with_histories(open_rows(plan), report)
    unknown = _UnknownIds()
    keys = None if plan.schema.keys.impression is None else RepeatedKeys()
    for part in tracked(reader.parts, total=len(reader.parts), what="check"):
        _read_part(reader, part, report=report, encoder=fitted, unknown=unknown, keys=keys)
    report.unknown_share = unknown.shares()
    report.problems += _column_problems(plan, report)
    repeated = None if keys is None else keys.problem(reader)
    report.problems += [] if repeated is None else [repeated]
    report.notes += _column_notes(report)
    logger.info("check.done rows=%d problems=%d", report.tally.read, len(report.problems))
    return report


def _with_histories(reader: RowReader, report: CheckReport) -> RowReader:
    """The reader with its events gathered from those parts that can be read."""
    try:
        return reader.with_histories()
    except DataError:
        readable: list[tuple[Slice, ...]] = []
        for part in reader.parts:
            try:
                replace(reader, parts=(part,)).with_histories()
            except DataError as error:
                report.problems.append(str(error))
            else:
                readable.append(part)
    return replace(reader, parts=tuple(readable)).with_histories()


def _read_part(
    reader: RowReader,
    part: Sequence[Slice],
    *,
    report: CheckReport,
    encoder: Encoder | None,
    unknown: "_UnknownIds",
    keys: RepeatedKeys | None,
) -> None:
    if keys is not None:
        keys.begin(part)
    try:
        for rows in reader.read(part, report.tally):
            _take_in(report, reader.plan, rows)
            if keys is not None:
                keys.add(rows)
            if encoder is not None:
                unknown.add(encode_rows(encoder, rows), encoder)
    except DataError as error:
        report.problems.append(str(error))


def _take_in(report: CheckReport, plan: Plan, rows: Rows) -> None:
    for name in plan.schema.columns:
        report.columns.setdefault(name, ColumnSummary()).add(one_array(rows.table.column(name)))
    for number, day in enumerate(rows.assigned.names):
        in_day_B = rows.assigned.number_B == number
        report.days[day] = report.days.get(day, 0) + int(in_day_B.sum())
        for name, task in plan.schema.tasks.items():
            summary = report.labels.setdefault(name, {}).setdefault(day, LabelSummary())
            _count_labels(summary, task, rows.table, in_day_B)


def _count_labels(
    summary: LabelSummary, task: Task, table: pa.Table, in_day_B: NDArray[np.bool_]
) -> None:
    label_B = pc.cast(one_array(table.column(task.label)), pa.float64(), safe=False).to_numpy(
        zero_copy_only=False
    )
    observed_B = in_day_B & ~np.isnan(label_B)
    if task.mask is not None:
        mask = one_array(table.column(task.mask)).cast(pa.bool_()).fill_null(False)
        observed_B = observed_B & mask.to_numpy(zero_copy_only=False)
    known = label_B[observed_B]
    summary.rows += int(in_day_B.sum())
    summary.observed += len(known)
    summary.total += float(known.sum())
    if task.kind == "binary":
        summary.wrong += int(((known != 0) & (known != 1)).sum())


def _leaks(plan: Plan) -> Iterator[str]:
    """Inputs that a task's label is made of, directly or through other labels."""
    rules = plan.settings.labels
    for task_name, task in plan.schema.tasks.items():
        made_of, waiting = set[str](), [task.label]
        while waiting:
            label = rules.get(waiting.pop())
            new = set(label.made_of) - made_of if label is not None else set[str]()
            made_of |= new
            waiting += new
        for feature_name, feature in plan.schema.features.items():
            for column in (name for name in feature.columns if name in made_of):
                yield (
                    f"feature {feature_name!r} reads column {column!r}, which the label of task {task_name!r} "
                    "is made of; take the feature out of the schema"
                )


def _column_problems(plan: Plan, report: CheckReport) -> Iterator[str]:
    if not report.days and not report.problems:
        yield "no row is left after the filters; check the source and the filters"
    for name, summary in report.columns.items():
        if summary.not_finite:
            yield (
                f"column {name!r}: values that are NaN or infinite: {summary.not_finite:,}; "
                "write null for a missing value"
            )
    for task, days in report.labels.items():
        wrong, label = sum(item.wrong for item in days.values()), plan.schema.tasks[task].label
        if wrong:
            yield (
                f"task {task!r}: labels of column {label!r} that are neither 0 nor 1: {wrong:,}; "
                'make it by a rule under [labels], or declare kind = "regression"'
            )
        training = [item for day, item in days.items() if plan.fits_on(day)]
        means = [item.mean for item in training if item.mean is not None]
        if (
            training
            and plan.schema.tasks[task].kind == "binary"
            and (not means or set(means) in ({0.0}, {1.0}))
        ):
            yield f"task {task!r}: the training rows do not hold both labels; check its rule and the split"
    if report.days and not any(map(plan.fits_on, report.days)):
        yield f"no row is of the days or splits that fit_on names; found {', '.join(sorted(report.days))}"
    for day in plan.settings.fit_on if isinstance(plan.settings.fit_on, tuple) else ():
        if report.days and day not in report.days:
            yield f"fit_on names {day!r}, which has no rows; found {', '.join(sorted(report.days))}"


def _column_notes(report: CheckReport) -> Iterator[str]:
    for name, summary in report.columns.items():
        if summary.constant:
            yield f"column {name!r} is the same in every row"


@dataclass
class _UnknownIds:
    """Ids that an encoder does not know, by slot."""

    unknown: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def add(self, encoded: pa.Table, encoder: Encoder) -> None:
        for slot in slots(encoder.schema):
            ids = one_array(encoded.column(slot.name))
            flat = ids if slot.kind == "single" else ids.flatten()
            self.seen[slot.name] = self.seen.get(slot.name, 0) + len(flat)
            unknown = pc.equal(flat, UNKNOWN_ROW).true_count
            self.unknown[slot.name] = self.unknown.get(slot.name, 0) + unknown

    def shares(self) -> dict[str, float]:
        """Share of unknown ids in each slot that has any."""
        return {name: count / self.seen[name] for name, count in self.unknown.items() if count}


def _short(value: object) -> str:
    text = f"{value:,.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
