"""The text of pipeline.toml."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.init import toml
from pipelines.init.columns import Column
from pipelines.init.decided import Decided
from pipelines.init.formats import Found
from pipelines.sources import Csv

_LISTED_FILES = 3


def pipeline_text(decided: Decided, folder: Path) -> str:
    """How raw files become rows; paths are written relative to the folder that the file will stand in."""
    sections = [
        _head(decided),
        _csv(decided),
        *_sources(decided, folder),
        *_joins(decided, folder),
        _timestamps(decided),
        _labels(decided),
        *_filters(decided),
        _history(decided),
        _counters(decided),
        _split(decided),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(decided: Decided) -> list[str]:
    train = decided.split.days[0] if decided.split.days else None
    fit_on: Any = {"from": train[0], "to": train[1]} if train else ["train"]
    return [
        *toml.comment(
            f"How raw files become rows: {decided.rows} of them. Written by `recsys init`; docs/pipeline.md explains "
            "every key. `recsys check` holds the rows against it."
        ),
        "",
        *toml.aligned(
            [
                ("schema_file", "schema.toml", ""),
                ("fit_on", fit_on, "vocabularies and statistics see the training rows only"),
            ]
        ),
    ]


def _csv(decided: Decided) -> list[str]:
    found = decided.tables.rows.files[0]
    if found.csv is None:
        return []
    own = [column for column in decided.tables.columns if column.side is None]
    settings = _csv_settings(found, own)
    lines: list[str] = []
    if not found.csv.header:
        lines += toml.comment(
            "The file has no header: these names stand for its columns, in order. Better ones go here and wherever the "
            "three files name a column."
        )
    entries = [(name, item, "") for name, item in settings.items()]
    return [*lines, "[csv]", *_entries(entries)] if settings else []


def _csv_settings(found: Found, columns: Sequence[Column]) -> dict[str, Any]:
    """What differs from the defaults."""
    assert found.csv is not None
    nulls = dict.fromkeys(["", *(token for column in columns for token in column.nulls)])
    separators = [column.separator for column in columns if column.separator]
    settings = found.csv.model_copy(
        update={"nulls": tuple(nulls), "list_separator": separators[0] if separators else None}
    )
    defaults = Csv().model_dump()
    said = {name: item for name, item in settings.model_dump().items() if item != defaults[name]}
    return {name: list(item) if isinstance(item, tuple) else item for name, item in said.items()}


def _sources(decided: Decided, folder: Path) -> list[list[str]]:
    rows = decided.tables.rows
    rename = _rename([column for column in decided.tables.columns if column.side is None])
    by_split: dict[str, list[Found]] = {}
    shares: dict[str, Any] = {}
    for found in rows.files:
        split = decided.split.of_file.get(found.path)
        by_split.setdefault(repr(split), []).append(found)
        shares[repr(split)] = split
    sections: list[list[str]] = []
    for said, files in by_split.items():
        entries: list[tuple[str, Any, str]] = [
            ("path", _paths(files, folder), ""),
            ("format", files[0].format, ""),
        ]
        entries += [("split", shares[said], "")] if shares[said] is not None else []
        entries += (
            [("rename", rename, "names in the file = names everywhere else")] if rename else []
        )
        sections.append(["[source]" if len(by_split) == 1 else "[[sources]]", *_entries(entries)])
    return sections


def _rename(columns: Sequence[Column]) -> dict[str, str]:
    return {column.file_name: column.name for column in columns if column.file_name != column.name}


def _entries(entries: Sequence[tuple[str, Any, str]]) -> list[str]:
    width = max(len(toml.key(name)) for name, _, _ in entries)
    lines: list[str] = []
    for name, item, note in entries:
        first, *more = toml.entry(name, item)
        key, _, rest = first.partition(" = ")
        lines += [f"{key:<{width}} = {rest}" + (f"  # {note}" if note and not more else ""), *more]
    return lines


def _paths(files: Sequence[Found], folder: Path) -> str | list[str]:
    """Paths from a folder; all files of a kind in another folder as one pattern."""
    paths = [found.path for found in files]
    parent, suffix = paths[0].parent, "".join(paths[0].suffixes[-2:])
    if len(paths) > _LISTED_FILES and suffix and set(parent.glob(f"*{suffix}")) == set(paths):
        return _relative(parent / f"*{suffix}", folder)
    listed = [_relative(path, folder) for path in paths]
    return listed[0] if len(listed) == 1 else listed


def _relative(path: Path, folder: Path) -> str:
    """The path from a folder, or from the root where the two have nothing but that in common."""
    absolute, start = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    shared = Path(os.path.commonpath([absolute, start]))
    return (
        absolute if shared == Path(shared.root) else Path(os.path.relpath(absolute, start))
    ).as_posix()


def _joins(decided: Decided, folder: Path) -> list[list[str]]:
    sections: list[list[str]] = []
    shared = decided.tables.rows.files[0]
    own = [column for column in decided.tables.columns if column.side is None]
    for side in decided.tables.sides:
        files = side.sample.files
        used = [column.name for column in side.columns if column.name in decided.inputs.columns]
        if not used:
            continue
        entries: list[tuple[str, Any, str]] = [
            ("path", _paths(files, folder), ""),
            ("format", files[0].format, ""),
        ]
        if files[0].csv is not None:
            settings = _csv_settings(files[0], side.columns)
            if shared.csv is None or settings != _csv_settings(shared, own):
                entries.append(("csv", settings, ""))
        rename = _rename(side.columns)
        rename |= {side.file_key: side.key} if side.file_key != side.key else {}
        entries += [("rename", rename, "")] if rename else []
        entries += [("on", [side.key], ""), ("columns", used, "")]
        intro = toml.comment(
            f"Each row gets the columns of its {side.key}; a row without a match gets nulls."
        )
        sections.append([*intro, "[[joins]]", *_entries(entries)])
    return sections


def _timestamps(decided: Decided) -> list[str]:
    time = decided.roles.time
    if time is None or time.unit is None:
        return []
    orders = "%d" in time.unit and "%m" in time.unit
    note = "as strptime reads it; see that day and month are not swapped" if orders else ""
    return ["[timestamps]", *toml.aligned([(time.name, time.unit, note)])]


def _labels(decided: Decided) -> list[str]:
    ruled = [label for label in decided.labels if label.rule is not None]
    if not ruled:
        return []
    entries = [(label.task, label.rule, "") for label in ruled]
    return [
        *toml.comment("Labels made of a column; null stays null, which is: not known."),
        "[labels]",
        *toml.aligned(entries),
    ]


def _filters(decided: Decided) -> list[list[str]]:
    return [
        [
            *toml.comment(f"{why[0].upper()}{why[1:]}."),
            "[[filters]]",
            *toml.aligned([(key, item, "") for key, item in rule.items()]),
        ]
        for rule, why in decided.filters
    ]


def _history(decided: Decided) -> list[str]:
    history, time = decided.history, decided.roles.time
    if history is None or time is None:
        return []
    tokens = {history.item_column: history.item.name, history.time_column: time.name}
    entries: list[tuple[str, Any, str]] = [
        ("where", history.where, ""),
        ("max_length", history.max_length, ""),
        ("tokens", tokens, ""),
    ]
    return [
        *toml.comment(
            f"The user's earlier rows with {history.what}: nothing of the row's own time or later is seen. "
            "tokens: the column made here = the column that an event carries."
        ),
        f"[histories.{toml.key(history.name)}]",
        *toml.aligned(entries),
    ]


def _counters(decided: Decided) -> list[str]:
    entries: list[tuple[str, Any, str]] = [
        (
            counter.name,
            {"by": counter.by, **({"where": counter.where} if counter.where else {})},
            "",
        )
        for counter in decided.counters
    ]
    if not entries:
        return []
    why = (
        "How many earlier rows there were, strictly before the row: the rates in [features] are made of them. A caller "
        "of the server sends the counts of that moment."
    )
    return [*toml.comment(why), "[counters]", *toml.aligned(entries)]


def _split(decided: Decided) -> list[str]:
    split = decided.split
    settings: dict[str, Any] = dict(split.settings)
    rules: Mapping[str, Any] = settings.pop("rules", {})
    lines = [*toml.comment(f"{split.why[0].upper()}{split.why[1:]}."), "[split]"]
    lines += toml.aligned([(name, item, "") for name, item in settings.items()])
    if rules:
        lines += [
            "",
            *toml.comment("A row goes to the first split whose rule is true."),
            "[split.rules]",
        ]
        lines += toml.aligned([(name, rule, "") for name, rule in rules.items()])
    return lines
