"""docs/speed.md from the records of the speed benchmarks.

python benchmarks/speed_page.py
"""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from estimates import markdown, paired
from peers import RECORDS, SIDES, rate, record_file
from speed_ceiling import multiply_adds
from speed_growth import AXES
from speed_step import FEED, PARTS
from speed_words import AIMS, ANOTHER, INTRODUCTION, ON_ANOTHER, REPRODUCE, heading

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "speed.md"
# As they come; of `SIDES` also one of them with our layers.
LIBRARIES = ("torch-rechub", "DeepCTR-Torch")
OURS = ("recsys float32", "recsys bf16")

Record = dict[str, Any]


def render(records: Path = RECORDS) -> str:
    """The page; what was not measured has no table."""
    parts = [INTRODUCTION, *_beside_peers(records), *_on_another(records / ANOTHER)]
    parts += [*_by_part(records), *_quality(records), *_growth(records), REPRODUCE]
    return "\n".join(parts)


def medians(rounds: list[Mapping[str, Any]], side: str, *, clock: str = "cpu_seconds") -> float:
    """A side's median samples a second of a clock."""
    return statistics.median(item[side]["samples"] / item[side][clock] for item in rounds)


def ratio(rounds: list[Mapping[str, Any]], ours: str, peer: str) -> float:
    """The median over rounds of our rate by a peer's."""
    return statistics.median(rate(item[ours]) / rate(item[peer]) for item in rounds)


def _beside_peers(records: Path) -> Iterable[str]:
    yield from _one_thread(records, level="##")
    for case in AIMS:
        record = _read(record_file(case, 2, records))
        if record is not None:
            yield _two_threads(case, record["rounds"])


def _on_another(records: Path) -> Iterable[str]:
    if records.is_dir():
        yield ON_ANOTHER
        yield from _one_thread(records, level="###")


def _one_thread(records: Path, *, level: str) -> Iterable[str]:
    for case in AIMS:
        record = _read(record_file(case, 1, records))
        if record is None:
            continue
        rounds = record["rounds"]
        yield heading(case, record, level=level)
        yield markdown([_peer_row(rounds, name) for name in rounds[0]], left=("side",))
        yield _verdicts(case, rounds)


def _peer_row(rounds: list[Mapping[str, Any]], name: str) -> dict[str, str]:
    peak = statistics.median(item[name]["peak_bytes"] for item in rounds) / 2**30
    row = {"side": name, "samples/s": f"{medians(rounds, name):,.0f}", "peak GiB": f"{peak:.2f}"}
    for ours in _ours(rounds):
        alike = name not in OURS and name.split()[-1] == ours.split()[-1]
        shown = alike or SIDES[name].environment is not None
        row[f"{ours} by it"] = f"{ratio(rounds, ours, name):.2f}" if shown else ""
    return row


def _ours(rounds: list[Mapping[str, Any]]) -> list[str]:
    """Our sides of those measured."""
    return [name for name in OURS if name in rounds[0]]


def _verdicts(case: str, rounds: list[Mapping[str, Any]]) -> str:
    lines = []
    for ours in _ours(rounds):
        aim = AIMS[case][OURS.index(ours)]
        found = {name: ratio(rounds, ours, name) for name in LIBRARIES}
        worst = min(found, key=lambda name: found[name])
        most = ratio(rounds, f"ceiling {ours.split()[-1]}", worst)
        lines.append(
            f"- Aim for {ours}, {aim:g} times either library: {_word(found[worst] >= aim)}, {found[worst]:.1f} "
            f"({worst}; products alone, at the ceiling, would be {most:.1f})."
        )
    loops = [(ours, f"TorchRec loop {ours.split()[-1]}") for ours in _ours(rounds)]
    slowest = min(ratio(rounds, *pair) for pair in loops)
    lines.append(
        f"- Never slower than the plain TorchRec loop in the same precision: {_word(slowest >= 1)}, {slowest:.2f}."
    )
    return "\n".join(lines) + "\n"


