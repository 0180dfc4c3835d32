"""Requests to the bundles of `tests.bundles`."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from fastapi import FastAPI

from serving.app import create_app
from serving.config import Limits, ServiceConfig
from serving.metrics import Metrics
from serving.models import Models
from serving.problems import PROBLEMS, Problem
from serving.ranker import Ranker
from tests.bundles import full_bundle

NOW = datetime(2026, 10, 2, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Caller:
    """Sends requests to an application in this process. Failures of the server come back as answers."""

    app: FastAPI

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("POST", path, **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._ask(method, path, options))

    async def _ask(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)


def caller(
    bundle: Path | None = None,
    *,
    config: ServiceConfig | None = None,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    key: str | None = None,
) -> Caller:
    """A caller of an application that serves a bundle, `feed` if none is named."""
    models = Models.of([Ranker.load(bundle or full_bundle(), limits=limits)])
    config = config or ServiceConfig(threads=1)
    return Caller(create_app(models, config, metrics=metrics, key=key))


@contextmanager
def running(ranker: Ranker, *, key: str | None = None) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    app = create_app(Models.of([ranker]), ServiceConfig(threads=2), key=key)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, loop="asyncio"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def full_request(candidates: int = 3) -> dict[str, Any]:
    """A request that leaves nothing out, as JSON carries it."""
    ages = [(NOW - timedelta(minutes=7 * event)).isoformat() for event in range(3)]
    return {
        "user": {
            "id": "u1",
            "features": {
                "user_id": "u3",
                "member": True,
                "likes": [4, 9],
                "clicks_item": [7, 9, None],
                "clicks_age": ages,
            },
        },
        "context": {"features": {"hour": 13, "shown_at": NOW.isoformat()}},
        "candidates": {
            "ids": [f"i{index}" for index in range(candidates)],
            "features": {
                "item_id": list(range(candidates)),
                "tags": [["t1", "t2"][: index % 3] for index in range(candidates)],
                "price": [1.5 * index for index in range(candidates)],
            },
        },
    }


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    request = full_request()
    change(request)
    return request


def require_problem(answer: httpx.Response, code: str, pointer: str | None = None) -> Problem:
    """The problem document of an answer, after checking that it is one and says nothing of our insides."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = msgspec.json.decode(answer.content, type=Problem)
    assert (problem.code, problem.pointer) == (code, pointer), answer.text
    assert problem.status == answer.status_code == PROBLEMS[code][0]
    assert problem.request_id == answer.headers["x-request-id"]
    for inside in ("Traceback", ".py", str(Path.cwd()), "/tmp", "site-packages"):
        assert inside not in answer.text
    return problem


def priced(price: str) -> bytes:
    """A body with one price, spelled as given."""
    return b'{"candidates": {"features": {"price": [' + price.encode() + b"]}}}"
