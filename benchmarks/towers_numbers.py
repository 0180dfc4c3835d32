"""Numbers of the comparison of towers out of its records: means over seeds, paired differences, the seesaw."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from estimates import Estimate, over_seeds, paired
from towers_rows import SUITES
from towers_runs import TREES, Record

# Whose trouble a finding of the doctor is (the three anomalies of HoME, arXiv 2408.05430).
ANOMALIES = {
    "collapse": (
        "zero_share",
        "dead_units",
        "scale_ratio",
        "divergence",
        "dominance",
        "effective_experts",
    ),
    "degradation": ("degradation", "shared_unused"),
    "underfitting": ("own_experts_unused", "density_coupling", "gradient_supply"),
}


@dataclass(frozen=True)
class Runs:
    """All runs of one row of one suite in one table."""

    row: str
    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def entries(self) -> tuple[str, ...]:
        """Entries with an AUC; those of a funnel's conditional step too."""
        return tuple(
            name
            for name, entry in self.first["entries"].items()
            if all(item["entries"][name].get("auc") is not None for item in self.records)
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Entries that are about all impressions."""
        return tuple(name for name in self.entries if "|" not in name)

    def metric(self, entry: str, name: str) -> Estimate:
        return over_seeds([item["entries"][entry][name] for item in self.records])

    def mean(self, entries: Sequence[str], name: str) -> float | None:
        """A metric's mean over entries and seeds; None where an entry has none."""
        values = [item["entries"][entry][name] for item in self.records for entry in entries]
        return None if None in values else statistics.fmean(values)

    def minus(self, reference: str, entry: str) -> Estimate | None:
        """The paired difference in AUC to another row on the same test rows."""
        found = [
            item["minus"][reference][entry]
            for item in self.records
            if entry in item["minus"].get(reference, {})
        ]
        return paired(found) if found else None

    def gain(self, reference: str) -> Estimate | None:
        """Mean over tasks of the gain in AUC above chance, in percent of the reference's: delta-m, seed by seed."""
        values = [_gain(item, reference, self.tasks) for item in self.records]
        known = [value for value in values if value is not None]
        return over_seeds(known) if known else None

    def surely(self, reference: str, *, sign: int) -> tuple[str, ...]:
        """Tasks that are better (`sign` 1) or worse (-1) than the reference by more than chance."""
        found = {task: self.minus(reference, task) for task in self.tasks}
        return tuple(
            task for task, item in found.items() if item and item.is_sure and item.mean * sign > 0
        )

    def anomaly_share(self, anomaly: str) -> float:
        """The share of runs in which the doctor found it."""
        checks = ANOMALIES[anomaly]
        hits = [
            any(found["check"] in checks for found in item["findings"]) for item in self.records
        ]
        return statistics.fmean(hits)

    def pair_rankings(self) -> dict[str, float]:
        """Mean over runs of how well each ranking finds the planted pairs, as an AUC; none in other suites."""
        rankings = [item["pairs"]["rankings"] for item in self.records if "pairs" in item]
        titles = rankings[0] if rankings else {}
        return {
            title: statistics.fmean(item[title]["auc"] for item in rankings) for title in titles
        }

    def level_mean(self, name: str, worst: str) -> float | None:
        """The mean over runs of a level number's worst value, by `max` or `min` over levels."""
        pick = {"max": max, "min": min}[worst]
        values = [
            pick(found)
            for item in self.records
            if (found := [level[name] for level in item["levels"] if level[name] is not None])
        ]
        return statistics.fmean(values) if values else None


def _gain(record: Record, reference: str, tasks: Sequence[str]) -> float | None:
    differences = record["minus"].get(reference)
    if differences is None:
        return None
    gains = []
    for task in tasks:
        difference = differences[task]["difference"]
        gains.append(100 * difference / (record["entries"][task]["auc"] - difference - 0.5))
    return statistics.fmean(gains)


def read_runs(records: Path, table: str, suite: str) -> dict[str, Runs]:
    """Rows that were measured, trees among them."""
    found: dict[str, list[Record]] = {}
    for file in sorted((records / table / suite).glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(record["row"], []).append(record)
    trees = records / "equal_parameters" / suite / f"{TREES}-0.json"
    if TREES not in found and trees.is_file():
        found[TREES] = [json.loads(trees.read_text(encoding="utf-8"))]
    ordered = [name for name in (*SUITES[suite].rows, TREES) if name in found]
    return {row: Runs(row, tuple(found[row])) for row in ordered}
