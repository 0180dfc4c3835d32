"""The frozen base of every configuration section, and the one reader of TOML files.

Unknown keys, wrong types and impossible values become one `ConfigError` that names the file, the path of the key,
what was found and, for an unknown name, the nearest known one.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from recsys.errors import ConfigError, nearest

# What each kind of file says and no other kind does: who gives one in place of another is told so.
_TELLING: Mapping[str, tuple[str, ...]] = {
    "schema": ("columns", "keys", "tables", "features", "sequences", "tasks"),
    "pipeline": ("source", "sources", "joins", "labels", "histories", "split"),
    "experiment": ("data", "model", "objective", "optimizer", "train", "sharding", "evaluation"),
}
# What pydantic says of a value, in the words of the other messages.
_WORDS: Mapping[str, str] = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "tuple_type": 'must be an array, such as ["a", "b"]',
    "dict_type": "must be a section of settings",
    "model_type": "must be a section of settings",
    "model_attributes_type": "must be a section of settings",
    "path_type": "must be a path, as text",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "too_short": "needs at least {min_length}",
    "string_too_short": "needs at least {min_length} character",
    "string_too_long": "takes at most {max_length} character",
    "too_long": "takes at most {max_length}",
    "literal_error": "must be {expected}",
}


class Config(BaseModel):
    """A strict, frozen section: unknown keys, coerced types and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    # A field that a file does not state: its entries stand in the section itself.
    inlined: ClassVar[str | None] = None

    @classmethod
    def parse(cls, tree: Mapping[str, Any], *, where: str) -> Self:
        """The section that a parsed tree describes. `where` (a file name) begins every message."""
        try:
            # TOML arrays fill tuples; every other type stays strict.
            return cls.model_validate(_tuples(tree))
        except ValidationError as error:
            # A misspelt key is why another is missing: it comes first.
            details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
            problem = _of_another_kind(cls, tree) or _sentence(cls, details[0], details[1:])
            raise ConfigError(f"{where}: {problem}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a TOML file. Raises ConfigError when it is missing or not TOML."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a TOML file")
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        remedy = "correct it; texts stand in quotes"
        if path.suffix.lower() not in (".toml", ""):
            remedy = "name a TOML file"
        raise ConfigError(
            f"{path}: not valid TOML: {error}{_line_shown(text, error)}; {remedy}"
        ) from error


def wrong_value(detail: ErrorDetails) -> str:
    """What a value must be and what was found, `must be at least 1, found 0`, of an error of pydantic's."""
    return f"{_words(detail)}{_found(detail)}"


def _words(detail: ErrorDetails) -> str:
    context = {
        key: int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        for key, bound in detail.get("ctx", {}).items()
    }
    words = _WORDS.get(detail["type"], detail["msg"]).format(**context)
    if detail["type"] in ("too_short", "too_long"):
        return f"{words} {'entry' if words.endswith(' 1') else 'entries'}"
    return words


def _found(detail: ErrorDetails) -> str:
    found = detail.get("input")
    if detail["type"] != "literal_error" or not isinstance(found, str):
        return f", found {_short(found)}"
    known = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    return f", found {found!r}{nearest(found, known)}"


def _line_shown(text: str, error: tomllib.TOMLDecodeError) -> str:
    number = re.search(r"at line (\d+)", str(error))
    lines = text.splitlines()
    if number is None or int(number.group(1)) > len(lines):
        return ""
    return f", found {_short(lines[int(number.group(1)) - 1].strip())}"


def _of_another_kind(cls: type[BaseModel], tree: Mapping[str, Any]) -> str | None:
    """The sentence for a file that is plainly of another kind than the one asked for."""
    asked = cls.__name__.lower()
    if asked not in _TELLING or tree.keys() & {*_TELLING[asked]}:
        return None
    found = {kind: [key for key in tree if key in keys] for kind, keys in _TELLING.items()}
    kind = max(found, key=lambda kind: len(found[kind]))
    if not found[kind]:
        return None
    sections = ", ".join(f"[{key}]" for key in found[kind][:3])
    a_kind, an_asked = (f"{'an' if name[0] == 'e' else 'a'} {name}" for name in (kind, asked))
    return f"is {a_kind} file (it has {sections}), where {an_asked} file is needed; name that one"


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _sentence(cls: type[BaseModel], detail: ErrorDetails, others: Iterable[ErrorDetails]) -> str:
    path, sections = _walk(cls, detail["loc"])
    where = ".".join(path).replace(".[", "[")
    if detail["type"] == "extra_forbidden":
        known = _known_keys(cls, detail["loc"][:-1])
        hint = nearest(path[-1], known) or (
            f"; known here: {', '.join(sorted(known))}" if known else ""
        )
        return f"unknown key {where!r}{hint}"
    if detail["type"] == "missing":
        return f"{where!r} is missing; add it"
    if detail["type"] == "union_tag_not_found":
        kinds = [kind for section in sections for kind in _kinds_of(section)]
        return f"'{where}.kind' is missing; add one of: {', '.join(kinds)}"
    if detail["type"] == "union_tag_invalid":
        context = detail.get("ctx", {})
        tag = str(context.get("tag", ""))
        kinds = str(context.get("expected_tags", "")).replace("'", "").split(", ")
        if not tag:
            return f"'{where}.kind' is missing; add one of: {', '.join(kinds)}"
        return f"{where}.kind: unknown {tag!r}{nearest(tag, kinds)}; known: {', '.join(kinds)}"
    if detail["type"] == "value_error":
        problem = detail["msg"].removeprefix("Value error, ")
        return f"{where}: {problem}" if path else problem
    # Where a value may be of several types, each of them has complained.
    alike = [
        item for item in others if item["type"] in _WORDS and _walk(cls, item["loc"])[0] == path
    ]
    kinds = [_words(item).removeprefix("must be ") for item in alike]
    return f"{where}: {' or '.join(dict.fromkeys([_words(detail), *kinds]))}{_found(detail)}"


def _known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at a location."""
    _, sections = _walk(cls, location)
    fields = [item for section in sections for item in section.model_fields.items()]
    return sorted({info.alias or name for name, info in fields})


def _walk(
    cls: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[list[str], list[type[BaseModel]]]:
    """A location as the file states it, and the sections there.

    Follows plain sections, mappings and tagged unions of sections. A union's tag is part of pydantic's location and not
    of the file: it chooses among the sections found so far.
    """
    stated: list[str] = []
    sections: list[type[BaseModel]] = [cls]
    names_an_entry = is_leaf = False
    for step in location:
        part = step if isinstance(step, str) else f"[{step}]"
        if names_an_entry:
            # Below a mapping or an array stands a name or a number of the user's, whatever it reads like.
            stated.append(part)
            names_an_entry = False
            continue
        chosen = [item for item in sections if _is_kind(item, part)]
        if chosen and len(sections) > 1:
            # The tag comes first, even where a section of the union has a field of that name.
            sections = chosen
            continue
        if stated and is_leaf:
            # The type, of several that a value may have, that pydantic tried.
            break
        fields = [item.model_fields[part] for item in sections if part in item.model_fields]
        following = [found for info in fields for found in _sections_in(info.annotation)]
        inlined = any(section.__dict__.get("inlined") == part for section in sections)
        if (fields or not chosen) and not inlined:
            stated.append(part)
        sections = following or chosen or sections
        names_an_entry = any(_is_collection(info.annotation) for info in fields)
        is_leaf = bool(fields) and not following and not names_an_entry
    return stated, sections


def _is_collection(annotation: Any) -> bool:
    kinds = (
        (annotation, *get_args(annotation)) if type(None) in get_args(annotation) else (annotation,)
    )
    return any(get_origin(kind) in (dict, tuple) for kind in kinds)


def _is_kind(section: type[BaseModel], tag: str) -> bool:
    # A section without a kind is tagged by its class, or is the one that needs none.
    return tag in (_kinds_of(section) or (section.__name__, "id"))


def _kinds_of(section: type[BaseModel]) -> tuple[str, ...]:
    kind = section.model_fields.get("kind")
    return () if kind is None else get_args(kind.annotation)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _sections_in(argument)
    return found


def _short(value: Any) -> str:
    """A value as TOML writes it, but for long ones and for sections."""
    if isinstance(value, Mapping):
        return "a section" if value else "an empty section"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_short, value[:5]))}{', ...' if len(value) > 5 else ''}]"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
