"""What the HTTP service answers."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.app import create_app
from serving.config import ServiceConfig
from serving.models import Models
from serving.ranker import Ranker
from tests.bundles import columnless_user_bundle, full_bundle
from tests.serving.requests import Caller, caller, changed, full_request, priced, require_problem

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def service() -> Caller:
    return caller()


def test_a_request_gets_probabilities_a_score_and_an_order_for_every_candidate(
    service: Caller,
) -> None:
    answer = service.post("/v1/rank", json=full_request(5))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body["tasks"]) == ["click", "purchase", "purchase|click", "watch"]
    for entry in ("click", "purchase", "purchase|click"):
        assert all(0 < p < 1 for p in body["tasks"][entry]["p"])
        assert body["tasks"][entry]["p"] == body["tasks"][entry]["raw"]
    assert len(body["tasks"]["watch"]["value"]) == 5
    assert body["score"] == body["tasks"]["click"]["p"]
    assert body["order"] == sorted(range(5), key=lambda index: -body["score"][index])
    assert body["status"] == [0] * 5
    assert body["errors"] == body["imputed"] == []
    assert body["ids"] == ["i0", "i1", "i2", "i3", "i4"]
    assert body["user"] == {"id": "u1"}
    assert body["degraded"] == {"scored": 5, "total": 5}


def test_a_purchase_is_a_click_and_then_a_purchase(service: Caller) -> None:
    tasks = service.post("/v1/rank", json=full_request(20)).json()["tasks"]
    product = np.multiply(tasks["click"]["p"], tasks["purchase|click"]["p"])
    np.testing.assert_allclose(product, tasks["purchase"]["p"], rtol=1e-12)


def test_answers_say_which_bundle_gave_them_and_echo_the_request_id(service: Caller) -> None:
    bundle = Ranker.load(full_bundle()).bundle
    answer = service.post("/v1/rank", json=full_request(), headers={"X-Request-Id": "abc.1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "abc.1"
    assert answer.headers["x-model-version"] == answer.json()["model"]["version"] == bundle.version
    assert answer.headers["x-model-digest"] == answer.json()["model"]["digest"] == bundle.digest
    assert "infer;dur=" in answer.headers["server-timing"]
    made = service.get("/livez", headers={"X-Request-Id": "no blanks, no commas"})
    assert len(made.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "candidates", [{"ids": [], "features": {}}, {"features": {"price": []}}, {"ids": []}, {}]
)
def test_no_candidates_are_answered_with_empty_lists(
    service: Caller, candidates: dict[str, Any]
) -> None:
    answer = service.post("/v1/rank", json={"candidates": candidates})
    assert answer.status_code == 200
    body = answer.json()
    assert body["order"] == body["score"] == body["status"] == []
    assert body["tasks"]["click"] == {"raw": [], "p": []}
    assert body["tasks"]["watch"] == {"value": []}


def test_tasks_and_top_k_choose_what_comes_back(service: Caller) -> None:
    full = service.post("/v1/rank", json=full_request(6)).json()
    options = {
        "tasks": ["purchase|click", "watch"],
        "top_k": 2,
        "explain": "none",
        "utility": "default",
    }
    body = service.post("/v1/rank", json=full_request(6) | {"options": options}).json()
    assert body["tasks"] == {name: full["tasks"][name] for name in ("purchase|click", "watch")}
    assert body["order"] == full["order"][:2]
    assert body["score"] == full["score"]
    more = service.post("/v1/rank", json=full_request(6) | {"options": {"top_k": 99}}).json()
    assert more["order"] == full["order"]


def test_null_and_left_out_mean_the_same_and_what_was_left_out_is_named(service: Caller) -> None:
    with_null = changed(lambda request: request["candidates"]["features"].update(price=[None] * 3))
    without = changed(lambda request: request["candidates"]["features"].pop("price"))
    first, second = (service.post("/v1/rank", json=body).json() for body in (with_null, without))
    assert first["tasks"] == second["tasks"]
    assert first["imputed"] == []
    assert second["imputed"] == ["/candidates/features/price"]
    bare = service.post("/v1/rank", json={"candidates": {"ids": ["a"]}}).json()
    # The time of the request is the server's clock where it is left out, so it is not imputed.
    assert bare["imputed"] == [
        "/user/features/user_id",
        "/user/features/likes",
        "/user/features/member",
        "/user/features/clicks_item",
        "/user/features/clicks_age",
        "/context/features/hour",
        "/candidates/features/item_id",
        "/candidates/features/tags",
        "/candidates/features/price",
    ]
    strict = {"candidates": {"ids": ["a"]}, "options": {"on_missing": "fail_request"}}
    require_problem(
        service.post("/v1/rank", json=strict), "MISSING_FEATURE", "/user/features/user_id"
    )


def test_a_time_means_the_same_in_any_zone_and_decides_the_gaps(service: Caller) -> None:
    def at(time: str) -> Any:
        body = changed(lambda request: request["context"]["features"].update(shown_at=time))
        return service.post("/v1/rank", json=body).json()["tasks"]

    assert (
        at("2026-10-02T12:00:00Z")
        == at("2026-10-02T14:00:00+02:00")
        == at("2026-10-02T12:00:00.000Z")
    )
    assert at("2026-10-02T12:00:00Z") != at("2026-10-09T12:00:00Z")


@pytest.mark.parametrize(
    ("number", "same"),
    [("-0.0", "0"), ("1e0", "1"), ("1E+2", "100"), ("0.30000000000000004", "0.3")],
)
def test_every_spelling_of_a_number_is_that_number(service: Caller, number: str, same: str) -> None:
    headers = {"Content-Type": "application/json"}
    first, second = (
        service.post("/v1/rank", content=priced(price), headers=headers) for price in (number, same)
    )
    assert first.status_code == 200, first.text
    assert first.json()["tasks"] == second.json()["tasks"]


def test_colons_quotes_and_backslashes_in_values_are_no_duplicate_keys(service: Caller) -> None:
    ids = ["a:b", '"x":', "\\", '\\":', "::", "2026-10-02T12:00:00Z"]
    answer = service.post("/v1/rank", json={"candidates": {"ids": ids}})
    assert answer.json()["ids"] == ids


def test_unicode_ids_come_back_as_they_went(service: Caller) -> None:
    ids = ["naïve", "日本", "\U0001f600", "\x00", 2**63 - 1, -(2**63)]
    assert service.post("/v1/rank", json={"candidates": {"ids": ids}}).json()["ids"] == ids


@pytest.mark.parametrize(
    "media_type", ["application/json;charset=UTF-8", 'Application/JSON; charset="utf-8"']
)
def test_json_is_known_by_any_spelling(service: Caller, media_type: str) -> None:
    content = json.dumps({"candidates": {}}).encode()
    answer = service.post("/v1/rank", content=content, headers={"Content-Type": media_type})
    assert answer.status_code == 200


def test_the_model_in_the_path_answers_and_may_not_contradict_the_body(service: Caller) -> None:
    plain = service.post("/v1/rank", json=full_request()).json()["tasks"]
    named = service.post("/v1/models/feed/rank", json=full_request())
    assert named.json()["tasks"] == plain
    pinned = full_request() | {
        "model": {"name": "feed", "version": named.json()["model"]["version"]}
    }
    assert service.post("/v1/models/feed/rank", json=pinned).json()["tasks"] == plain
    other = full_request() | {"model": {"name": "other"}}
    require_problem(
        service.post("/v1/models/feed/rank", json=other), "INVALID_REQUEST", "/model/name"
    )
    require_problem(
        service.post("/v1/models/other/rank", json=full_request()), "UNKNOWN_MODEL", "/model/name"
    )


def test_several_models_each_take_their_own_types() -> None:
    rankers = [Ranker.load(full_bundle()), Ranker.load(columnless_user_bundle())]
    service = Caller(_app(Models.of(rankers)))
    people = {
        "model": {"name": "people"},
        "candidates": {"features": {"age": [30, None], "job": ["nurse", "?"]}},
    }
    assert list(service.post("/v1/rank", json=people).json()["tasks"]) == ["rich"]
    assert service.post("/v1/rank", json=full_request()).json()["model"]["name"] == "feed"
    mixed = {"candidates": people["candidates"]}
    require_problem(
        service.post("/v1/rank", json=mixed), "UNKNOWN_FIELD", "/candidates/features/age"
    )
    assert service.get("/v1/models").json()["default"] == "feed"
    columns = service.get("/v1/models/people").json()["columns"]
    types = {"age": "int32", "job": "string", "hours": "float64", "member": "bool"}
    assert columns == {"user": {}, "context": {}, "candidates": types}


def _app(models: Models) -> Any:
    return create_app(models, ServiceConfig(threads=1))


def test_a_key_is_asked_of_everything_but_health_checks() -> None:
    service = caller(key=KEY)
    for path in ("/livez", "/readyz"):
        assert service.get(path).status_code == 200
    for path in ("/v1/models", "/openapi.json", "/nowhere"):
        for given in (
            {},
            {"Authorization": KEY},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": "Bearer "},
        ):
            answer = service.get(path, headers=given)
            require_problem(answer, "UNAUTHORIZED")
            assert answer.headers["www-authenticate"] == "Bearer"
    allowed = {"Authorization": f"Bearer {KEY}"}
    assert service.get("/v1/models", headers=allowed).status_code == 200
    assert service.post("/v1/rank", json=full_request(), headers=allowed).status_code == 200


def _with_tables(change: Callable[[dict[str, Any]], Any]) -> Caller:
    """A caller of a server whose bundle has other tables than it was verified with."""
    bundle = Ranker.load(full_bundle()).bundle
    tables = dict(bundle.tables)
    change(tables)
    return Caller(_app(Models.of([Ranker(replace(bundle, tables=tables))])))


def test_a_score_that_is_not_finite_is_null_and_says_so_while_the_others_stay() -> None:
    def poison(tables: dict[str, Any]) -> None:
        tables["tag"] = np.array(tables["tag"])
        tables["tag"][2] = np.nan

    clean, service = caller(), _with_tables(poison)
    request = full_request(3)
    tag = Ranker.load(full_bundle()).bundle.encoder.vocabularies["tag"].values[0].as_py()
    request["candidates"]["features"]["tags"] = [[], [tag], []]
    body = service.post("/v1/rank", json=request).json()
    expected = clean.post("/v1/rank", json=request).json()
    assert body["status"] == [0, 1, 0]
    assert body["errors"] == [{"index": 1, "code": "NON_FINITE_SCORE"}]
    assert body["degraded"] == {"scored": 2, "total": 3}
    assert sorted(body["order"]) == [0, 2]
    for entry, numbers in body["tasks"].items():
        for kind, values in numbers.items():
            assert values[1] is None
            assert [values[0], values[2]] == pytest.approx(
                [expected["tasks"][entry][kind][index] for index in (0, 2)]
            )


def test_a_failure_of_our_own_is_a_problem_without_a_trace() -> None:
    service = _with_tables(lambda tables: tables.pop("tag"))
    answer = service.post("/v1/rank", json=full_request())
    problem = require_problem(answer, "INTERNAL")
    assert "tag" not in problem.detail
