"""What the HTTP service refuses: with which status, code and pointer, and without a word of its insides."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from serving.config import Limits, ServiceConfig
from tests.serving.requests import Caller, caller, changed, full_request, priced, require_problem


@pytest.fixture(scope="module")
def service() -> Caller:
    return caller()


USER, CONTEXT = "/user/features", "/context/features"
FEATURES = "/candidates/features"
LEFT_OUT = object()

# Where a good request is changed, to what, the code, and the pointer, which begins with the place that was changed.
WRONG: dict[str, tuple[str, Any, str, str | None]] = {
    "unknown feature": (f"{USER}/agee", 3, "UNKNOWN_FIELD", ""),
    "unknown section": ("/users", {}, "UNKNOWN_FIELD", ""),
    "unknown option": ("/options", {"deadline": 5}, "UNKNOWN_FIELD", "/deadline"),
    "fixed feature": (f"{FEATURES}/position", [1, 2, 3], "UNKNOWN_FIELD", ""),
    "candidate's feature for the user": (f"{USER}/price", 1.0, "UNKNOWN_FIELD", ""),
    "label": (f"{FEATURES}/clicked", [True] * 3, "UNKNOWN_FIELD", ""),
    "text for a number": (f"{FEATURES}/price", ["1", 2, 3], "INVALID_REQUEST", "/0"),
    "number for text": (f"{USER}/user_id", 3, "INVALID_REQUEST", ""),
    "true for a number": (f"{FEATURES}/price", [1, True, 2], "INVALID_REQUEST", "/1"),
    "number for a list": (f"{FEATURES}/price", 1.5, "INVALID_REQUEST", ""),
    "list for a number": (f"{CONTEXT}/hour", [1], "INVALID_REQUEST", ""),
    "fraction for an integer": (f"{FEATURES}/item_id", [1.5, 2, 3], "INVALID_REQUEST", "/0"),
    "beyond int64": (f"{FEATURES}/item_id", [1, 2**63, 3], "INVALID_REQUEST", "/1"),
    "below int64": (f"{FEATURES}/item_id", [1, -(2**63) - 1, 3], "INVALID_REQUEST", "/1"),
    "beyond int8": (f"{CONTEXT}/hour", 128, "INVALID_REQUEST", ""),
    "beyond float32": (f"{FEATURES}/price", [1, 1e39, 2], "INVALID_REQUEST", "/1"),
    "wrong in a nested list": (f"{FEATURES}/tags", [["a"], None, [1]], "INVALID_REQUEST", "/2/0"),
    "time without zone": (f"{CONTEXT}/shown_at", "2026-10-02T12:00:00", "INVALID_REQUEST", ""),
    "time as a number": (f"{CONTEXT}/shown_at", 17, "INVALID_REQUEST", ""),
    "no candidates section": ("/candidates", LEFT_OUT, "INVALID_REQUEST", None),
    "short column": (f"{FEATURES}/price", [1, 2], "LENGTH_MISMATCH", ""),
    "long column": (f"{FEATURES}/price", [1, 2, 3, 4], "LENGTH_MISMATCH", ""),
    "sequence out of step": (f"{USER}/clicks_item", [1], "LENGTH_MISMATCH", ""),
    "half a sequence": (f"{USER}/clicks_age", LEFT_OUT, "LENGTH_MISMATCH", ""),
    "explain, not built": ("/options", {"explain": "gates"}, "INVALID_REQUEST", "/explain"),
    "lookup, not built": ("/options", {"lookup": "auto"}, "INVALID_REQUEST", "/lookup"),
    "failing one, not built": ("/options", {"on_error": "fail"}, "INVALID_REQUEST", "/on_error"),
    "unknown task": ("/options", {"tasks": ["click", "buy"]}, "INVALID_REQUEST", "/tasks/1"),
    "unknown utility": ("/options", {"utility": "greedy"}, "INVALID_REQUEST", "/utility"),
    "top_k of 0": ("/options", {"top_k": 0}, "INVALID_REQUEST", "/top_k"),
    "unknown model": ("/model", {"name": "fed"}, "UNKNOWN_MODEL", "/name"),
    "model as text": ("/model", "feed", "INVALID_REQUEST", ""),
    "version not loaded": ("/model", {"version": "2020"}, "VERSION_NOT_LOADED", "/version"),
    "overlong id": ("/user/id", "u" * 257, "INVALID_REQUEST", ""),
    "fractional id": ("/candidates/ids", [1.5, 2, 3], "INVALID_REQUEST", "/0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_refused_with_a_pointer_to_what_is_wrong(
    service: Caller, wrong: str
) -> None:
    place, value, code, rest = WRONG[wrong]
    *path, last = place.split("/")[1:]
    request = target = full_request()
    for part in path:
        target = target[part]
    if value is LEFT_OUT:
        del target[last]
    else:
        target[last] = value
    answer = service.post("/v1/rank", json=request)
    require_problem(answer, code, None if rest is None else place + rest)


def test_an_unknown_field_names_the_nearest_known_one_beside_it(service: Caller) -> None:
    request = full_request()
    request["candidates"]["features"]["prise"] = [1.0, 2.0, 3.0]
    assert "'prise' (did you mean 'price'?)" in service.post("/v1/rank", json=request).text

    request = full_request() | {"candidate": {}}
    assert "'candidate' (did you mean 'candidates'?)" in service.post("/v1/rank", json=request).text


def ids(text: bytes) -> bytes:
    return b'{"candidates": {"ids": ' + text + b"}}"


DEEP = 100_000
BROKEN: dict[str, tuple[bytes, str, str | None]] = {
    "empty": (b"", "MALFORMED_JSON", None),
    "not JSON": (b"{price}", "MALFORMED_JSON", None),
    "two documents": (b"{} {}", "MALFORMED_JSON", None),
    "cut off": (b'{"candidates": {', "MALFORMED_JSON", None),
    "byte order mark": (b"\xef\xbb\xbf{}", "MALFORMED_JSON", None),
    "not UTF-8": (ids(b'["\xff\xfe"]'), "MALFORMED_JSON", None),
    "lone surrogate": (ids(b'["\\ud800"]'), "MALFORMED_JSON", None),
    "NaN": (priced("NaN"), "MALFORMED_JSON", None),
    "Infinity": (priced("-Infinity"), "MALFORMED_JSON", None),
    "1e400": (priced("1e400"), "INVALID_REQUEST", f"{FEATURES}/price/0"),
    "10^5000": (priced("1" + "0" * 5000), "INVALID_REQUEST", f"{FEATURES}/price/0"),
    "deep lists": (ids(b"[" * DEEP + b"]" * DEEP), "MALFORMED_JSON", None),
    "deep objects": (b'{"x": ' * DEEP + b"1" + b"}" * DEEP, "MALFORMED_JSON", None),
    "lists in lists": (ids(b"[" * 50 + b"]" * 50), "INVALID_REQUEST", "/candidates/ids/0"),
    "array": (b"[1, 2]", "INVALID_REQUEST", None),
    "null": (b"null", "INVALID_REQUEST", None),
    "key twice": (ids(b'["a"], "ids": ["b"]'), "DUPLICATE_KEY", "/candidates/ids"),
    "key twice, escaped": (ids(b'["a:b"], "\\u0069ds": []'), "DUPLICATE_KEY", "/candidates/ids"),
    "section twice": (b'{"candidates": {}, "candidates": {}}', "DUPLICATE_KEY", "/candidates"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_body_that_is_no_proper_json_is_refused(service: Caller, broken: str) -> None:
    body, code, pointer = BROKEN[broken]
    answer = service.post("/v1/rank", content=body, headers={"Content-Type": "application/json"})
    require_problem(answer, code, pointer)


def test_bodies_beyond_the_limit_are_refused_before_they_are_parsed() -> None:
    service = caller(config=ServiceConfig(threads=1, max_body_bytes=1000))
    large = json.dumps({"candidates": {"ids": ["x" * 100] * 20}}).encode()
    json_type = {"Content-Type": "application/json"}
    require_problem(service.post("/v1/rank", content=large, headers=json_type), "BODY_TOO_LARGE")

    class Chunks(httpx.AsyncByteStream):
        """A body that declares no length and does not end."""

        sent = 0

        async def __aiter__(self) -> Any:
            while self.sent < 10_000_000:
                self.sent += 512
                yield b"x" * 512

    chunks = Chunks()
    require_problem(service.post("/v1/rank", content=chunks, headers=json_type), "BODY_TOO_LARGE")


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    service = caller(config=ServiceConfig(threads=1, body_timeout_seconds=0.05))

    class Drops(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    answer = service.post("/v1/rank", content=Drops(), headers={"Content-Type": "application/json"})
    require_problem(answer, "BODY_TIMEOUT")


def test_ten_megabytes_are_too_large_by_default(service: Caller) -> None:
    body = b'{"candidates": {"ids": ["' + b"x" * 10_000_000 + b'"]}}'
    answer = service.post("/v1/rank", content=body, headers={"Content-Type": "application/json"})
    require_problem(answer, "BODY_TOO_LARGE")


def test_too_many_candidates_and_too_long_lists_are_refused() -> None:
    service = caller(limits=Limits(max_candidates=4, max_list_length=3))
    assert service.post("/v1/rank", json=full_request(4)).status_code == 200
    require_problem(
        service.post("/v1/rank", json=full_request(5)), "TOO_MANY_CANDIDATES", "/candidates/ids"
    )
    tags = changed(lambda r: r["candidates"]["features"].update(tags=[[], None, ["t"] * 4]))
    require_problem(service.post("/v1/rank", json=tags), "LIST_TOO_LONG", f"{FEATURES}/tags/2")
    likes = changed(lambda r: r["user"]["features"].update(likes=[1] * 4))
    require_problem(service.post("/v1/rank", json=likes), "LIST_TOO_LONG", "/user/features/likes")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/vnd.apache.arrow.stream"},
    ],
)
def test_another_media_type_is_refused(service: Caller, headers: dict[str, str]) -> None:
    answer = service.post("/v1/rank", content=b"{}", headers=headers)
    require_problem(answer, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "name", ["nope", "..", "%2e%2e%2ffeed", "f\u0435ed", "x" * 10_000, "feed%00"]
)
def test_a_name_that_is_no_model_is_not_found(service: Caller, name: str) -> None:
    answer = service.get(f"/v1/models/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_wrong_methods_and_paths_are_problems_too(service: Caller) -> None:
    answer = service.get("/v1/rank")
    require_problem(answer, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"
    for path in ("/", "/v1", "/v1/rank/", "/docs", "/metrics", "/v1/models/feed/../rank/x"):
        require_problem(service.get(path), "NOT_FOUND")


def test_random_damage_to_a_body_never_fails_the_server(service: Caller) -> None:
    random = np.random.default_rng(11)
    content = json.dumps(full_request()).encode()
    statuses = set()
    for _ in range(150):
        damaged = bytearray(content)
        for place in random.integers(0, len(damaged), 2):
            damaged[place] = random.integers(0, 256)
        answer = service.post(
            "/v1/rank", content=bytes(damaged), headers={"Content-Type": "application/json"}
        )
        statuses.add(answer.status_code)
    assert statuses <= {200, 400, 404, 409, 422}
    assert statuses >= {400, 422}
