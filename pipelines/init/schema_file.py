"""The text of schema.toml."""

from typing import Any

from pipelines.init import toml
from pipelines.init.columns import Column
from pipelines.init.decided import Decided
from pipelines.init.labels import Label


def schema_text(decided: Decided) -> str:
    """What the data is: columns, keys, tables, features, sequences, tasks."""
    sections = [
        _head(decided),
        _columns(decided),
        _keys(decided),
        _tables(decided),
        _features(decided),
        *_brought(decided),
        _sequence(decided),
        _tasks(decided),
        _left_out(decided),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def declared(decided: Decided) -> dict[str, tuple[str, str]]:
    """Every column that the schema declares: its dtype, and a comment."""
    roles, inputs = decided.roles, decided.inputs
    used = [column.name for column in roles.named.values()] + list(inputs.columns)
    ruled = [label.column.name for label in decided.labels if label.column.dtype != "string"]
    used += [side.key for side in decided.tables.sides]
    found: dict[str, tuple[str, str]] = {}
    for column in decided.tables.columns:
        if column.name in used or column.name in ruled:
            assert column.dtype is not None, "only columns with a dtype get a role or a feature"
            found[column.name] = (column.dtype, _column_note(column))
    history = decided.history
    if history is not None:
        found[history.item_column] = (history.item_dtype, "made by [histories] in pipeline.toml")
        found[history.time_column] = ("list<timestamp>", "")
    for counter in decided.counters:
        found[counter.name] = ("int64", "made by [counters] in pipeline.toml")
    for label in decided.labels:
        if label.rule is not None:
            found[label.name] = ("bool", "made by [labels] in pipeline.toml")
    return found


def _head(decided: Decided) -> list[str]:
    return toml.comment(
        "What the data is; pipelines, training and the server share it. Written by `recsys init` from a look at "
        f"{'all' if decided.tables.rows.is_whole else 'some'} of the rows: read it, and change what is wrong. "
        "docs/schema.md explains every key."
    )


def _column_note(column: Column) -> str:
    if column.note:
        return column.note
    if column.is_list:
        return (
            f"lists of {'' if column.is_whole else 'at least '}{column.distinct} different values"
        )
    parts = [f"{'' if column.is_whole else 'at least '}{column.distinct} values"]
    if column.dtype == "timestamp":
        low, high = column.bounds
        parts = [f"{low:%Y-%m-%d %H:%M} to {high:%Y-%m-%d %H:%M}"]
    elif column.is_number and column.distinct > 2:
        low, high = column.bounds
        parts.append(f"{low:g} to {high:g}" if isinstance(low, float) else f"{low} to {high}")
    elif column.distinct <= 3:
        parts = [", ".join(str(value)[:30] for value in column.by_frequency)]
    if column.null_share:
        parts.append(
            f"{column.null_share:.1%} null" if column.null_share >= 0.001 else "a few nulls"
        )
    return "; ".join(parts)


def _columns(decided: Decided) -> list[str]:
    entries = [(name, dtype, note) for name, (dtype, note) in declared(decided).items()]
    return ["[columns]", *toml.aligned(entries)]


def _keys(decided: Decided) -> list[str]:
    notes = {
        "user": "whose row it is: GAUC is the AUC within users",
        "item": "what is ranked",
        "time": "when it was shown",
        "impression": "names the row",
        "sample_weight": "in the loss and in every metric",
    }
    entries = [(role, column.name, notes[role]) for role, column in decided.roles.named.items()]
    return ["[keys]", *toml.aligned(entries)] if entries else []


def _tables(decided: Decided) -> list[str]:
    tables = decided.inputs.tables
    if not tables:
        return []
    entries = [
        (name, {"rows": table.rows, "dim": table.dim}, table.note) for name, table in tables.items()
    ]
    return [
        *toml.comment(
            "Embedding tables: a row a value, two reserved ones, and room for values to come."
        ),
        "[tables]",
        *toml.aligned(entries),
    ]


def _features(decided: Decided) -> list[str]:
    lines = toml.comment(
        'What the model reads. side: "user" for what a request carries once, "candidate" (the default) for what each '
        "candidate has."
    )
    entries: list[tuple[str, Any, str]] = [
        (name, settings, "") for name, settings in decided.inputs.features.items()
    ]
    entries += [
        (name, {"kind": "date_part", "part": part}, "UTC")
        for name, part in decided.time_parts.items()
    ]
    return [*lines, "[features]", *toml.aligned(entries)]


def _brought(decided: Decided) -> list[list[str]]:
    """Sequences that the rows bring along."""
    return [
        [
            *toml.comment(
                "Earlier events that each row brings along: lists of equal length, oldest event first."
            ),
            f"[sequences.{toml.key(name)}]",
            *toml.aligned([(key, item, "") for key, item in settings.items()]),
        ]
        for name, settings in decided.inputs.sequences.items()
    ]


def _sequence(decided: Decided) -> list[str]:
    history = decided.history
    if history is None:
        return []
    return [
        *toml.comment(
            f"The user's last items with {history.what}, strictly before the row; oldest first."
        ),
        f"[sequences.{toml.key(history.name)}]",
        *toml.aligned(
            [
                ("item", {"table": history.item_table}, ""),
                ("age", {"kind": "time_gap"}, "how long ago"),
                ("max_length", history.max_length, ""),
                ("target", {"item": history.item_feature}, "compared with the candidate"),
            ]
        ),
    ]


def _tasks(decided: Decided) -> list[str]:
    entries: list[tuple[str, Any, str]] = []
    for label in decided.labels:
        settings: dict[str, Any] = {"label": label.name}
        settings |= {"given": label.given} if label.given else {}
        settings |= {"kind": label.kind} if label.kind == "regression" else {}
        entries.append((label.task, settings, said_rate(label)))
    lines = ["[tasks]", *toml.aligned(entries)]
    if any(label.given for label in decided.labels):
        why = "given: every row with the one has the other too, so p(this) = p(given) p(this | given)."
        lines = [*toml.comment(why), *lines]
    return lines


def said_rate(label: Label) -> str:
    """How often a label is 1, or the mean of a regression's."""
    if label.kind == "regression":
        return f"mean {label.rate:.4g}"
    return f"{label.rate:.2%} of the rows" if label.rate < 0.1 else f"{label.rate:.1%} of the rows"


def _left_out(decided: Decided) -> list[str]:
    left_out = decided.inputs.left_out
    if not left_out:
        return []
    dtypes = {column.name: column.dtype for column in decided.tables.columns}
    lines = toml.comment(
        "Left out. To use one after all, declare it under [columns] and read it in [features]:"
    )
    for name, reason in left_out.items():
        lines += toml.comment(f"- {name} ({dtypes.get(name) or 'no dtype'}): {reason}")
    return lines
