"""Which of the given files hold the rows, and which are tables beside them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipelines.init import names
from pipelines.init.columns import Column, columns_of
from pipelines.init.formats import Found, expand, look_at
from pipelines.init.sample import Sample, sample
from pipelines.joins import side_table
from recsys.errors import DataError
from recsys.raw import one_array
from recsys.schema import ARROW_TYPES

_SIDE_ROWS = 4_000_000


@dataclass(frozen=True)
class SideTableFound:
    """A table whose rows are found by `key`, the name of the rows' column; `columns` are what it adds."""

    sample: Sample
    key: str
    file_key: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Tables:
    """The rows, their columns (joined ones last), and the tables beside them."""

    rows: Sample
    columns: tuple[Column, ...]
    sides: tuple[SideTableFound, ...]


def read_tables(files: Sequence[Path], *, times: Collection[str] = ()) -> Tables:
    """The files' columns over a sample of rows; `times` are columns known to hold times.

    Raises DataError naming the file that does not belong."""
    groups: dict[frozenset[str], list[Found]] = {}
    for found in map(look_at, expand(files)):
        groups.setdefault(frozenset(found.columns), []).append(found)
    samples = [sample(group) for group in groups.values()]
    main = max(samples, key=lambda item: item.rows)
    if main.rows == 0:
        raise DataError(
            f"{main.files[0].path}: holds no rows below its header; give a file with rows"
        )
    columns = columns_of(main, times=times)
    sides: list[SideTableFound] = []
    for other in samples:
        if other is not main:
            side, columns = _beside(other, main, columns, number=len(sides))
            sides.append(side)
    return Tables(main, tuple(columns), tuple(sides))


def _beside(
    other: Sample, main: Sample, columns: list[Column], *, number: int
) -> tuple[SideTableFound, list[Column]]:
    """A side table, and the rows' columns with its own, found by a key that is unique there."""
    path = other.files[0].path
    if not (other.files[0].has_names and main.files[0].has_names):
        raise DataError(
            f"{path}: has other columns than {main.files[0].path}, and without headers nothing says how the two belong "
            "together; give one of them, and add the other to pipeline.toml under [[joins]]"
        )
    if not other.is_whole:
        other = sample(other.files, limit=_SIDE_ROWS)
    own = columns_of(other)
    pair = next(iter(_key_pairs(columns, own)), None)
    if pair is None:
        raise DataError(_stranger(other.files[0], main.files[0]))
    return _joined(other, pair, columns, own, number=number)


def _stranger(found: Found, main: Found) -> str:
    """What to say of a file that is neither more rows nor a side table."""
    shared = set(found.columns) & set(main.columns)
    if 2 * len(shared) >= len(main.columns):
        more, fewer = set(found.columns) - shared, set(main.columns) - shared
        said = [f"has {', '.join(sorted(more)[:5])}"] if more else []
        said += [f"lacks {', '.join(sorted(fewer)[:5])}"] if fewer else []
        return f"{found.path}: {' and '.join(said)}, unlike {main.path}; leave it out, or give files of equal columns"
    return (
        f"{found.path}: has other columns than {main.path}, and no column that both have names its rows one by one, "
        "as a side table's key does; leave it out"
    )


def _key_pairs(columns: Sequence[Column], own: Sequence[Column]) -> list[tuple[Column, Column]]:
    """Columns of the same name (written in any way) that hold ids, unique in the side table."""
    by_words = {
        names.joined(column.file_name): column
        for column in columns
        if column.is_id and column.side is None
    }
    pairs = [
        (by_words[names.joined(item.file_name)], item)
        for item in own
        if names.joined(item.file_name) in by_words
    ]
    return [
        (column, item)
        for column, item in pairs
        if item.is_id
        and item.distinct == len(item.values) - item.values.null_count
        and (column.dtype == "string") == (item.dtype == "string")
    ]


def _joined(
    other: Sample,
    pair: tuple[Column, Column],
    columns: list[Column],
    own: Sequence[Column],
    *,
    number: int,
) -> tuple[SideTableFound, list[Column]]:
    key, side_key = pair
    dtype = _wider(key.dtype or "", side_key.dtype or "")
    columns = [
        replace(column, dtype=dtype, values=column.values.cast(ARROW_TYPES[dtype]))
        if column is key
        else column
        for column in columns
    ]
    key = next(column for column in columns if column.name == key.name)
    taken = {column.name for column in columns}
    added: list[Column] = []
    for column in own:
        if column is side_key:
            continue
        name = names.clean(column.name, taken | {item.name for item in added})
        added.append(replace(column, name=name, own_repetition=column.repetition))
    usable = [column for column in added if column.dtype is not None]
    rows = pa.table(
        [side_key.values.cast(ARROW_TYPES[dtype]), *(column.values for column in usable)],
        names=[key.name, *(column.name for column in usable)],
    )
    table, _ = side_table(str(other.files[0].path), rows, on=[key.name]).join(
        pa.table({key.name: key.values})
    )
    joined = [
        replace(column, values=one_array(table.column(column.name)), rows=key.rows, side=number)
        for column in usable
    ]
    return SideTableFound(other, key.name, side_key.file_name, tuple(joined)), [*columns, *joined]


def _wider(one: str, other: str) -> str:
    order = ("bool", "int8", "int16", "int32", "int64")
    return max(one, other, key=order.index) if {one, other} <= set(order) else one
