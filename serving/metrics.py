"""What Prometheus reads. Labels are bounded: models, versions, tasks and codes, never anything a caller writes.

Scores are counted a request at a time with one histogram per task in NumPy: a library's `observe` per candidate would
cost more than parsing the request.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from serving.ranker import SCORED, Ranked, Ranker

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5)
_CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_PROBABILITIES = np.array(
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]
)


class Metrics:
    """One server's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = Gauge(
            "rank_inflight_requests", "Rank requests being answered.", registry=self.registry
        )
        self._requests = Counter(
            "rank_requests",
            "Rank requests by HTTP status and reason.",
            ["model", "version", "route", "code", "reason"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "rank_request_duration_seconds",
            "Time from the request's first byte to its answer.",
            ["model", "version"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "rank_stage_duration_seconds",
            "Time of each stage of an answered request.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._candidates = Counter(
            "rank_candidates",
            "Candidates by whether they were scored.",
            ["status"],
            registry=self.registry,
        )
        self._candidates_per_request = Histogram(
            "rank_candidates_per_request",
            "Candidates of an answered request.",
            buckets=_CANDIDATES,
            registry=self.registry,
        )
        self._nonfinite = Counter(
            "rank_nonfinite",
            "Numbers that were not finite, and left out.",
            ["where"],
            registry=self.registry,
        )
        self._model_info = Gauge(
            "model_info",
            "Models that are loaded.",
            ["model", "version", "digest"],
            registry=self.registry,
        )
        self._model_loaded = Gauge(
            "model_loaded_timestamp_seconds",
            "When a model was loaded.",
            ["model", "version"],
            registry=self.registry,
        )
        self._scores = _Scores()
        self.registry.register(self._scores)

    def loaded(self, ranker: Ranker) -> None:
        """A model has been loaded."""
        bundle = ranker.bundle
        self._model_info.labels(bundle.name, bundle.version, bundle.digest).set(1)
        self._model_loaded.labels(bundle.name, bundle.version).set_to_current_time()

    def answered(
        self,
        ranker: Ranker,
        ranked: Ranked,
        *,
        route: str,
        seconds: float,
        stages: Mapping[str, float],
    ) -> None:
        """A request has been answered with scores."""
        model, version = ranker.bundle.name, ranker.bundle.version
        self._requests.labels(model, version, route, "200", "ok").inc()
        self._duration.labels(model, version).observe(seconds)
        for stage, stage_seconds in stages.items():
            self._stages.labels(stage).observe(stage_seconds)
        scored_N = ranked.status == SCORED
        scored = int(np.count_nonzero(scored_N))
        self._candidates.labels("scored").inc(scored)
        self._candidates.labels("not_scored").inc(len(scored_N) - scored)
        self._candidates_per_request.observe(len(scored_N))
        self._nonfinite.labels("score").inc(len(scored_N) - scored)
        self._scores.add(ranker, ranked, scored_N)

    def refused(self, model: str, version: str, *, route: str, code: int, reason: str) -> None:
        """A request has been answered with a problem; model and version are empty where none was chosen."""
        self._requests.labels(model, version, route, str(code), reason.lower()).inc()


@dataclass
class _Tally:
    """Sum, count and, for probabilities, counts by bucket; the last bucket is what lies beyond the others."""

    counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(_PROBABILITIES) + 1, np.int64)
    )
    total: int = 0
    sum: float = 0.0


class _Scores(Collector):
    """Histograms of probabilities and sums of values by model, version and task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probabilities: dict[tuple[str, str, str], _Tally] = {}
        self._values: dict[tuple[str, str, str], _Tally] = {}

    def add(self, ranker: Ranker, ranked: Ranked, scored_N: NDArray[np.bool_]) -> None:
        for tallies, scores in (
            (self._probabilities, ranked.scores.p),
            (self._values, ranked.scores.value),
        ):
            for task, values_N in scores.items():
                values = values_N[scored_N]
                buckets = np.searchsorted(_PROBABILITIES, values)
                counts = np.bincount(buckets, minlength=len(_PROBABILITIES) + 1)
                key = (ranker.bundle.name, ranker.bundle.version, task)
                with self._lock:
                    tally = tallies.setdefault(key, _Tally())
                    tally.counts += counts
                    tally.total += len(values)
                    tally.sum += float(values.sum())

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "version", "task"]
        histogram = HistogramMetricFamily("rank_score", "Calibrated probabilities.", labels=labels)
        summary = SummaryMetricFamily(
            "rank_value", "Predicted values of regression tasks.", labels=labels
        )
        with self._lock:
            for key, tally in self._probabilities.items():
                cumulative = np.cumsum(tally.counts)
                bounds = [*(f"{edge:g}" for edge in _PROBABILITIES), "+Inf"]
                histogram.add_metric(
                    list(key),
                    buckets=[
                        (bound, float(n)) for bound, n in zip(bounds, cumulative, strict=True)
                    ],
                    sum_value=tally.sum,
                )
            for key, tally in self._values.items():
                summary.add_metric(list(key), count_value=tally.total, sum_value=tally.sum)
        yield histogram
        yield summary
