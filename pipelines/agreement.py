"""Whether the files of a source have the columns that are needed, once each and of one family of types."""

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.files import column_names, occurs_twice, parquet_schema
from pipelines.jsonl_files import has_key
from pipelines.sources import DataFile
from recsys.errors import DataError, nearest

_REMEDY = "correct [columns] or the rule that names it, rename a column, or add a join"


def require_columns(
    files: Sequence[DataFile], needed: Sequence[str], *, remedy: str = _REMEDY
) -> None:
    """Nothing, when every file has all needed columns, in whatever order and among whatever others.

    A key that some JSON lines lack is null there, so one file of a format may go without. Raises DataError naming the
    file and the column that is missing, occurs twice, or is of another type than in another file.
    """
    owned = [(file, column_names(file)) for file in files]
    for name in needed:
        owners = [file for file, names in owned if name in names]
        for file, names in owned:
            if names.count(name) > 1:
                raise occurs_twice(file, name)
            if name not in names and not _is_rare_key(file, name, owners):
                raise _missing(file, name, names, owners, remedy)
    if len(files) > 1:
        _require_one_type([file for file in files if file.format == "parquet"], needed)


def _is_rare_key(file: DataFile, name: str, owners: Sequence[DataFile]) -> bool:
    """Whether a key that the first lines of a file lack stands further on, or in other JSON lines."""
    if file.format != "jsonl":
        return False
    return any(owner.format == "jsonl" for owner in owners) or has_key(file, file.original(name))


def _missing(
    file: DataFile, name: str, names: Sequence[str], owners: Sequence[DataFile], remedy: str
) -> DataError:
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    elsewhere = f" as {owners[0].path} has it" if owners else ""
    return DataError(
        f"{file.path}: no column {name!r}{elsewhere}{nearest(name, names)}; the file has {listed}; "
        + (_other_delimiter(names) or remedy)
    )


def _other_delimiter(names: Sequence[str]) -> str:
    """What to do about a header that is one column only because other characters separate its names."""
    found = next(
        (sign for sign in (";", "\t", "|", ",") if len(names) == 1 and sign in names[0]), ""
    )
    return f"say delimiter = {json.dumps(found)} under [csv]" if found else ""


def _require_one_type(files: Sequence[DataFile], needed: Sequence[str]) -> None:
    first: dict[str, tuple[DataFile, pa.DataType]] = {}
    for file in files:
        for name, found in _types(file):
            if name not in needed or _family(found) is None:
                continue
            other, known = first.setdefault(name, (file, found))
            if _family(found) != _family(known):
                raise DataError(
                    f"{file.path}: column {name!r} is {found}, and {known} in {other.path}; "
                    "write both files alike, or give each a source of its own with another rename"
                )


def _types(file: DataFile) -> Iterator[tuple[str, pa.DataType]]:
    for field in parquet_schema(file):
        yield file.renamed(field.name), field.type


def _family(found: pa.DataType) -> str | None:
    """What types convert into one another, None for those that may stand beside any: times, and nothing but nulls."""
    types = pa.types
    if types.is_dictionary(found):
        return _family(found.value_type)
    if types.is_null(found) or types.is_temporal(found):
        return None
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        return (
            "map" if types.is_struct(found.value_type) else f"list of {_family(found.value_type)}"
        )
    if types.is_map(found) or types.is_struct(found):
        return "map"
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return "text"
    if types.is_boolean(found) or types.is_decimal(found):
        return "number"
    return "number" if types.is_integer(found) or types.is_floating(found) else str(found)
