"""A decoded request as the raw tables that a bundle takes, every length and limit checked."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from msgspec import UNSET

from recsys.errors import RequestError
from recsys.schema import ARROW_TYPES, Schema
from serving.column_types import INTEGER_KEY
from serving.config import Limits
from serving.decoding import pointer
from serving.wire import Wire, features_of

# No int64 has more characters, so no key becomes a number of thousands of digits.
_INTEGER_KEY = re.compile(r"(?=.{1,20}$)" + INTEGER_KEY)
# Of what a caller wrote, this many characters are shown back.
_SHOWN = 128


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
    for section, features, own in (
        ("user", user, columns.user),
        ("context", context, columns.context),
        ("candidates", candidates, columns.candidate),
    ):
        _require_sizes(section, features, wire=wire, limits=limits)
        for weights, ids in wire.sizes.weights:
            if weights in own and ids in own:
                _require_weights(section, features, weights=weights, ids=ids)
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
                name: _array(section, name, [values.get(name)], schema)
                for section, names in (("user", columns.user), ("context", columns.context))
                for name in names
            }
        ),
        pa.table(
            {
                name: _array("candidates", name, candidates.get(name, [None] * count), schema)
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


def _rows(section: str, found: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
    """The values of a column that are not null with their place in it: one for the request, or one a candidate."""
    if section != "candidates":
        yield from () if found is None else (((), found),)
        return
    for index, value in enumerate(found or ()):
        if value is not None:
            yield (index,), value


def _require_sizes(
    section: str, features: Mapping[str, Any], *, wire: Wire, limits: Limits
) -> None:
    """Lists and maps are within the limit, vectors of their declared length."""
    for name, found in features.items():
        dtype = wire.schema.columns[name]
        if not dtype.startswith(("list<", "map<")):
            continue
        dim = wire.sizes.vectors.get(name)
        for place, value in _rows(section, found):
            if dim is None and len(value) > limits.max_list_length:
                remedy = "a list; send the newest" if dtype.startswith("list<") else "a map"
                raise RequestError(
                    f"{len(value)} values, at most {limits.max_list_length} {remedy}",
                    pointer=pointer(section, "features", name, *place),
                    code="LIST_TOO_LONG",
                )
            if dim is not None and len(value) != dim:
                raise RequestError(
                    f"{len(value)} numbers, the vectors of {name!r} have {dim}; give {dim} or null",
                    pointer=pointer(section, "features", name, *place),
                    code="LENGTH_MISMATCH",
                )


def _require_weights(section: str, features: Mapping[str, Any], *, weights: str, ids: str) -> None:
    """Weights are as many as the ids beside them; null, and a list left out, is none."""
    given, expected = (
        {place: len(value) for place, value in _rows(section, features.get(name))}
        for name in (weights, ids)
    )
    for place in given | expected:
        count, wanted = given.get(place, 0), expected.get(place, 0)
        if count != wanted:
            raise RequestError(
                f"{count} weights, {ids!r} has {wanted} ids; give each id one weight",
                pointer=pointer(section, "features", weights, *place),
                code="LENGTH_MISMATCH",
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


def _array(section: str, name: str, values: list[Any], schema: Schema) -> pa.Array:
    dtype = schema.columns[name]
    if dtype.startswith("map<"):
        values = _pairs(section, name, values, dtype)
    try:
        return pa.array(values, ARROW_TYPES[dtype])
    # The types are checked; what is left is a time outside of Arrow's range, and half a surrogate pair in a plain tree.
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise RequestError(f"column {name!r}: {error}") from error


def _pairs(section: str, name: str, maps: list[Any], dtype: str) -> list[Any]:
    """Maps as Arrow takes them, their keys of the column's type."""
    if "int64" not in dtype:
        return [None if found is None else list(found.items()) for found in maps]
    pairs: list[Any] = [None] * len(maps)
    for index, found in enumerate(maps):
        path = (section, "features", name, *((index,) if section == "candidates" else ()))
        if found is not None:
            pairs[index] = [(_integer(key, path), value) for key, value in found.items()]
    return pairs


def _integer(key: str, path: tuple[str | int, ...]) -> int:
    if _INTEGER_KEY.fullmatch(key) and -(2**63) <= (number := int(key)) < 2**63:
        return number
    shown = key[:_SHOWN]
    raise RequestError(
        f"key {shown!r} is no int64; the keys of this map are integers, written as text",
        pointer=pointer(*path, shown),
    )
