"""Which checkpoint is best: one number per validation record, higher is better, compared on the records alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.errors import ConfigError, DataError, nearest
from recsys.layout import entry_name
from recsys.report import BinaryMetrics, Entry
from recsys.schema import Schema

MEAN_AUC = "mean_auc"
MEAN_NEGATIVE_MSE = "mean_negative_mse"
_BINARY = ("auc", "gauc", "log_loss", "normalized_entropy")
_REGRESSION = ("rmse", "mae", "r2")
_LOWER_IS_BETTER = ("log_loss", "normalized_entropy", "rmse", "mae")


@dataclass(frozen=True)
class Criterion:
    """What `train.metric` names: `mean_auc` over binary tasks, `mean_negative_mse`, or `<entry>.<metric>`."""

    metric: str

    def score(self, entries: Iterable[Entry]) -> float:
        """The number to maximise. Raises DataError when the validation rows leave it undefined."""
        by_name = {entry.name: entry for entry in entries}
        if self.metric == MEAN_AUC:
            values = [
                entry.auc
                for entry in by_name.values()
                if isinstance(entry, BinaryMetrics) and entry.given is None
            ]
            return self._mean(values, by_name)
        if self.metric == MEAN_NEGATIVE_MSE:
            errors = [
                entry.rmse for entry in by_name.values() if not isinstance(entry, BinaryMetrics)
            ]
            return self._mean([None if error is None else -(error**2) for error in errors], by_name)
        name, _, field = self.metric.rpartition(".")
        value = numbers_of(by_name[name])[field]
        return self._mean(
            [-value if value is not None and field in _LOWER_IS_BETTER else value], by_name
        )

    def _mean(self, values: Sequence[float | None], by_name: Mapping[str, Entry]) -> float:
        """The mean over defined values: a task without both classes in validation cannot choose a checkpoint."""
        defined = [value for value in values if value is not None]
        if not defined:
            notes = "; ".join(
                f"{name}: {entry.note}" for name, entry in by_name.items() if entry.note
            )
            raise DataError(
                f"validation: {self.metric} is undefined ({notes}); name other validation days or another train.metric"
            )
        return sum(defined) / len(defined)


def criterion_for(schema: Schema, metric: str | None) -> Criterion:
    """The criterion of that name, or the schema's default: mean AUC, and mean negative MSE without binary tasks.

    Raises ConfigError for a name that the schema's tasks do not offer.
    """
    has_binary = any(task.kind == "binary" for task in schema.tasks.values())
    has_regression = any(task.kind == "regression" for task in schema.tasks.values())
    if metric is None:
        return Criterion(MEAN_AUC if has_binary else MEAN_NEGATIVE_MSE)
    known = [MEAN_AUC] if has_binary else []
    known += [MEAN_NEGATIVE_MSE] if has_regression else []
    for name, task in schema.tasks.items():
        fields = _BINARY if task.kind == "binary" else _REGRESSION
        entries = [name] if task.given is None else [name, entry_name(name, task.given)]
        known += [f"{entry}.{field}" for entry in entries for field in fields]
    if metric not in known:
        raise ConfigError(
            f"train.metric: unknown {metric!r}{nearest(metric, known)}; known: {', '.join(known)}"
        )
    return Criterion(metric)


def best_record(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The validation record of the highest score, the earliest of equals; None without records."""
    return max(records, key=lambda record: (record["score"], -record["step"]), default=None)


def evaluations_since_best(records: Sequence[Mapping[str, Any]]) -> int:
    """How many validation records come after the best one."""
    best = best_record(records)
    return sum(record["step"] > best["step"] for record in records) if best is not None else 0


def numbers_of(entry: Entry) -> dict[str, float | None]:
    """The metrics of an entry that a training records."""
    if isinstance(entry, BinaryMetrics):
        return {
            "auc": entry.auc,
            "gauc": None if entry.gauc is None else entry.gauc.value,
            "log_loss": entry.log_loss,
            "normalized_entropy": entry.normalized_entropy,
            "predicted_over_observed": entry.predicted_over_observed,
        }
    return {name: getattr(entry, name) for name in _REGRESSION}
