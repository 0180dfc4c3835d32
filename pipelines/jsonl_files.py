"""JSON lines as tables: one object a line, absent keys null.

pyarrow's reader does the work where a block of lines is plain; whatever it cannot read, or reads more leniently than
JSON (two objects on a line, NaN), is read line by line, which also finds the row of an error.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json

from pipelines.json_columns import json_array, json_type
from pipelines.lines import ByteRange, count_rows, cut_ranges, is_packed, line_blocks
from pipelines.sources import DataFile
from recsys.errors import DataError

_SAMPLE_ROWS = 1_000
_TYPED_BY_ROWS = 20


def jsonl_names(file: DataFile) -> tuple[str, ...]:
    """Names of the keys in the first rows of a file, in the order in which they are met."""
    names: dict[str, None] = {}
    block = next(line_blocks(file.path), b"")
    for value in _objects(file, block, 0, stop=_SAMPLE_ROWS):
        names.update(dict.fromkeys(value))
    return tuple(names)


def has_key(file: DataFile, name: str) -> bool:
    """Whether a name stands anywhere in a file: a rare key may be absent from its first rows."""
    quoted = (json.dumps(name).encode(), json.dumps(name, ensure_ascii=False).encode())
    return any(key in block for block in line_blocks(file.path) for key in quoted)


def jsonl_ranges(file: DataFile, *, part_bytes: int) -> list[ByteRange] | None:
    """The ranges of whole lines that a file can be read in, None when it is small or packed."""
    if is_packed(file.path) or file.path.stat().st_size <= part_bytes:
        return None
    return cut_ranges(file.path, part_bytes=part_bytes, count=count_rows)


def read_jsonl(
    file: DataFile,
    wanted: Sequence[str],
    *,
    within: ByteRange | None = None,
    declared: Mapping[str, pa.DataType],
) -> Iterator[pa.Table]:
    """Tables of the wanted keys. `declared` types decide which kinds of values are right, not the types of the tables.

    Raises DataError naming the row, and what is wrong with it.
    """
    row = 0 if within is None else within.first_row
    for block in line_blocks(file.path, within):
        table = _plain_block(block, wanted, declared)
        if table is None:
            table = _any_block(file, block, wanted, first_row=row, declared=declared)
        yield _without_made_up_types(table)
        row += table.num_rows


def _without_made_up_types(table: pa.Table) -> pa.Table:
    """A column without any value is of no type, however it was read."""
    for place, name in enumerate(table.column_names):
        if table.num_rows and table.column(name).null_count == table.num_rows:
            table = table.set_column(place, name, pa.nulls(table.num_rows))
    return table


def _plain_block(
    block: bytes, wanted: Sequence[str], declared: Mapping[str, pa.DataType]
) -> pa.Table | None:
    """A block read by pyarrow; None where that could fail, or could mean something else than JSON."""
    if not wanted or b"NaN" in block or b"Infinity" in block or not _is_utf8(block):
        return None
    types = _sampled_types(block, wanted, declared)
    if types is None:
        return None
    try:
        table = pa.json.read_json(
            pa.BufferReader(block),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pa.json.ParseOptions(
                explicit_schema=types, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowException:
        return None
    return table.select(list(wanted)) if table.num_rows == count_rows(block) else None


def _sampled_types(
    block: bytes, wanted: Sequence[str], declared: Mapping[str, pa.DataType]
) -> pa.Schema | None:
    """Types that the first rows of a block speak for. None when they are no plain JSON, or hold what pyarrow cannot."""
    try:
        sample = [
            _DECODER.decode(line.decode())
            for line in block.split(b"\n", _TYPED_BY_ROWS)[:_TYPED_BY_ROWS]
            if line.strip()
        ]
        types = {
            name: json_type([value.get(name) for value in sample], declared.get(name))
            for name in wanted
        }
    except (ValueError, AttributeError, DataError):
        return None
    filled = {name: found or declared.get(name) or pa.string() for name, found in types.items()}
    if any(pa.types.is_map(found) for found in filled.values()):
        return None
    return pa.schema([(name, _json_form(found)) for name, found in filled.items()])


def _json_form(found: pa.DataType) -> pa.DataType:
    """How JSON writes a declared type of which the sample has no value: times as text, integers of any width."""
    if pa.types.is_list(found):
        return pa.list_(_json_form(found.value_type))
    if pa.types.is_timestamp(found):
        return pa.string()
    if pa.types.is_integer(found):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(found) else found


def _any_block(
    file: DataFile,
    block: bytes,
    wanted: Sequence[str],
    *,
    first_row: int,
    declared: Mapping[str, pa.DataType],
) -> pa.Table:
    values = list(_objects(file, block, first_row))
    arrays: list[pa.Array] = []
    for name in wanted:
        try:
            arrays.append(json_array([value.get(name) for value in values], declared.get(name)))
        except DataError as error:
            row = first_row + (error.row or 0) + 1
            where = f"{file.path}, row {row}, column {file.renamed(name)!r}"
            raise DataError(f"{where}: {error.problem}") from error
    if not wanted:
        return pa.table({"": pa.nulls(len(values))}).select([])
    return pa.table(arrays, names=list(wanted))


def _objects(
    file: DataFile, block: bytes, first_row: int, *, stop: int | None = None
) -> Iterator[dict[str, Any]]:
    """The object of each line that is not blank. Raises DataError naming the row of one that is no object."""
    row = first_row
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        row += 1
        if stop is not None and row > stop:
            return
        where = f"{file.path}, row {row}"
        try:
            value = _DECODER.decode(line.decode())
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: {_not_utf8(line)}; write the file as UTF-8") from error
        except json.JSONDecodeError as error:
            if line.lstrip().startswith(b"["):
                raise DataError(f"{where}: found {_excerpt(line)}; {_no_object([])}") from error
            raise DataError(
                f"{where}: not JSON ({error.msg} at character {error.pos + 1}), found {_excerpt(line)}; "
                "each line must be one JSON object"
            ) from error
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: found {_excerpt(line)}; {_no_object(value)}")
        yield value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} occurs twice in one object; keep one of the two")
    return found


def _no_constant(literal: str) -> Any:
    raise ValueError(f"{literal} is no JSON; write null for a missing value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _no_object(value: Any) -> str:
    if isinstance(value, list):
        return "the file is one JSON list; write one object a line (jq -c '.[]' FILE > FILE.jsonl)"
    return "each line must be one JSON object"


def _not_utf8(line: bytes) -> str:
    if b"\x00" in line:
        return "the text looks like UTF-16, and JSON lines are UTF-8"
    return "the line is not UTF-8"


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _excerpt(line: bytes) -> str:
    text = line.strip().decode(errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
