"""docs/benchmark.md from the records of benchmarks/towers.py: tables, and what they say in plain words."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ceiling_table
import gpu_table
from estimates import Estimate, markdown
from towers_numbers import ANOMALIES, Runs, read_runs
from towers_rows import SUITES, Suite
from towers_runs import RECORDS, TREES
from towers_words import (
    ABOUT,
    INTRODUCTION,
    PAIRS,
    PAPERS,
    PUBLISHED,
    RANKINGS,
    REPRODUCE,
    anomaly_verdict,
    pair_verdict,
    published_verdict,
    verdicts,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmark.md"
# Beyond this many tasks a table shows means over tasks.
_SHOWN_TASKS = 6
_SINGLE, _SHARED = "single_task", "shared_bottom"

Table = list[dict[str, str]]


def render(records: Path = RECORDS) -> str:
    """The whole page. What was not measured is left out."""
    blocks = [INTRODUCTION]
    for suite in SUITES.values():
        runs = read_runs(records, "equal_parameters", suite.name)
        if "equal_parameters" in suite.tables and runs:
            blocks += [f"## {ABOUT[suite.name].title}\n", *_suite(suite, runs, records)]
    blocks += _equal_experts(records) + _papers(records)
    blocks += _ceiling(records.parent / "ceiling.json")
    blocks.append(gpu_table.render(records.parent / "gpu.json"))
    return "\n".join([*blocks, REPRODUCE])


def _suite(suite: Suite, runs: dict[str, Runs], records: Path) -> list[str]:
    found = [ABOUT[suite.name].text, verdicts(runs)]
    found.append(_markdown(_gains(runs, _speeds(suite, records))))
    found.append("AUC:\n\n" + _markdown(_aucs(runs)))
    differences = _differences(runs, _SINGLE)
    if differences:
        found.append("AUC minus single-task, paired:\n\n" + _markdown(differences))
    found.append("Means over tasks:\n\n" + _markdown(_others(runs)))
    if suite.name == "many_tasks":
        found += _anomalies(runs)
    if suite.name == "planted_behaviours":
        found += _pairs(runs)
    return found


def _markdown(rows: Table) -> str:
    """A table without the columns that are empty in all of its rows."""
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    return markdown([{name: row[name] for name in filled} for row in rows], left=("row",))


def _gains(runs: dict[str, Runs], speeds: dict[str, dict[str, float]]) -> Table:
    """Delta-m and the seesaw, and what a row costs."""
    return [
        {
            "row": name,
            "Δm % to single-task": _gain(item, _SINGLE),
            "to Shared-Bottom": _gain(item, _SHARED),
            "to trees": _gain(item, TREES),
            "better : worse": _seesaw(item),
            "width": str(item.first["width"]),
            "dense parameters": f"{item.first['dense_parameters']:,}",
            "multiply-adds": f"{item.first['multiply_adds']:,}",
            "samples/s": _speed(speeds, name),
            "rate": f"{item.first['dense_lr']:g}",
        }
        for name, item in runs.items()
        if name != TREES
    ]


def _gain(runs: Runs, reference: str) -> str:
    estimate = runs.gain(reference)
    return "" if estimate is None else estimate.as_difference(2)


def _seesaw(runs: Runs) -> str:
    if runs.row == _SINGLE:
        return ""
    better, worse = (len(runs.surely(_SINGLE, sign=sign)) for sign in (1, -1))
    return f"{better} : {worse}"


def _speed(speeds: dict[str, dict[str, float]], row: str) -> str:
    if row not in speeds:
        return ""
    return f"{speeds[row]['samples_per_second']:,} ({speeds[row]['ratio']:.2f}x)"


def _speeds(suite: Suite, records: Path) -> dict[str, dict[str, float]]:
    file = records / "speed" / f"{suite.name}.json"
    found: dict[str, dict[str, float]] = (
        json.loads(file.read_text())["rows"] if file.is_file() else {}
    )
    return found


def _aucs(runs: dict[str, Runs]) -> Table:
    rows = [{"row": name} | _by_task(item, item.entries, _auc) for name, item in runs.items()]
    oracle = next(iter(runs.values())).first.get("oracle")
    if oracle:
        rows.append({"row": "the truth"} | _oracle(runs, oracle))
    return rows


def _auc(runs: Runs, entry: str) -> str:
    return str(runs.metric(entry, "auc"))


def _by_task(
    runs: Runs, entries: Sequence[str], cell: Callable[[Runs, str], str]
) -> dict[str, str]:
    """One column an entry, or where there are many the mean AUC of tasks as dense as each other."""
    if len(entries) <= _SHOWN_TASKS:
        return {entry: cell(runs, entry) for entry in entries}
    return {
        title: f"{runs.mean(tasks, 'auc'):.4f}" for title, tasks in _by_density(runs).items()
    } | {"all": f"{runs.mean(entries, 'auc'):.4f}"}


def _by_density(runs: Runs) -> dict[str, list[str]]:
    """Tasks in four parts by their share of positives, densest first."""
    entries = runs.first["entries"]
    ordered = sorted(runs.tasks, key=lambda name: -entries[name]["positives"])
    size = len(ordered) // 4
    found: dict[str, list[str]] = {}
    for start in range(0, 4 * size, size):
        part = ordered[start : start + size]
        rates = [entries[name]["positives"] / entries[name]["rows"] for name in part]
        found[f"{100 * min(rates):.2g} to {100 * max(rates):.2g} %"] = part
    return found


def _oracle(runs: dict[str, Runs], oracle: dict[str, float]) -> dict[str, str]:
    some = next(iter(runs.values()))
    if len(some.entries) <= _SHOWN_TASKS:
        return {entry: f"{oracle[entry]:.4f}" if entry in oracle else "" for entry in some.entries}
    parts = _by_density(some) | {"all": list(some.tasks)}
    return {
        title: f"{sum(oracle[name] for name in tasks) / len(tasks):.4f}"
        for title, tasks in parts.items()
    }


def _differences(runs: dict[str, Runs], reference: str) -> Table:
    shown = [item for name, item in runs.items() if name not in (reference, TREES)]
    if not shown or len(shown[0].entries) > _SHOWN_TASKS:
        return []
    return [
        {"row": item.row}
        | {entry: _difference(item.minus(reference, entry)) for entry in item.entries}
        for item in shown
    ]


def _difference(estimate: Estimate | None) -> str:
    return "" if estimate is None else estimate.as_difference()


def _others(runs: dict[str, Runs]) -> Table:
    """The other metrics, over the tasks that are about all impressions."""

    def shown(item: Runs, name: str) -> str:
        value = item.mean(item.tasks, name)
        return "" if value is None else f"{value:.4f}"

    return [
        {
            "row": name,
            "GAUC": shown(item, "gauc"),
            "log loss": shown(item, "log_loss"),
            "normalized entropy": shown(item, "normalized_entropy"),
            "predicted / observed": shown(item, "predicted_over_observed"),
        }
        for name, item in runs.items()
    ]


def _anomalies(runs: dict[str, Runs]) -> list[str]:
    """HoME's three anomalies as the doctor sees them."""
    shown = {name: item for name, item in runs.items() if name != TREES and item.first["levels"]}
    rows = [
        {"row": name}
        | {title: f"{100 * item.anomaly_share(title):.0f} %" for title in ANOMALIES}
        | {
            "scale ratio": _number(item.level_mean("deviation_ratio", "max")),
            "zero share": _number(item.level_mean("zero_share", "max")),
            "top occupancy": _number(item.level_mean("occupancy_score", "max")),
            "own weight, lowest": _number(item.level_mean("own_mass_relative", "min")),
            "density coupling": _number(item.level_mean("density_coupling", "max")),
        }
        for name, item in shown.items()
    ]
    if not rows:
        return []
    about = (
        "The three anomalies that HoME's paper names, as [the doctor](doctor.md) finds them: the share of runs with a "
        "finding of each kind, and the worst numbers of a run, averaged over runs.\n"
    )
    return [
        "### Collapse, degradation, underfitting\n",
        about,
        anomaly_verdict(runs),
        _markdown(rows),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _pairs(runs: dict[str, Runs]) -> list[str]:
    """How well a trained DTRN's own numbers, and what a model loses, rank the planted pairs."""
    measured = {name: item.pair_rankings() for name, item in runs.items() if name != TREES}
    titles = list(dict.fromkeys(title for found in measured.values() for title in found))
    rows = [
        {"row": name}
        | {RANKINGS[title]: f"{found[title]:.2f}" if title in found else "" for title in titles}
        for name, found in measured.items()
    ]
    verdict = pair_verdict(list(measured.values()))
    return ["### Are the planted pairs found?\n", PAIRS, verdict, markdown(rows, left=("row",))]


def _equal_experts(records: Path) -> list[str]:
    found = []
    for suite in SUITES.values():
        runs = read_runs(records, "equal_experts", suite.name)
        if "equal_experts" in suite.tables and set(runs) - {TREES}:
            found += [
                f"### {ABOUT[suite.name].title}\n",
                verdicts(runs),
                _markdown(_gains(runs, {})),
                "AUC:\n\n" + _markdown(_aucs(runs)),
            ]
    return ["## At an equal number of experts\n", *found] if found else []


def _papers(records: Path) -> list[str]:
    runs = read_runs(records, "papers", "census_papers")
    if not set(runs) - {TREES}:
        return []
    rows = _aucs(runs)
    columns = list(rows[0])
    for name, aucs in PUBLISHED.items():
        shown = {task: f"{auc:.4f}" for task, auc in aucs.items()}
        rows.append({column: ({"row": name} | shown).get(column, "") for column in columns})
    return [
        f"## {ABOUT['census_papers'].title}\n",
        PAPERS,
        verdicts(runs) + published_verdict(runs),
        _markdown(rows),
        _markdown(_gains(runs, {})),
    ]


def _ceiling(record: Path) -> list[str]:
    if not record.is_file():
        return []
    return [ceiling_table.render(json.loads(record.read_text(encoding="utf-8")))]
