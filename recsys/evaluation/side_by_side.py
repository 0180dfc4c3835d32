"""Two published reports on the same rows: which model is better, and how sure that is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys.compare import Comparison, Difference, compare_predictions
from recsys.errors import DataError
from recsys.predictions import read_predictions
from recsys.publish import resolve
from recsys.report import KIND, PREDICTIONS, BinaryMetrics, aligned_table, read_report

_HEADER = ("task", "metric", "first", "second", "difference", "95 % interval", "interval by")


@dataclass(frozen=True)
class SideBySide:
    """Comparisons of two models by metric entry. Differences are first minus second."""

    first: Path
    second: Path
    entries: dict[str, Comparison]

    def to_json(self) -> dict[str, Any]:
        entries = {name: asdict(comparison) for name, comparison in self.entries.items()}
        return {"first": str(self.first), "second": str(self.second), "entries": entries}

    def render(self) -> str:
        """An aligned table: per entry AUC by rows (DeLong), and AUC, GAUC and NE by user (bootstrap)."""
        lines = []
        for name, found in self.entries.items():
            lines += _cells(name, "AUC", found.auc, by="rows")
            lines += _cells(name, "AUC", found.auc_by_group, by="users")
            lines += _cells(name, "GAUC", found.gauc_by_group, by="users")
            lines += _cells(name, "NE", found.normalized_entropy_by_group, by="users")
        return f"{aligned_table(_HEADER, lines)}\n\ndifference is {self.first} minus {self.second}"


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


def _cells(name: str, metric: str, found: Difference | None, *, by: str) -> list[tuple[str, ...]]:
    if found is None:
        return []
    interval = f"{found.low:+.4f} .. {found.high:+.4f}"
    numbers = (f"{found.first:.4f}", f"{found.second:.4f}", f"{found.difference:+.4f}")
    return [(name, metric, *numbers, interval, by)]
