"""The HTTP application: routes, limits, problems. `create_app` is all of it, and nothing is global.

Inference runs in a small pool of threads of its own, one a core: never on the event loop, which goes on answering
health checks, and never in the framework's pool of 40.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import msgspec
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from recsys.cores import available_cores
from recsys.errors import RequestError
from serving.body import read_json_body
from serving.config import ServiceConfig
from serving.metrics import Metrics
from serving.middleware import KeyCheck, RequestIds, problem_response, request_id_of
from serving.models import Models
from serving.openapi import Health, ModelList, document, info_of, summary_of
from serving.problems import PROBLEMS
from serving.ranker import Ranker
from serving.wire import decode_pin

logger = logging.getLogger(__name__)

JSON = "application/json"


@dataclass
class _Service:
    """What the routes of one application share."""

    models: Models
    config: ServiceConfig
    metrics: Metrics
    executor: ThreadPoolExecutor
    ready: bool = True


@dataclass
class _Call:
    """One rank request on its way. `ranker` is the model that answers it, once that is known."""

    service: _Service
    name: str | None
    request_id: str
    started: float
    ranker: Ranker | None = None

    @property
    def route(self) -> str:
        return "rank" if self.name is None else "rank_with_model"

    def answer(self, raw: bytes) -> Response:
        """The response to a body. Runs in an inference thread. Raises RequestError."""
        received = perf_counter()
        ranker = self.ranker = self._choose(raw)
        request = ranker.wire.decode(raw)
        decoded = perf_counter()
        answer = ranker.rank(request, request_id=self.request_id)
        ranked = perf_counter()
        body = answer.json()
        stages = dict(answer.seconds)
        stages["parse"] += decoded - received
        stages["encode"] = perf_counter() - ranked
        self.service.metrics.answered(
            ranker,
            answer.ranked,
            route=self.route,
            seconds=perf_counter() - self.started,
            stages=stages,
        )
        return Response(body, 200, self._headers(ranker, stages), JSON)

    def refused(self, code: int, reason: str) -> None:
        bundle = None if self.ranker is None else self.ranker.bundle
        model, version = (bundle.name, bundle.version) if bundle is not None else ("", "")
        self.service.metrics.refused(model, version, route=self.route, code=code, reason=reason)

    def _choose(self, raw: bytes) -> Ranker:
        pin = decode_pin(raw)
        if self.name is None:
            return self.service.models.select(pin)
        if pin.name not in (msgspec.UNSET, self.name):
            raise RequestError(
                f"the body names model {pin.name!r}, the path {self.name!r}; give one",
                pointer="/model/name",
            )
        self.service.models.named(self.name)
        return self.service.models.select(msgspec.structs.replace(pin, name=self.name))

    @staticmethod
    def _headers(ranker: Ranker, stages: Mapping[str, float]) -> dict[str, str]:
        timing = ", ".join(f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in stages.items())
        return {
            "X-Model-Version": ranker.bundle.version,
            "X-Model-Digest": ranker.bundle.digest,
            "Server-Timing": timing,
        }


def create_app(
    models: Models,
    config: ServiceConfig | None = None,
    *,
    metrics: Metrics | None = None,
    key: str | None = None,
) -> FastAPI:
    """The application that serves some models. With a key every request but health checks must carry it."""
    config = config or ServiceConfig()
    threads = config.threads or available_cores()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="inference")
    service = _Service(models, config, metrics or Metrics(), executor)
    for ranker in models.rankers.values():
        service.metrics.loaded(ranker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.ready = False
        executor.shutdown(wait=True)

    # The framework's own document and pages would describe other types, and load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    if key is not None:
        app.add_middleware(KeyCheck, key=key)
    app.add_middleware(RequestIds)
    _add_rank_routes(app, service)
    _add_model_routes(app, service, document(models, secured=key is not None))
    _add_health_routes(app, service)
    _add_problem_handlers(app)
    return app


def _add_rank_routes(app: FastAPI, service: _Service) -> None:
    @app.post("/v1/rank")
    async def rank(request: Request) -> Response:
        return await _rank(service, request, None)

    @app.post("/v1/models/{name}/rank")
    async def rank_with_model(request: Request, name: str) -> Response:
        return await _rank(service, request, name)


async def _rank(service: _Service, request: Request, name: str | None) -> Response:
    call = _Call(service, name, request_id_of(request), perf_counter())
    with service.metrics.in_flight.track_inprogress():
        try:
            raw = await read_json_body(request, service.config)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(service.executor, call.answer, raw)
        except RequestError as error:
            call.refused(PROBLEMS[error.code][0], error.code)
            raise
        except Exception:
            call.refused(500, "INTERNAL")
            raise


def _add_model_routes(app: FastAPI, service: _Service, openapi: Mapping[str, Any]) -> None:
    described = orjson.dumps(openapi)

    @app.get("/v1/models")
    async def list_models() -> Response:
        summaries = [summary_of(ranker) for ranker in service.models.rankers.values()]
        return _json(ModelList(summaries, service.models.default))

    @app.get("/v1/models/{name}")
    async def describe_model(name: str) -> Response:
        ranker = service.models.named(name)
        return _json(info_of(ranker, max_body_bytes=service.config.max_body_bytes))

    @app.get("/openapi.json")
    async def openapi_document() -> Response:
        return Response(described, media_type=JSON)


def _add_health_routes(app: FastAPI, service: _Service) -> None:
    @app.get("/livez")
    async def live() -> Response:
        return _json(Health("alive"))

    @app.get("/readyz")
    async def ready() -> Response:
        if not service.ready:
            raise RequestError("the server is stopping; ask another", code="NOT_READY")
        return _json(Health("ready"))


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        return problem_response(request, error)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        code = "METHOD_NOT_ALLOWED" if error.status_code == 405 else "NOT_FOUND"
        detail = "see /openapi.json for the resources and their methods"
        headers = dict(error.headers or {})
        return problem_response(request, RequestError(detail, code=code), headers=headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, _: Exception) -> Response:
        # The server's log has the trace; the caller gets the id to look it up with.
        request_id = request_id_of(request)
        error = RequestError(
            f"the failure is logged under request id {request_id}", code="INTERNAL"
        )
        return problem_response(request, error, headers={"X-Request-Id": request_id})


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type=JSON)
