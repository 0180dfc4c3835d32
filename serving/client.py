"""Scores rows through a running server: consecutive rows with equal user-side values share a request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import RequestError
from serving.rows import json_rows, request_of, score_table

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class RemoteModel:
    """What a server says of the model that answers: its columns by section, the keys to keep, its limit."""

    name: str
    version: str
    user: tuple[str, ...]
    context: tuple[str, ...]
    candidates: tuple[str, ...]
    keys: tuple[str, ...]
    max_candidates: int


def score_rows_over_http(
    rows: pa.Table, url: str, *, model: str | None = None, key: str | None = None
) -> pa.Table:
    """The table that `Ranker.score_rows` gives, from a server's answers, all of one version of the model.

    Raises RequestError with the server's own words when it refuses a request or cannot be reached, and DataError for
    rows without a column that the model reads or with a number that is not finite.
    """
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS) as client:
        remote = _describe(client, model)
        chunks = [
            _numbers(_ask(client, "POST", "/v1/rank", tree)) for tree in _requests(rows, remote)
        ]
    return score_table(rows, chunks, remote.keys)


def _describe(client: httpx.Client, model: str | None) -> RemoteModel:
    name = model or _ask(client, "GET", "/v1/models")["default"]
    info = _ask(client, "GET", f"/v1/models/{name}")
    columns = info["columns"]
    return RemoteModel(
        name=info["name"],
        version=info["version"],
        user=tuple(columns["user"]),
        context=tuple(columns["context"]),
        candidates=tuple(columns["candidates"]),
        keys=tuple(info["keys"]),
        max_candidates=info["limits"]["max_candidates"],
    )


def _requests(rows: pa.Table, remote: RemoteModel) -> Iterator[dict[str, Any]]:
    """One request a run of rows with equal user and context values; one without candidates for no rows."""
    pin = {"model": {"name": remote.name, "version": remote.version}}
    user, context = json_rows(rows, remote.user), json_rows(rows, remote.context)
    candidates = json_rows(rows, remote.candidates)
    start = 0
    for row in range(1, rows.num_rows + 1):
        full = row - start == remote.max_candidates
        if (
            row < rows.num_rows
            and not full
            and (user[row], context[row]) == (user[start], context[start])
        ):
            continue
        yield pin | request_of(
            user=user[start], context=context[start], candidates=candidates[start:row]
        )
        start = row
    if rows.num_rows == 0:
        yield pin | request_of(user={}, context={}, candidates=[])


def _ask(client: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    try:
        response = client.request(
            method, path, content=None if body is None else orjson.dumps(body)
        )
    except httpx.UnsupportedProtocol as error:
        raise RequestError(
            f"{client.base_url}: is no URL of a server; write one such as http://127.0.0.1:8000"
        ) from error
    except httpx.TransportError as error:
        raise RequestError(
            f"{client.base_url}: no answer ({error}); check that the server runs"
        ) from error
    if response.is_success:
        return orjson.loads(response.content)
    try:
        problem = orjson.loads(response.content)
        what, where, code = problem["detail"], problem.get("pointer", ""), problem["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise RequestError(
            f"{client.base_url}{path}: status {response.status_code}, not a ranking server"
        ) from error
    raise RequestError(
        f"{client.base_url}: {where} {what}".replace(":  ", ": "), pointer=where, code=code
    )


def _numbers(answer: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """The columns of an answer's scores, named as `Ranker.score_rows` names them; null is NaN."""
    found = {"score": answer["score"]}
    for entry, numbers in answer["tasks"].items():
        found |= {f"{kind}:{entry}": values for kind, values in numbers.items()}
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}
