"""The OpenAPI document, made from the Structs that decode requests and describe answers, so that it cannot drift."""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from serving.models import Models
from serving.problems import MEDIA_TYPE, PROBLEMS, Problem
from serving.ranker import Ranker
from serving.wire import UtilityName

VERSION = "1.0.0"
_REF = "#/components/schemas/{name}"
_RANK_PROBLEMS = (400, 401, 404, 408, 409, 413, 415, 422, 500)


class ModelSummary(msgspec.Struct, frozen=True):
    """A loaded model. `digest` covers every byte of its bundle."""

    name: str
    version: str
    digest: str
    state: Literal["ready"]


class ModelList(msgspec.Struct, frozen=True):
    """The loaded models; `default` answers requests that name none."""

    models: list[ModelSummary]
    default: str


class TaskInfo(msgspec.Struct, frozen=True):
    """What is predicted; `given` names the parent of a funnel step."""

    name: str
    kind: Literal["binary", "regression"]
    given: str | None


class Columns(msgspec.Struct, frozen=True):
    """Raw columns with their types, by the section of a request that carries them."""

    user: dict[str, str]
    context: dict[str, str]
    candidates: dict[str, str]


class RequestLimits(msgspec.Struct, frozen=True):
    """Sizes beyond which a request is refused with 413."""

    max_body_bytes: int
    max_candidates: int
    max_list_length: int


class ModelInfo(msgspec.Struct, frozen=True):
    """Everything a caller needs to know of a model."""

    name: str
    version: str
    digest: str
    state: Literal["ready"]
    schema_digest: str
    tasks: list[TaskInfo]
    entries: list[str]
    utility: UtilityName
    columns: Columns
    keys: list[str]
    limits: RequestLimits


class Health(msgspec.Struct, frozen=True):
    """The state of the server."""

    status: Literal["alive", "ready"]


def summary_of(ranker: Ranker) -> ModelSummary:
    bundle = ranker.bundle
    return ModelSummary(bundle.name, bundle.version, bundle.digest, "ready")


def info_of(ranker: Ranker, *, max_body_bytes: int) -> ModelInfo:
    bundle, schema = ranker.bundle, ranker.schema
    utility, columns, limits = bundle.utility, ranker.wire.columns, ranker.limits
    sections = (columns.user, columns.context, columns.candidate)
    typed = [{name: schema.columns[name] for name in section} for section in sections]
    return ModelInfo(
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        state="ready",
        schema_digest=schema.model_digest,
        tasks=[TaskInfo(name, task.kind, task.given) for name, task in schema.tasks.items()],
        entries=list(ranker.wire.entries),
        utility=UtilityName(utility.name, utility.version, utility.formula),
        columns=Columns(*typed),
        keys=list(schema.keys.kept),
        limits=RequestLimits(max_body_bytes, limits.max_candidates, limits.max_list_length),
    )


def document(models: Models, *, secured: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server that holds these models."""
    wires = {name: ranker.wire for name, ranker in models.rankers.items()}
    requests = {name: wire.request_type for name, wire in wires.items()}
    responses = {name: wire.response_type for name, wire in wires.items()}
    types = [*requests.values(), *responses.values(), ModelList, ModelInfo, Health, Problem]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    named = {"parameters": [_name_parameter(requests)]}
    paths: dict[str, Any] = {
        "/v1/rank": {"post": _rank("rank", requests.values(), responses.values())},
        "/v1/models": {"get": _get("list_models", "The loaded models", ModelList, (401,))},
        "/v1/models/{name}": named
        | {"get": _get("describe_model", "One model", ModelInfo, (401, 404))},
        "/v1/models/{name}/rank": named
        | {"post": _rank("rank_with_model", requests.values(), responses.values())},
        "/livez": {"get": _open(_get("live", "Whether the process runs", Health, ()))},
        "/readyz": {"get": _open(_get("ready", "Whether requests are answered", Health, (503,)))},
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Ranking service", "version": VERSION},
        "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _rank(operation: str, requests: Iterable[Any], responses: Iterable[Any]) -> dict[str, Any]:
    header = {"schema": {"type": "string"}}
    headers = {
        "X-Request-Id": header,
        "X-Model-Version": header,
        "X-Model-Digest": header,
        "Server-Timing": header,
    }
    answer = {"description": "Scores of every candidate", "headers": headers} | _json(responses)
    return {
        "operationId": operation,
        "summary": "Score and order the candidates of one request",
        "parameters": [
            {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Echoed; one is made where it is missing or not of this form.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
            }
        ],
        "requestBody": {"required": True} | _json(requests),
        "responses": {"200": answer} | _problems(_RANK_PROBLEMS),
    }


def _get(operation: str, summary: str, answer: Any, problems: tuple[int, ...]) -> dict[str, Any]:
    found = {"200": {"description": summary} | _json([answer])}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": found | _problems((*problems, 500)),
    }


def _open(operation: dict[str, Any]) -> dict[str, Any]:
    """An operation that needs no key."""
    return operation | {"security": []}


def _problems(statuses: tuple[int, ...]) -> dict[str, Any]:
    codes = {
        status: [code for code, (of, _) in PROBLEMS.items() if of == status] for status in statuses
    }
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}}
    return {
        str(status): {"description": ", ".join(found), "content": content}
        for status, found in codes.items()
    }


def _json(types: Iterable[Any]) -> dict[str, Any]:
    references = [{"$ref": _REF.format(name=item.__name__)} for item in types]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"content": {"application/json": {"schema": schema}}}


def _name_parameter(names: Iterable[str]) -> dict[str, Any]:
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": list(names)},
    }
