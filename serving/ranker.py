"""A bundle that answers requests and scores rows: encode, score, calibrate, utility. Knows no HTTP.

Axes: **N** candidates, **T** tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa
from msgspec import UNSET
from numpy.typing import NDArray

from recsys.bundle import Bundle, load_bundle
from recsys.calibrate import TaskScores, task_scores
from recsys.errors import DataError, RequestError
from recsys.schema import Schema
from serving.config import Limits
from serving.inputs import Inputs, read_inputs
from serving.rows import score_table, select
from serving.wire import Wire

SCORED, NOT_SCORED = 0, 1
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Ranked:
    """Scores of N rows: `scores` by entry, `score` to order by, `status` 0 or 1 (a number was not finite)."""

    scores: TaskScores
    score: NDArray[np.float64]
    status: NDArray[np.uint8]


@dataclass(frozen=True)
class Response:
    """An answer: `tree` is what goes out as JSON; `seconds` is where the time went, by stage."""

    tree: Mapping[str, Any]
    ranked: Ranked
    seconds: Mapping[str, float] = field(default_factory=dict)

    def json(self) -> bytes:
        """The answer as JSON. A number that is not finite is null, and its candidate's status says so."""
        return orjson.dumps(self.tree, option=orjson.OPT_SERIALIZE_NUMPY)

    def plain(self) -> dict[str, Any]:
        """The answer as plain lists and numbers, exactly as a caller reads it."""
        tree: dict[str, Any] = orjson.loads(self.json())
        return tree


@dataclass(frozen=True)
class Ranker:
    """One model ready to answer. Its methods may be called from several threads."""

    bundle: Bundle
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def load(cls, path: Path, *, limits: Limits | None = None) -> "Ranker":
        """The ranker of a published bundle. Raises ArtifactError when the bundle does not verify."""
        return cls(load_bundle(path), limits or Limits())

    @property
    def schema(self) -> Schema:
        return self.bundle.schema

    @cached_property
    def wire(self) -> Wire:
        return Wire(self.schema, self.bundle.name, self.bundle.utility.name)

    def rank(
        self, request: Mapping[str, Any] | msgspec.Struct, *, request_id: str = ""
    ) -> Response:
        """The answer to a request, given as a plain tree or as this model's request Struct. Raises RequestError."""
        started = perf_counter()
        asked = request if isinstance(request, msgspec.Struct) else self.wire.convert(request)
        inputs = read_inputs(asked, self.wire, limits=self.limits)
        read = perf_counter()
        try:
            ranked = self.score(
                inputs.user, inputs.candidates, user_of_row_N=np.zeros(inputs.count, np.int64)
            )
        except DataError as error:
            raise RequestError(str(error)) from error
        scored = perf_counter()
        tree = {"request_id": request_id} | self._answer(asked, inputs, ranked)
        return Response(tree, ranked, {"parse": read - started, "infer": scored - read})

    def score(
        self, user: pa.Table, candidates: pa.Table, *, user_of_row_N: NDArray[np.int64]
    ) -> Ranked:
        """Scores of raw candidate rows for raw user rows. Raises DataError."""
        logits_NT = self.bundle.logits(user, candidates, user_of_row_N=user_of_row_N)
        scores = task_scores(logits_NT, self.schema, calibrators=self.bundle.calibrators)
        score = self.bundle.utility.score(scores)
        finite = np.isfinite(logits_NT).all(axis=1) & np.isfinite(score)
        return Ranked(scores, score, np.where(finite, SCORED, NOT_SCORED).astype(np.uint8))

    def score_rows(self, rows: pa.Table) -> pa.Table:
        """Scores of raw rows that hold user and candidate columns alike, each row by itself, in their order.

        The result has the kept key columns that the rows hold, `score`, and per entry `raw:<entry>` and `p:<entry>`, or
        `value:<task>`. Columns that no feature reads are passed over. Raises DataError.
        """
        starts = range(0, max(1, rows.num_rows), _CHUNK_ROWS)
        chunks = [self._score_chunk(rows, start) for start in starts]
        return score_table(rows, chunks, self.schema.keys.kept)

    def _score_chunk(self, rows: pa.Table, start: int) -> dict[str, NDArray[np.float64]]:
        columns, chunk = self.wire.columns, rows.slice(start, _CHUNK_ROWS)
        user = select(chunk, (*columns.user, *columns.context))
        candidates = select(chunk, columns.candidate)
        try:
            ranked = self.score(user, candidates, user_of_row_N=np.arange(chunk.num_rows))
        except DataError as error:
            if error.row is None:
                raise
            raise DataError(error.problem, row=start + error.row) from error
        found = {"score": _finite(ranked.score, ranked)}
        for entry in self.wire.entries:
            numbers = entry_numbers(ranked, entry)
            found |= {f"{kind}:{entry}": values for kind, values in numbers.items()}
        return found

    def _answer(self, asked: Any, inputs: Inputs, ranked: Ranked) -> dict[str, Any]:
        options = asked.options
        tasks = UNSET if options is UNSET else options.tasks
        top_k = UNSET if options is UNSET else options.top_k
        bundle, wire = self.bundle, self.wire
        order = _order(ranked)
        scored = int(np.count_nonzero(ranked.status == SCORED))
        wanted = wire.entries if tasks is UNSET else dict.fromkeys(tasks)
        tree: dict[str, Any] = {
            "model": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest},
            "utility": {
                "name": bundle.utility.name,
                "version": bundle.utility.version,
                "formula": bundle.utility.formula,
            },
            "order": order if top_k is UNSET else order[:top_k],
            "tasks": {entry: entry_numbers(ranked, entry) for entry in wanted},
            "score": _finite(ranked.score, ranked),
            "status": ranked.status,
            "errors": [
                {"index": int(index), "code": "NON_FINITE_SCORE"}
                for index in np.flatnonzero(ranked.status == NOT_SCORED)
            ],
            "imputed": list(inputs.imputed),
            "degraded": {"scored": scored, "total": inputs.count},
        }
        if asked.user is not UNSET and asked.user.id is not UNSET:
            tree["user"] = {"id": asked.user.id}
        if asked.candidates.ids is not UNSET:
            tree["ids"] = asked.candidates.ids
        return tree


def entry_numbers(ranked: Ranked, entry: str) -> dict[str, NDArray[np.float64]]:
    """The arrays of one entry; a candidate that was not scored has NaN throughout."""
    if entry in ranked.scores.value:
        return {"value": _finite(ranked.scores.value[entry], ranked)}
    return {
        "raw": _finite(ranked.scores.raw[entry], ranked),
        "p": _finite(ranked.scores.p[entry], ranked),
    }


def _finite(values_N: NDArray[np.float64], ranked: Ranked) -> NDArray[np.float64]:
    if not ranked.status.any():
        return values_N
    return np.where(ranked.status == SCORED, values_N, np.nan)


def _order(ranked: Ranked) -> NDArray[np.int64]:
    """Scored candidates, best first; equal scores in the request's order."""
    order: NDArray[np.int64] = np.argsort(-ranked.score, kind="stable")
    scored: NDArray[np.int64] = order[ranked.status[order] == SCORED]
    return scored
