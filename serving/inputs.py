"""A decoded request as the raw tables that a bundle takes, every length and limit checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from msgspec import UNSET

from recsys.errors import RequestError
from recsys.schema import ARROW_TYPES, Schema
from serving.config import Limits
from serving.decoding import pointer
from serving.wire import Wire, features_of


@dataclass(frozen=True)
class Inputs:
    """One row of user and context columns, `count` rows of candidate columns, and what was left out of them."""

    user: pa.Table
    candidates: pa.Table
    count: int
    imputed: tuple[str, ...]


def read_inputs(request: Any, wire: Wire, *, limits: Limits) -> Inputs:
    """The raw tables of a request of the wire's type. Raises RequestError.

    A column that is left out is null. The time of the request, where time gaps need it, is then the server's clock.
    """
    schema, columns = wire.schema, wire.columns
    user, context = features_of(request.user), features_of(request.context)
    candidates = features_of(request.candidates)
    count = _candidate_count(request.candidates, candidates, limits)
    for section, features in (("user", user), ("context", context)):
        for name, value in features.items():
            if isinstance(value, list):
                _require_short(value, limits, section, "features", name)
    for name, values in candidates.items():
        _require_short_lists(values, limits, name)
    _require_aligned(user, schema)
    imputed = (
        *_absent("user", columns.user, user),
        *_absent("context", columns.context, context),
        *_absent("candidates", columns.candidate, candidates),
    )
    time = schema.keys.time
    if time in columns.context and time not in context:
        context[time] = datetime.now(UTC)
        imputed = tuple(where for where in imputed if where != pointer("context", "features", time))
    _refuse_missing(request.options, imputed)
    values = user | context
    return Inputs(
        pa.table(
            {
                name: _array([values.get(name)], name, schema)
                for name in (*columns.user, *columns.context)
            }
        ),
        pa.table(
            {
                name: _array(candidates.get(name, [None] * count), name, schema)
                for name in columns.candidate
            }
        ),
        count,
        imputed,
    )


def _candidate_count(section: Any, features: Mapping[str, list[Any]], limits: Limits) -> int:
    """N: the length that ids and all columns share; without any of them there are no candidates."""
    lengths = {} if section.ids is UNSET else {pointer("candidates", "ids"): len(section.ids)}
    lengths |= {
        pointer("candidates", "features", name): len(values) for name, values in features.items()
    }
    if not lengths:
        return 0
    first, count = next(iter(lengths.items()))
    for where, length in lengths.items():
        if length > limits.max_candidates:
            raise RequestError(
                f"{length} candidates, at most {limits.max_candidates} a request; split the request",
                pointer=where,
                code="TOO_MANY_CANDIDATES",
            )
        if length != count:
            raise RequestError(
                f"{length} values, {first} has {count}; give one value a candidate",
                pointer=where,
                code="LENGTH_MISMATCH",
            )
    return count


def _require_short_lists(values: list[Any], limits: Limits, name: str) -> None:
    for index, value in enumerate(values):
        if not isinstance(value, list):
            if value is None:
                continue
            # A column holds lists or single values, never both.
            return
        _require_short(value, limits, "candidates", "features", name, index)


def _require_short(values: list[Any], limits: Limits, *path: str | int) -> None:
    if len(values) > limits.max_list_length:
        raise RequestError(
            f"{len(values)} values, at most {limits.max_list_length} a list; send the newest",
            pointer=pointer(*path),
            code="LIST_TOO_LONG",
        )


def _require_aligned(user: Mapping[str, Any], schema: Schema) -> None:
    """The lists of a sequence have one length; null, and a list left out, has none."""
    for name, sequence in schema.sequences.items():
        columns = [spec.column for spec in sequence.tokens.values()]
        lengths = {column: len(user.get(column) or ()) for column in columns}
        longest = max(lengths, key=lambda column: lengths[column])
        for column, length in lengths.items():
            if length != lengths[longest]:
                raise RequestError(
                    f"{length} events, {longest!r} has {lengths[longest]}; the lists of sequence {name!r} go together",
                    pointer=pointer("user", "features", column),
                    code="LENGTH_MISMATCH",
                )


def _absent(section: str, columns: tuple[str, ...], features: Mapping[str, Any]) -> list[str]:
    return [pointer(section, "features", name) for name in columns if name not in features]


def _refuse_missing(options: Any, imputed: tuple[str, ...]) -> None:
    if imputed and options is not UNSET and options.on_missing == "fail_request":
        raise RequestError(
            "left out, and on_missing is fail_request; give it, null where unknown",
            pointer=imputed[0],
            code="MISSING_FEATURE",
        )


def _array(values: list[Any], name: str, schema: Schema) -> pa.Array:
    try:
        return pa.array(values, ARROW_TYPES[schema.columns[name]])
    # The types are checked; what is left is a time outside of Arrow's range.
    except (pa.ArrowException, OverflowError) as error:
        raise RequestError(f"column {name!r}: {error}") from error
