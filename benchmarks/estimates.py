"""Means over seeds, paired differences and their intervals, and the Markdown tables that show them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_STUDENT_T = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
# The same of the normal distribution.
NORMAL = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95 % interval; NaN where one value alone tells nothing of it."""

    mean: float
    reach: float

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if math.isnan(self.reach) else f" ± {self.reach:.4f}")

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.reach

    def as_difference(self, digits: int = 4) -> str:
        """With its sign, and bold where it is surely none of chance."""
        if math.isnan(self.reach):
            return f"{self.mean:+.{digits}f}"
        text = f"{self.mean:+.{digits}f} ± {self.reach:.{digits}f}"
        return f"**{text}**" if self.is_sure else text


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, and how far the choice of seeds may have moved it."""
    if len(values) < 2:
        return Estimate(statistics.fmean(values), math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), _quantile(len(values) - 1) * error)


def paired(differences: Sequence[Mapping[str, Any]]) -> Estimate:
    """The mean paired difference, its interval covering test rows and seeds.

    All seeds are measured on the same rows, so their sampling errors are taken as one: their mean does not shrink
    with the number of seeds.
    """
    values = [item["difference"] for item in differences]
    rows = statistics.fmean(item["standard_error"] for item in differences)
    reach = NORMAL * rows
    if len(values) > 1:
        reach = math.hypot(reach, over_seeds(values).reach)
    return Estimate(statistics.fmean(values), reach)


def markdown(rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> str:
    """A Markdown table; columns named in `left` hold words, the others numbers."""
    header = list(rows[0])
    lines = [header, ["---" if name in left else "---:" for name in header]]
    lines += [list(row.values()) for row in rows]
    # Markdown would end the cell at the bar of `purchase|cart`.
    shown = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


def _quantile(freedom: int) -> float:
    return _STUDENT_T[freedom] if freedom < len(_STUDENT_T) else NORMAL
