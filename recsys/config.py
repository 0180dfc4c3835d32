"""The frozen base of every configuration section, and the one reader of TOML files.

Unknown keys, wrong types and impossible values become one `ConfigError` that names the file, the path of the key,
what was found and, for an unknown name, the nearest known one.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

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
    path = [str(part) for part in detail["loc"]]
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


def _known_keys(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at a path; follows plain sections, mappings and tagged unions of sections."""
    sections: list[type[BaseModel]] = [cls]
    for part in path:
        following: list[type[BaseModel]] = []
        for section in sections:
            info = section.model_fields.get(str(part))
            if info is not None:
                following += _sections_in(info.annotation)
        # A union's tag chooses among the sections found so far; a mapping's key leaves them as they are.
        sections = following or [item for item in sections if _is_kind(item, str(part))] or sections
    fields = [item for section in sections for item in section.model_fields.items()]
    return sorted({info.alias or name for name, info in fields})


def _is_kind(section: type[BaseModel], tag: str) -> bool:
    kind = section.model_fields.get("kind")
    return kind is not None and (
        kind.default == tag or tag in getattr(kind.annotation, "__args__", ())
    )


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
