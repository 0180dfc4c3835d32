"""Errors as callers see them: RFC 9457 `application/problem+json`, without stack traces or paths."""

import msgspec

from recsys.errors import RequestError

MEDIA_TYPE = "application/problem+json"

# Every `code` a caller can meet, with its HTTP status and title.
PROBLEMS: dict[str, tuple[int, str]] = {
    "MALFORMED_JSON": (400, "The body is not JSON"),
    "BODY_INCOMPLETE": (400, "The body ended early"),
    "UNAUTHORIZED": (401, "A valid key is required"),
    "NOT_FOUND": (404, "No such resource"),
    "UNKNOWN_MODEL": (404, "No such model"),
    "METHOD_NOT_ALLOWED": (405, "The resource has no such method"),
    "BODY_TIMEOUT": (408, "The body came too slowly"),
    "VERSION_NOT_LOADED": (409, "This version of the model is not loaded"),
    "BODY_TOO_LARGE": (413, "The body is too large"),
    "TOO_MANY_CANDIDATES": (413, "Too many candidates"),
    "LIST_TOO_LONG": (413, "A list is too long"),
    "UNSUPPORTED_MEDIA_TYPE": (415, "The media type is not supported"),
    "INVALID_REQUEST": (422, "The request does not match the schema"),
    "UNKNOWN_FIELD": (422, "The request has an unknown field"),
    "DUPLICATE_KEY": (422, "The request names a key twice"),
    "LENGTH_MISMATCH": (422, "Lists that belong together differ in length"),
    "MISSING_FEATURE": (422, "The request leaves out a feature"),
    "INTERNAL": (500, "The server failed"),
    "NOT_READY": (503, "The server is not ready"),
}


class Problem(msgspec.Struct, omit_defaults=True, frozen=True):
    """The body of every answer that is not 2xx. `pointer` is the JSON pointer of the offending value, if it is one."""

    status: int
    code: str
    title: str
    detail: str
    request_id: str
    pointer: str | None = None
    type: str = "about:blank"


def problem_of(error: RequestError, *, request_id: str) -> Problem:
    """The problem document of a request error."""
    status, title = PROBLEMS[error.code]
    return Problem(status, error.code, title, str(error), request_id, error.pointer or None)
