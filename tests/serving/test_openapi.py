"""The OpenAPI document says what the service does: real traffic matches it, and what it forbids is refused."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from fastapi.routing import APIRoute

from tests.serving.requests import Caller, caller, full_request

JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service() -> Caller:
    return caller()


@pytest.fixture(scope="module")
def document(service: Caller) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/openapi.json").json()
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    whole = {"components": document["components"]} | schema
    return jsonschema.Draft202012Validator(whole)


def body_schema(document: dict[str, Any]) -> dict[str, Any]:
    operation = document["paths"]["/v1/rank"]["post"]
    schema: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


def answer_schema(document: dict[str, Any], path: str, method: str, status: int) -> dict[str, Any]:
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    (media_type,) = content
    assert media_type == ("application/json" if status == 200 else "application/problem+json")
    schema: dict[str, Any] = content[media_type]["schema"]
    return schema


def test_the_document_names_exactly_the_routes_there_are(
    service: Caller, document: dict[str, Any]
) -> None:
    routes = {
        (route.path, method.lower())
        for route in service.app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    described = {
        (path, method)
        for path, item in document["paths"].items()
        for method in item.keys() - {"parameters"}
    }
    assert routes - described == {("/openapi.json", "get")}
    assert described <= routes


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= document["components"]["schemas"].keys()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "options", [None, {"tasks": ["purchase|click"], "top_k": 1}, {"on_missing": "impute"}]
)
def test_real_requests_and_answers_match_the_document(
    service: Caller, document: dict[str, Any], options: dict[str, Any] | None
) -> None:
    request = full_request() | ({} if options is None else {"options": options})
    validator(document, body_schema(document)).validate(request)
    answer = service.post("/v1/rank", json=request)
    assert answer.status_code == 200
    validator(document, answer_schema(document, "/v1/rank", "post", 200)).validate(answer.json())


@pytest.mark.parametrize(
    ("path", "concrete", "status"),
    [
        ("/v1/models", "/v1/models", 200),
        ("/v1/models/{name}", "/v1/models/feed", 200),
        ("/v1/models/{name}", "/v1/models/nope", 404),
        ("/livez", "/livez", 200),
        ("/readyz", "/readyz", 200),
    ],
)
def test_other_answers_match_the_document(
    service: Caller, document: dict[str, Any], path: str, concrete: str, status: int
) -> None:
    answer = service.get(concrete)
    assert answer.status_code == status
    validator(document, answer_schema(document, path, "get", status)).validate(answer.json())


def replaced(tree: Any) -> Any:
    """Every tree that differs from a request in one value, each replaced by a few others or left out."""
    if isinstance(tree, dict):
        yield tree | {"surprise": 1}
        for key, value in tree.items():
            yield {name: item for name, item in tree.items() if name != key}
            yield from ({**tree, key: other} for other in replaced(value))
    elif isinstance(tree, list):
        yield [*tree, None]
        for index, value in enumerate(tree):
            yield from ([*tree[:index], other, *tree[index + 1 :]] for other in replaced(value))
    others: tuple[Any, ...] = (
        None,
        True,
        "x",
        0,
        -1,
        1.5,
        2**63,
        -(2**63) - 1,
        1e300,
        [],
        [None],
        {},
        "2026-10-02T12:00:00Z",
    )
    yield from (other for other in others if type(other) is not type(tree) or other != tree)


def test_whatever_the_document_forbids_is_refused_and_the_rest_never_fails(
    service: Caller, document: dict[str, Any]
) -> None:
    request = full_request(2) | {"options": {"tasks": ["click"], "top_k": 2, "explain": "none"}}
    request["model"] = {"name": "feed"}
    schema = validator(document, body_schema(document))
    refused = allowed = 0
    for changed in replaced(request):
        content = json.dumps(changed).encode()
        answer = service.post("/v1/rank", content=content, headers=JSON_TYPE)
        if schema.is_valid(changed):
            # What JSON Schema cannot say: lengths that agree, times that parse, models that exist.
            assert answer.status_code in (200, 404, 409, 422), changed
            allowed += 1
        else:
            assert answer.status_code == 422, (changed, answer.text)
            refused += 1
        status = answer.status_code
        validator(document, answer_schema(document, "/v1/rank", "post", status)).validate(
            answer.json()
        )
    assert refused > 200
    assert allowed > 50
