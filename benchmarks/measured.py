"""What a record keeps of a report, and how it is written."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys.compare import delong_difference
from recsys.predictions import aligned, read_predictions
from recsys.publish import resolve
from recsys.report import KIND, PREDICTIONS, BinaryMetrics, Entry, read_report

_LIBRARIES = ("lightgbm", "numpy", "pyarrow", "torch", "torchrec")
_BINARY = (
    "rows",
    "positives",
    "auc",
    "auc_standard_error",
    "auc_standard_error_by_group",
    "log_loss",
    "normalized_entropy",
    "predicted_over_observed",
)
_REGRESSION = ("rows", "rmse", "mae", "r2")


def versions() -> dict[str, str]:
    """Of Python and the libraries that a figure depends on."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | found


def entry_numbers(entry: Entry) -> dict[str, float | None]:
    """The metrics of a report's entry that a record keeps."""
    if isinstance(entry, BinaryMetrics):
        gauc = {"gauc": entry.gauc.value if entry.gauc else None}
        return rounded({name: getattr(entry, name) for name in _BINARY} | gauc)
    return rounded({name: getattr(entry, name) for name in _REGRESSION})


def auc_differences(report: Path, reference: Path) -> dict[str, dict[str, float | None]]:
    """The paired difference in AUC by binary entry, with the larger of its two standard errors."""
    found: dict[str, dict[str, float | None]] = {}
    folders = [resolve(path, kind=KIND).path / PREDICTIONS for path in (report, reference)]
    for entry in read_report(report).entries:
        if not isinstance(entry, BinaryMetrics):
            continue
        rows = aligned(*(read_predictions(folder, entry.name) for folder in folders))
        difference = delong_difference(*rows)
        if difference is None:
            continue
        errors = (difference.standard_error, difference.standard_error_by_group or 0.0)
        found[entry.name] = rounded(
            {"difference": difference.difference, "standard_error": max(errors)}
        )
    return found


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Six decimals are more than any of these figures can bear."""
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
    }


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record as a whole or not at all: what is there is not measured again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, file)
