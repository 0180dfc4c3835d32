"""Metrics count what was answered, with labels that callers cannot multiply."""

import subprocess

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics
from tests.conftest import require
from tests.serving.requests import caller, full_request


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Values by name and labels, without model and version."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            labels = {
                name: value
                for name, value in sample.labels.items()
                if name not in ("model", "version")
            }
            found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def test_requests_are_counted_by_status_and_reason() -> None:
    metrics = Metrics()
    service = caller(metrics=metrics)
    service.post("/v1/rank", json=full_request(3))
    service.post("/v1/models/feed/rank", json=full_request(4))
    service.post("/v1/rank", json={"candidates": {}, "x": 1})
    service.post("/v1/rank", content=b"{")
    found = samples(metrics)

    def requests(route: str, code: str, reason: str) -> float:
        return found["rank_requests_total", (("code", code), ("reason", reason), ("route", route))]

    assert requests("rank", "200", "ok") == 1
    assert requests("rank_with_model", "200", "ok") == 1
    assert requests("rank", "422", "unknown_field") == 1
    assert requests("rank", "415", "unsupported_media_type") == 1
    assert found["rank_request_duration_seconds_count", ()] == 2
    for stage in ("parse", "infer", "encode"):
        assert found["rank_stage_duration_seconds_count", (("stage", stage),)] == 2
    assert found["rank_inflight_requests", ()] == 0


def test_scores_are_summed_in_histograms_that_agree_with_the_answers() -> None:
    metrics = Metrics()
    service = caller(metrics=metrics)
    answers = [service.post("/v1/rank", json=full_request(count)).json() for count in (3, 17)]
    found = samples(metrics)
    assert found["rank_candidates_total", (("status", "scored"),)] == 20
    assert found["rank_candidates_per_request_sum", ()] == 20
    for entry in ("click", "purchase", "purchase|click"):
        p = np.concatenate([answer["tasks"][entry]["p"] for answer in answers])
        assert found["rank_score_sum", (("task", entry),)] == pytest.approx(p.sum())
        assert found["rank_score_bucket", (("le", "+Inf"), ("task", entry))] == 20
        assert found["rank_score_bucket", (("le", "0.5"), ("task", entry))] == (p <= 0.5).sum()
    watch = np.concatenate([answer["tasks"]["watch"]["value"] for answer in answers])
    assert found["rank_value_sum", (("task", "watch"),)] == pytest.approx(watch.sum())


def test_what_callers_write_is_never_a_label() -> None:
    metrics = Metrics()
    service = caller(metrics=metrics)
    service.post("/v1/models/<script>/rank", json=full_request())
    service.post("/v1/rank", json=full_request() | {"model": {"name": "evil", "version": "9"}})
    text = generate_latest(metrics.registry).decode()
    for written in ("script", "evil", "i0", "u1"):
        assert written not in text


def test_the_loaded_model_is_named_with_its_digest() -> None:
    metrics = Metrics()
    caller(metrics=metrics)
    text = generate_latest(metrics.registry).decode()
    assert 'model_info{digest="' in text
    assert "model_loaded_timestamp_seconds{" in text


def test_promtool_accepts_the_metrics() -> None:
    require("promtool")
    metrics = Metrics()
    caller(metrics=metrics).post("/v1/rank", json=full_request())
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(metrics.registry),
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr.decode()
