"""A request's body, its size and media type checked before anything is parsed."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from recsys.errors import RequestError
from serving.config import ServiceConfig


async def read_json_body(request: Request, config: ServiceConfig) -> bytes:
    """The bytes of a JSON body. Raises RequestError for another media type, too many bytes, or a sender
    that is too slow or gone."""
    _require_json(request)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > config.max_body_bytes:
        raise _too_large(config)
    try:
        async with asyncio.timeout(config.body_timeout_seconds):
            return await _read(request, config)
    except ClientDisconnect as error:
        raise RequestError(
            "the connection closed before the body was whole", code="BODY_INCOMPLETE"
        ) from error
    except TimeoutError as error:
        raise RequestError(
            f"the body did not arrive within {config.body_timeout_seconds:g} seconds",
            code="BODY_TIMEOUT",
        ) from error


async def _read(request: Request, config: ServiceConfig) -> bytes:
    parts: list[bytes] = []
    size = 0
    # A chunked body declares no length, so bytes are counted as they come.
    async for part in request.stream():
        size += len(part)
        if size > config.max_body_bytes:
            raise _too_large(config)
        parts.append(part)
    return b"".join(parts)


def _require_json(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise RequestError(
            "send Content-Type: application/json, in UTF-8", code="UNSUPPORTED_MEDIA_TYPE"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("send the body without Content-Encoding", code="UNSUPPORTED_MEDIA_TYPE")


def _too_large(config: ServiceConfig) -> RequestError:
    return RequestError(
        f"a body has at most {config.max_body_bytes} bytes; split the request",
        code="BODY_TOO_LARGE",
    )