def _word(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def _two_threads(case: str, rounds: list[Mapping[str, Any]]) -> str:
    rates = {
        name: f"{medians(rounds, name, clock='wall_seconds'):,.0f}"
        for name in SIDES
        if not name.startswith("ceiling")
    }
    shown = ", ".join(f"{name} {value}" for name, value in rates.items())
    return f"With two threads, {case} tables, samples per second of the clock, cores shared: {shown}.\n"


def _by_part(records: Path) -> Iterable[str]:
    record = _read(records / "parts.json")
    if record is None:
        return
    columns = [(case, name) for case, found in record["milliseconds"].items() for name in found]
    rows = []
    for part in PARTS:
        shown = {"part": f"{part} (feed)" if part in FEED else part}
        for case, name in columns:
            found = record["milliseconds"][case][name]
            total = sum(found.values())
            shown[f"{case}, {name}"] = f"{found[part]:.1f} ({found[part] / total:.0%})"
        rows.append(shown)
    size = next(iter(record["jobs"].values()))["batch_size"]
    yield (
        f"## Where a step's time goes\n\nCPU milliseconds a batch of {size:,} rows on one thread, and the share of "
        "all.\n"
    )
    yield markdown(rows, left=("part",))
    feeds = []
    for case, feed in record["feed"].items():
        step = sum(
            v for part, v in record["milliseconds"][case]["bf16"].items() if part not in FEED
        )
        times = feed / (1000 * size / step)
        feeds.append(
            f"- Reading and collating alone, {case} tables: {feed:,} samples a CPU second, {times:.0f} times the bf16 "
            f"step's (aim: 10; {_word(times >= 10)})."
        )
    yield "\n".join(feeds) + "\n"


def _quality(records: Path) -> Iterable[str]:
    record = _read(records / "quality.json")
    if record is None:
        return
    job, seeds = record["job"], record["seeds"]
    yield (
        f"## What bf16 costs in AUC\n\nValidation AUC on {job['validation_rows']:,} rows after {job['rows']:,} rows in "
        f"batches of {job['batch_size']:,}, small tables, {len(seeds)} seeds, both precisions on the same batches; the "
        "interval covers rows and seeds. **Bold** differences leave out 0.\n"
    )
    rows = [
        {
            "task": task,
            "float32": f"{statistics.fmean(item[task]['float32'] for item in seeds):.4f}",
            "bf16 minus float32": paired([item[task] for item in seeds]).as_difference(5),
        }
        for task in job_tasks(job)
    ]
    yield markdown(rows, left=("task",))


def job_tasks(job: Mapping[str, Any]) -> list[str]:
    return [f"task_{n}" for n in range(job["tasks"])]


def _growth(records: Path) -> Iterable[str]:
    record = _read(records / "growth.json")
    if record is None:
        return
    job = record["job"]
    yield (
        f"## Growth\n\nFrom a job of {job['fields']} tables of {job['table_rows']:,} rows and {job['tasks']} tasks, "
        "bf16, one thread: one size changes at a time. Samples are per CPU second; of workers, per second of the "
        "clock, two of them on two shared cores. Multiply-adds are of one sample's forward pass, and GFLOP/s what "
        "training makes of them.\n"
    )
    for axis, points in record["points"].items():
        rows = [_growth_row(axis, int(size), found) for size, found in points.items()]
        yield markdown(rows)
    yield _bends(record["points"])


def _growth_row(axis: str, size: int, found: list[Mapping[str, float]]) -> dict[str, str]:
    if axis == "workers":
        rows = statistics.median(item["rows_per_second"] for item in found)
        return {axis: f"{size}", "samples/s": f"{rows:,.0f}"}
    peak = statistics.median(item["peak_bytes"] for item in found) / 2**30
    samples, work = statistics.median(map(rate, found)), multiply_adds(AXES[axis][size])
    return {
        axis: f"{size:,}",
        "samples/s": f"{samples:,.0f}",
        "multiply-adds": f"{work / 1e6:.2f} M",
        "GFLOP/s": f"{6e-9 * work * samples:.0f}",
        "peak GiB": f"{peak:.2f}",
    }


def _bends(points: Mapping[str, Mapping[str, list[Mapping[str, float]]]]) -> str:
    """What slows down most between an axis' ends."""
    falls = {}
    for axis, found in points.items():
        if axis != "workers":
            ends = [statistics.median(map(rate, item)) for item in found.values()]
            falls[axis] = ends[0] / ends[-1]
    told = ", ".join(f"{value:.1f} times with {axis}" for axis, value in falls.items())
    return (
        f"From the first to the last line of each table a sample becomes dearer: {told}.\n\n"
        "What bends: memory with rows, and time hardly, for a step touches the rows it read and no others. With tables "
        "the experts' input widens and products grow, at a better rate; with few, what is no product shows. A task "
        "brings a gate over all experts and a tower of its own, products too small for a good rate.\n"
    )


def _read(file: Path) -> Record | None:
    if not file.is_file():
        return None
    found: Record = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
