"""What a feature may not say of the columns and tables around it, kind by kind; `recsys.schema_rules` asks."""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from recsys.errors import nearest
from recsys.features import (
    BagFeature,
    BucketFeature,
    CrossFeature,
    DatePartFeature,
    Feature,
    IdFeature,
    LookupFeature,
    MultiValuedFeature,
    OneColumn,
    OverlapFeature,
    OwnTableFeature,
    TextFeature,
    VectorFeature,
)
from recsys.schema_sections import ARROW_TYPES, Table

INTEGERS = ("bool", "int8", "int16", "int32", "int64")
NUMBERS = (*INTEGERS, "float32", "float64")
IDS = (*INTEGERS, "string")
ID_LISTS = ("list<int64>", "list<string>")
_MAPS = ("map<string,float32>", "map<int64,float32>")


def column_problem(
    columns: Mapping[str, str], name: str, where: str, dtypes: tuple[str, ...]
) -> Iterator[str]:
    """The sentence for a column that is not declared, or not one of these dtypes."""
    found = columns.get(name)
    if found is None:
        fitting = [column for column, dtype in columns.items() if dtype in dtypes]
        hint = nearest(name, fitting) or nearest(name, columns)
        remedy = hint or "; declare it, or name another"
        yield f"{where} names column {name!r}, which [columns] does not declare{remedy}"
    elif found not in dtypes:
        wanted = f"one of {', '.join(dtypes)}" if len(dtypes) > 1 else dtypes[0]
        yield f"{where} needs column {name!r} to be {wanted}, found {found}; name another, or declare it so"


def unknown_table(tables: Mapping[str, Table], table: str, where: str) -> str:
    return f"{where} names table {table!r}, which [tables] does not declare{nearest(table, tables) or '; declare it'}"


def family(dtype: str) -> str:
    """What kind of ids a column of a dtype holds."""
    return "string" if "string" in dtype else "integer"


def feature_problems(
    name: str, item: Feature, columns: Mapping[str, str], tables: Mapping[str, Table]
) -> Iterator[str]:
    """One sentence for each thing that is wrong with a feature."""
    where = f"features.{name}"
    yield from _column_problems(item, columns, where)
    if isinstance(item, IdFeature | BagFeature) and item.table not in tables:
        yield unknown_table(tables, item.table, where)
    if isinstance(item, OwnTableFeature) and name in tables:
        kind = "bucket" if isinstance(item, BucketFeature) else "date_part"
        yield f"{where}: a {kind} feature brings its own table, and [tables] declares {name!r} too; rename one"
    if isinstance(item, OneColumn):
        dtype = columns.get(item.column)
        if item.value is not None and dtype is not None:
            yield from _value_problem(dtype, item.column, item.value, where)
    else:
        yield from _user_column_problems(item.side, item.user_columns, item.columns, where)


def _column_problems(item: Feature, columns: Mapping[str, str], where: str) -> Iterator[str]:
    if isinstance(item, DatePartFeature) and not item.column:
        yield f"{where} is a part of the row's time, which [keys] does not name; add keys.time or column = ..."
        return
    for column in item.columns:
        yield from column_problem(columns, column, where, _dtypes(item, column, columns))
    if isinstance(item, CrossFeature | OverlapFeature) and len(set(item.columns)) < len(
        item.columns
    ):
        yield f"{where} names a column twice; name different columns"
    if isinstance(item, OverlapFeature):
        yield from _unlike(item.columns, columns, where, "compare ids of one type")


def _dtypes(item: Feature, column: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The dtypes that a feature takes in one of its columns."""
    match item:
        case MultiValuedFeature():
            return ("list<float32>",) if column == item.weights else ID_LISTS
        case LookupFeature():
            if column == item.column:
                return _MAPS
            return INTEGERS if columns.get(item.column) == "map<int64,float32>" else ("string",)
        case OverlapFeature():
            return IDS + ID_LISTS
        case VectorFeature():
            return ("list<float32>",)
        case TextFeature():
            return ("string",)
        case DatePartFeature():
            return ("timestamp",)
        case _:
            return IDS if isinstance(item, IdFeature) else NUMBERS


def _unlike(
    names: tuple[str, ...], columns: Mapping[str, str], where: str, remedy: str
) -> Iterator[str]:
    families = {family(columns.get(name, "")): name for name in reversed(names)}
    if len(families) > 1:
        found = " and ".join(f"{name!r} ({kind})" for kind, name in families.items())
        yield f"{where} reads columns {found}; {remedy}"


def _user_column_problems(
    side: str, user_columns: tuple[str, ...], known: tuple[str, ...], where: str
) -> Iterator[str]:
    for column in user_columns:
        if column not in known:
            yield f"{where}.user_columns names {column!r}, which the feature does not read{nearest(column, known)}"
    if user_columns and side != "candidate":
        yield f'{where}: all columns of a feature of side = "{side}" come once a request; remove user_columns'


def _value_problem(
    dtype: str, column: str, value: bool | int | float | str, where: str
) -> Iterator[str]:
    if "<" in dtype:
        # Arrow would take a text for the list of its characters.
        yield (
            f"{where}: column {column!r} is {dtype}, and a fixed value is one number or text; "
            "take serve and value out"
        )
        return
    try:
        pa.scalar(value, ARROW_TYPES[dtype])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        yield f"{where}: value {value!r} does not fit column {column!r} of type {dtype}; write one of that type"
