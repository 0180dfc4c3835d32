"""The frozen base of every configuration section, and the one reader of TOML files.

Unknown keys, wrong types and impossible values become one `ConfigError` that names the file, the path of the key,
what was found and, for an unknown name, the nearest known one.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from recsys.errors import ConfigError, nearest


class Config(BaseModel):
    """A strict, frozen section: unknown keys and coerced types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def parse(cls, tree: Mapping[str, Any], *, where: str) -> Self:
        """The section that a parsed tree describes. `where` (a file name) begins every message."""
        try:
            # TOML arrays fill tuples; every other type stays strict.
            return cls.model_validate(_tuples(tree))
        except ValidationError as error:
            # A misspelt key is why another is missing: it comes first.
            details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
            raise ConfigError(f"{where}: {_sentence(cls, details[0])}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a TOML file. Raises ConfigError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _sentence(cls: type[BaseModel], detail: ErrorDetails) -> str:
    path, _ = _walk(cls, detail["loc"])
    where = ".".join(path) or "top level"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(cls, detail["loc"][:-1])
        hint = nearest(path[-1], known) or (
            f"; known here: {', '.join(sorted(known))}" if known else ""
        )
        return f"unknown key {where!r}{hint}"
    if detail["type"] == "missing":
        return f"{where!r} is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    found = detail.get("input")
    shown = (
        ""
        if isinstance(found, Mapping) or detail["type"] == "value_error"
        else f", found {_short(found)}"
    )
    if detail["type"].startswith("union_tag"):
        context = detail.get("ctx", {})
        tag, known_tags = (
            str(context.get("tag", "")),
            str(context.get("expected_tags", "")).replace("'", "").split(", "),
        )
        return f"{where}.kind: unknown {tag!r}{nearest(tag, known_tags)}; known: {', '.join(known_tags)}"
    return f"{where}: {message}{shown}" if path else message


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
    names_an_entry = False
    for part in map(str, location):
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
        fields = [item.model_fields[part] for item in sections if part in item.model_fields]
        following = [found for info in fields for found in _sections_in(info.annotation)]
        if fields or not chosen:
            stated.append(part)
        sections = following or chosen or sections
        names_an_entry = any(_is_collection(info.annotation) for info in fields)
    return stated, sections


def _is_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, tuple)


def _is_kind(section: type[BaseModel], tag: str) -> bool:
    kind = section.model_fields.get("kind")
    if kind is None:
        # Such a section is tagged by its class.
        return section.__name__ == tag
    return kind.default == tag or tag in getattr(kind.annotation, "__args__", ())


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _sections_in(argument)
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
