"""docs/examples.md from the records of benchmarks/examples.py: what is compared, and how sure it is.

A record is one run: `records/examples/<example>/model-<seed>.json` or `trees-<seed>.json`. It holds numbers and
versions, no data and no paths. `examples/<example>/reference.toml` names figures from elsewhere for the same task.
"""

import json
import statistics
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimates import markdown, over_seeds, paired

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
RECORDS = ROOT / "benchmarks" / "records" / "examples"
PAGE = ROOT / "docs" / "examples.md"

Record = dict[str, Any]
_WORDS = ("example", "task")

_INTRODUCTION = """\
# The examples, measured

Each folder of `examples/` turns a public data set into a model by three TOML files, without code. For each, several
models are trained that differ in the seed alone, and on the same encoded rows boosted trees, once a seed too
([`recsys baseline`](experiment.md#a-baseline-to-beat)). Everything below is measured on held-out test rows.

- **AUC**: mean over the seeds, with the 95 % interval (Student's t) of how far the seed moves that mean. That interval
  knows nothing of which rows happened to be held out.
- **minus trees**: the paired difference in AUC on the same rows, mean over seeds, with a 95 % interval that covers both
  the rows (DeLong, or by user where that is wider) and the seeds. An interval that holds 0 is a tie; **bold** is none.
- **elsewhere**: a figure from a paper or a simple rule, with its source below; the rows it was measured on may differ.

This page is generated: `python benchmarks/examples.py --table`.
"""

_REPRODUCE = """\
## Reproduce

The README of each example says where its data come from. With them under `RECSYS_DATA`, from the root of the
repository, on one thread:

<!-- no-test: takes minutes and needs the data sets -->
```sh
python benchmarks/examples.py                   # all examples, 5 seeds each; goes on where it was stopped
python benchmarks/examples.py census --again    # one of them, from scratch
python benchmarks/examples.py --table           # write this page from the records
```
"""


@dataclass(frozen=True)
class Figure:
    """A figure from elsewhere."""

    example: str
    entry: str
    auc: float
    source: str


def read_records(example: str, records: Path = RECORDS) -> list[Record]:
    """All records of an example, by kind and seed."""
    return [json.loads(path.read_text()) for path in sorted((records / example).glob("*.json"))]


def read_figures(example: str, examples: Path = EXAMPLES) -> list[Figure]:
    """The figures that an example's reference.toml names, if it has one."""
    file = examples / example / "reference.toml"
    if not file.is_file():
        return []
    return [Figure(example, **item) for item in tomllib.loads(file.read_text())["figures"]]


def render(records: Path = RECORDS, examples: Path = EXAMPLES) -> str:
    """The whole page. Examples without a model's record are left out; there must be one."""
    names = sorted({file.parent.name for file in records.glob("*/model-*.json")})
    measured = {name: read_records(name, records) for name in names}
    figures = [figure for name in names for figure in read_figures(name, examples)]
    binary, regression = _rows(measured, figures, "auc"), _rows(measured, figures, "rmse")
    blocks = [_INTRODUCTION, "## AUC\n\n" + markdown(binary, left=_WORDS)]
    if regression:
        blocks.append(
            "## Regression, by root mean squared error\n\n" + markdown(regression, left=_WORDS)
        )
    blocks.append("## What it took\n\n" + _cost_table(measured))
    if figures:
        blocks.append("## Figures from elsewhere\n\n" + "".join(map(_figure_line, figures)))
    return "\n".join([*blocks, _REPRODUCE])


def _rows(
    measured: dict[str, list[Record]], figures: list[Figure], metric: str
) -> list[dict[str, str]]:
    """One row of the table for each entry that has the metric."""
    rows: list[dict[str, str]] = []
    for example, records in measured.items():
        models = [item for item in records if item["kind"] == "model"]
        trees = [item for item in records if item["kind"] == "trees"]
        for entry, first in models[0]["entries"].items():
            if first.get(metric) is None:
                continue
            rows.append(
                {
                    "example": f"[{example}](../examples/{example}/README.md)",
                    "task": entry,
                }
                | {"test rows": f"{first['rows']:,}"}
                | ({"positives": f"{first['positives']:,}"} if metric == "auc" else {})
                | {"ours": str(over_seeds([item["entries"][entry][metric] for item in models]))}
                | {"trees": str(over_seeds([item["entries"][entry][metric] for item in trees]))}
                | ({"ours minus trees": _paired_cell(models, entry)} if metric == "auc" else {})
                | ({"elsewhere": _elsewhere(figures, example, entry)} if metric == "auc" else {})
            )
    return rows


def _paired_cell(models: list[Record], entry: str) -> str:
    found = [item["minus_trees"][entry] for item in models if entry in item["minus_trees"]]
    if not found:
        return ""
    return paired(found).as_difference()


def _elsewhere(figures: Iterable[Figure], example: str, entry: str) -> str:
    values = [item.auc for item in figures if (item.example, item.entry) == (example, entry)]
    return f"{max(values):.4f}" if values else ""


def _figure_line(figure: Figure) -> str:
    return f"- {figure.example}, {figure.entry}: {figure.auc:.4f}, {figure.source}\n"


def _cost_table(measured: dict[str, list[Record]]) -> str:
    rows: list[dict[str, str]] = []
    for example, records in measured.items():
        models = [item for item in records if item["kind"] == "model"]
        trees = [item for item in records if item["kind"] == "trees"]
        of_models = statistics.fmean(item["cpu_seconds"] for item in models)
        of_trees = statistics.fmean(item["cpu_seconds"] for item in trees)
        rows.append(
            {
                "example": example,
                "training rows": f"{models[0]['training_rows']:,}",
                "seeds": str(len(models)),
                "parameters": f"{models[0]['parameters']:,}",
                "CPU seconds a model": f"{of_models:,.0f}",
                "CPU seconds the trees": f"{of_trees:,.0f}",
            }
        )
    return markdown(rows, left=_WORDS)
