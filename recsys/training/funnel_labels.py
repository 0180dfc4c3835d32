"""Labels that a funnel rules out: a step that happened though its parent did not."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.days import Days
from recsys.layout import label_column, observed_column
from recsys.measures import AnyArray

logger = logging.getLogger(__name__)


@dataclass
class FunnelBreak:
    """Rows whose label is 1 where the parent's is 0, among the `positives` of rows where both are observed."""

    task: str
    given: str
    rows: int = 0
    positives: int = 0
    first_row_key: int | None = None

    def add(self, table: pa.Table) -> None:
        task_B, given_B = _label(table, self.task), _label(table, self.given)
        both_B = _observed(table, self.task) & _observed(table, self.given)
        positive_B = both_B & (task_B == 1)
        broken_B = positive_B & (given_B == 0)
        self.positives += int(positive_B.sum())
        self.rows += int(broken_B.sum())
        if self.first_row_key is None and broken_B.any():
            self.first_row_key = table.column("row_key")[int(np.argmax(broken_B))].as_py()


def funnel_breaks(days: Days, *, up_to_rows: int = 1_000_000) -> tuple[FunnelBreak, ...]:
    """One for each task with `given` whose labels break the funnel among the first rows, in the schema's order."""
    steps = [
        FunnelBreak(name, task.given)
        for name, task in days.schema.tasks.items()
        if task.given is not None
    ]
    names = dict.fromkeys(name for step in steps for name in (step.task, step.given))
    for table in _first_rows(days, list(names), up_to_rows) if steps else ():
        for step in steps:
            step.add(table)
    return tuple(step for step in steps if step.rows)


def warn_of_funnel_breaks(days: Days) -> None:
    """Log one warning a task whose labels break the funnel.

    Not an error: a shop's log may lack a click here and there, and a purchase remains a purchase.
    """
    for step in funnel_breaks(days):
        logger.warning(
            "labels.outside_funnel task=%s given=%s rows=%d of_positives=%d first_row_key=%d "
            "hint='%s = 1 where %s = 0: the rows train p(%s) and are left out of %s|%s; correct the labels by a rule "
            "in pipeline.toml, or drop given if one needs no other'",
            *(step.task, step.given, step.rows, step.positives, step.first_row_key),
            *(step.task, step.given, step.task, step.task, step.given),
        )


def _first_rows(days: Days, tasks: list[str], up_to_rows: int) -> Iterator[pa.Table]:
    columns = [name for task in tasks for name in (label_column(task), observed_column(task))]
    rows = 0
    for group in days.groups:
        if rows >= up_to_rows:
            return
        yield days.read((group,), ["row_key", *columns])
        rows += group.rows


def _label(table: pa.Table, task: str) -> AnyArray:
    label_B: AnyArray = table.column(label_column(task)).to_numpy()
    return label_B


def _observed(table: pa.Table, task: str) -> AnyArray:
    observed_B: AnyArray = table.column(observed_column(task)).to_numpy()
    return observed_B
