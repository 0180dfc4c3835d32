"""TOML with comments: the few shapes that a proposal is made of. Readers load what is written here again."""

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH = 116
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def key(name: str) -> str:
    """A key, quoted where it has to be."""
    return name if _BARE.fullmatch(name) else _text(name)


def value(item: Any) -> str:
    """A text, number, boolean, time, list or inline table on one line."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return _text(item)
    if isinstance(item, int):
        return _grouped(item)
    if isinstance(item, float):
        return repr(item)
    if isinstance(item, datetime.datetime | datetime.date):
        return item.isoformat().replace("+00:00", "Z")
    if isinstance(item, Mapping):
        inside = ", ".join(f"{key(name)} = {value(part)}" for name, part in item.items())
        return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(value(part) for part in item)}]"


def comment(text: str) -> list[str]:
    """Lines of a comment, wrapped."""
    lines: list[str] = []
    line = "#"
    for word in _printable(text).split():
        if len(line) + 1 + len(word) > WIDTH and line != "#":
            lines.append(line)
            line = "#"
        line = f"{line} {word}"
    return [*lines, line]


def entry(name: str, item: Any) -> list[str]:
    """`name = value`; a long list stands on several lines."""
    line = f"{key(name)} = {value(item)}"
    if len(line) <= WIDTH or not isinstance(item, list | tuple):
        return [line]
    lines, row = [f"{key(name)} = ["], " "
    for part in item:
        text = f" {value(part)},"
        if len(row) + len(text) > WIDTH:
            lines.append(row)
            row = " "
        row += text
    return [*lines, row, "]"]


def aligned(entries: Iterable[tuple[str, Any, str]]) -> list[str]:
    """Lines `name = value  # comment` with the equal signs, and the comments, below each other."""
    rows = [(key(name), value(item), _printable(note)) for name, item, note in entries]
    names = max((len(name) for name, _, _ in rows), default=0)
    noted = [len(item) for _, item, note in rows if note]
    values = min(max(noted, default=0), 60)
    return [
        f"{name:<{names}} = {item:<{values}}  # {note}" if note else f"{name:<{names}} = {item}"
        for name, item, note in rows
    ]


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _grouped(number: int) -> str:
    """Thousands set apart in numbers of five digits and more."""
    return f"{number:_}" if abs(number) >= 10_000 else str(number)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
