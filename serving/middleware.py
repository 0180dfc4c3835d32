"""What wraps every request: an id, and the key where one is set. Plain ASGI, so that bodies stream through."""

import hashlib
import hmac
import re
import uuid
from collections.abc import Iterable

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.errors import RequestError
from serving.problems import MEDIA_TYPE, problem_of

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_OPEN_PATHS = ("/livez", "/readyz")


class RequestIds:
    """Echoes the caller's `X-Request-Id`, or makes one where it is missing or not of the documented form."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = _header(scope["headers"], b"x-request-id")
        request_id = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class KeyCheck:
    """Refuses requests without `Authorization: Bearer <key>`; health checks need none."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self.app = app
        self._expected = _digest(b"Bearer " + key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            given = _header(scope["headers"], b"authorization")
            # Digests of one length, compared in constant time: neither length nor prefix of the key leaks.
            if not hmac.compare_digest(_digest(given), self._expected):
                error = RequestError(
                    "send the header Authorization: Bearer <key>", code="UNAUTHORIZED"
                )
                response = problem_response(
                    Request(scope), error, headers={"WWW-Authenticate": "Bearer"}
                )
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def request_id_of(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def problem_response(
    request: Request, error: RequestError, *, headers: dict[str, str] | None = None
) -> Response:
    """The problem document of an error, as a response."""
    problem = problem_of(error, request_id=request_id_of(request))
    return Response(msgspec.json.encode(problem), problem.status, headers, MEDIA_TYPE)


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
