"""JSON bodies to Structs: what is wrong as a RequestError with its JSON pointer, and no key given twice."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import msgspec
from msgspec import UNSET

from recsys.errors import RequestError, nearest


def decode(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """What a JSON body says, as the decoder's type. Raises RequestError."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise refusal(error, decoder.type) from error
    # What is not JSON, not UTF-8 or nested beyond the parser's depth.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"not JSON: {error}", code="MALFORMED_JSON") from error


# Of what a caller wrote, this many characters are shown back.
_SHOWN = 128
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_PART = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]")
_JSON_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "datetime": "RFC 3339 time",
}
_QUOTED = re.compile(r"`([^`]*)`")
_UNKNOWN = re.compile(r"unknown field `(.*)`")


def refusal(error: msgspec.ValidationError, expected: Any) -> RequestError:
    """The parser's sentence in JSON's words, with its path as a JSON pointer; `expected` is the type it read for."""
    match, parts = _match(error), place_of(error)
    unknown = _UNKNOWN.search(match["what"])
    if unknown is not None:
        hint = nearest(unknown[1][:_SHOWN], _fields_at(expected, parts))
        return RequestError(
            f"unknown field {unknown[1][:_SHOWN]!r}{hint}; see /openapi.json for the fields of this model",
            pointer=pointer(*parts, unknown[1][:_SHOWN]),
            code="UNKNOWN_FIELD",
        )
    what = _QUOTED.sub(
        lambda found: " or ".join(_JSON_TYPES.get(word, word) for word in found[1].split(" | ")),
        match["what"],
    )
    return RequestError(
        f"{what}; see /openapi.json for what this model takes", pointer=pointer(*parts)
    )


def place_of(error: msgspec.ValidationError) -> list[str | int]:
    """The names and indices that lead to what is wrong; of a map's value the parser tells the map alone."""
    path = _PART.findall(_match(error)["path"] or "")
    return [name or int(index) for name, index in path if name or index]


def _match(error: msgspec.ValidationError) -> re.Match[str]:
    match = _PATH.match(str(error))
    assert match is not None
    return match


def _fields_at(expected: Any, path: Sequence[str | int]) -> list[str]:
    """Names of the fields of the Struct at a path; none where the path leads elsewhere."""
    for part in path:
        types = {item.encode_name: item.type for item in _fields(expected)}
        expected = types.get(str(part))
    return [item.encode_name for item in _fields(expected)]


def _fields(expected: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    for choice in (expected, *get_args(expected)):
        if isinstance(choice, type) and issubclass(choice, msgspec.Struct):
            return msgspec.structs.fields(choice)
    return ()


def count_keys(value: Any) -> int:
    """Keys present in a decoded request. Unknown ones were refused, so these are all distinct keys of the body."""
    if isinstance(value, dict):
        return len(value)
    if isinstance(value, list):
        # A column holds maps or none.
        first = next((item for item in value if item is not None), None)
        return sum(map(len, filter(None, value))) if isinstance(first, dict) else 0
    if not isinstance(value, msgspec.Struct):
        return 0
    present = [getattr(value, key) for key in value.__struct_fields__]
    return sum(1 + count_keys(item) for item in present if item is not UNSET)


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def refuse_duplicate_keys(raw: bytes, keys: int) -> None:
    """Parsers keep the last of two equal keys without a word. Every key has one colon outside of strings."""
    # Colons inside strings only add to the count, so equality settles most bodies.
    if raw.count(b":") == keys or _STRING.sub(b"", raw).count(b":") == keys:
        return
    for parts, name in _duplicates(raw):
        raise RequestError(
            f"the key {name!r} is given twice", pointer=pointer(*parts, name), code="DUPLICATE_KEY"
        )


def _duplicates(raw: bytes) -> Iterator[tuple[list[str | int], str]]:
    """Paths and names of repeated keys. The body was decoded, so it is a few levels deep."""

    def walk(tree: Any, path: list[str | int]) -> Iterator[tuple[list[str | int], str]]:
        if not isinstance(tree, _Pairs):
            for index, value in enumerate(tree if isinstance(tree, list) else ()):
                yield from walk(value, [*path, index])
            return
        seen: set[str] = set()
        for name, value in tree:
            if name in seen:
                yield path, name
            seen.add(name)
            yield from walk(value, [*path, name])

    yield from walk(json.loads(raw, object_pairs_hook=_Pairs), [])


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, repeated keys included."""


def pointer(*parts: str | int) -> str:
    """The JSON pointer (RFC 6901) of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
