"""Two published reports on the same rows: which model is better, and how sure that is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from recsys.compare import Comparison, Difference, compare_predictions
from recsys.errors import DataError
from recsys.predictions import read_predictions
from recsys.publish import resolve
from recsys.report import KIND, PREDICTIONS, BinaryMetrics, aligned_table, read_report

_HEADER = ("task", "metric", "first", "second", "difference", "95 % interval", "interval by")


@dataclass(frozen=True)
class Balance:
    """All tasks at once: is a gain of one paid for by another (the seesaw of PLE, Tang et al., RecSys 2020)?

    `mean_gain_percent` averages over entries the difference in AUC beside the second's distance from chance, 0.5 (the
    plain one beside its AUC). `worse` are entries more than two standard errors below the second's.
    """

    mean_gain_percent: float
    mean_gain_percent_plain: float
    worse: tuple[str, ...]
    worst: str
    worst_difference: float

    def render(self) -> str:
        worse = ", ".join(self.worse) or "none"
        return (
            f"all tasks: AUC above chance {self.mean_gain_percent:+.2f} % in the mean; surely worse: {worse}; "
            f"lowest difference {self.worst} {self.worst_difference:+.4f}"
        )


@dataclass(frozen=True)
class SideBySide:
    """Comparisons of two models by metric entry. Differences are first minus second."""

    first: Path
    second: Path
    entries: dict[str, Comparison]

    def to_json(self) -> dict[str, Any]:
        entries = {name: asdict(comparison) for name, comparison in self.entries.items()}
        balance = self.balance
        return {
            "first": str(self.first),
            "second": str(self.second),
            "entries": entries,
            "balance": balance and asdict(balance),
        }

    @property
    def balance(self) -> "Balance | None":
        """Over the entries whose AUC is defined; None without any."""
        found = {
            name: compared.auc
            for name, compared in self.entries.items()
            if compared.auc is not None
        }
        if not found:
            return None
        gains = [_relative(item.difference, item.second - 0.5) for item in found.values()]
        plain = [_relative(item.difference, item.second) for item in found.values()]
        return Balance(
            mean_gain_percent=100 * fmean(gains),
            mean_gain_percent_plain=100 * fmean(plain),
            worse=tuple(name for name, item in found.items() if _is_worse(item)),
            worst=min(found, key=lambda name: found[name].difference),
            worst_difference=min(item.difference for item in found.values()),
        )

    def render(self) -> str:
        """An aligned table: per entry AUC by rows (DeLong), and AUC, GAUC and NE by user (bootstrap)."""
        lines = []
        for name, found in self.entries.items():
            lines += _cells(name, "AUC", found.auc, by="rows")
            lines += _cells(name, "AUC", found.auc_by_group, by="users")
            lines += _cells(name, "GAUC", found.gauc_by_group, by="users")
            lines += _cells(name, "NE", found.normalized_entropy_by_group, by="users")
        text = f"{aligned_table(_HEADER, lines)}\n\ndifference is {self.first} minus {self.second}"
        return text if self.balance is None else f"{text}\n{self.balance.render()}"


def compare_reports(first: Path, second: Path) -> SideBySide:
    """The comparison of two reports' predictions, for every binary metric entry that both hold.

    Raises ArtifactError for a report that is missing or damaged, and DataError when they share no entry or were not
    made on the same rows with the same labels.
    """
    names = [_binary_entries(path) for path in (first, second)]
    shared = [name for name in names[0] if name in names[1]]
    if not shared:
        raise DataError(
            f"{first} and {second}: no binary task in common ({', '.join(names[0])}; {', '.join(names[1])}); "
            "compare reports of the same tasks"
        )
    folders = [resolve(path, kind=KIND).path / PREDICTIONS for path in (first, second)]
    compared = {
        name: compare_predictions(*(read_predictions(folder, name) for folder in folders))
        for name in shared
    }
    return SideBySide(first, second, compared)


def _binary_entries(path: Path) -> list[str]:
    return [entry.name for entry in read_report(path).entries if isinstance(entry, BinaryMetrics)]


def _relative(difference: float, base: float) -> float:
    """Beside the base; 0 where there is none to be measured by."""
    return difference / base if base > 0 else 0.0


def _is_worse(found: Difference) -> bool:
    error = max(found.standard_error, found.standard_error_by_group or 0.0)
    return found.difference < -2 * error


def _cells(name: str, metric: str, found: Difference | None, *, by: str) -> list[tuple[str, ...]]:
    if found is None:
        return []
    interval = f"{found.low:+.4f} .. {found.high:+.4f}"
    numbers = (f"{found.first:.4f}", f"{found.second:.4f}", f"{found.difference:+.4f}")
    return [(name, metric, *numbers, interval, by)]
