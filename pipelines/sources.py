"""Which files a pipeline names, and how they are written."""

import codecs
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote

from pydantic import Field, field_validator, model_validator

from pipelines.lines import PACKED_SUFFIXES
from recsys.config import Config
from recsys.errors import ConfigError, DataError

Format = Literal["csv", "parquet", "jsonl"]

# What data files of a format are called, when a folder is named; packed ones end in one of PACKED_SUFFIXES besides.
_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "csv": (".csv", ".tsv", ".txt", ".dat", ".data"),
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
}
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Csv(Config):
    """How CSV files are written.

    `names` are needed without a header and replace one that is there. Empty `quote`: quotes mean nothing.
    `list_separator` splits fields of list and map columns, `map_separator` a key from its value.
    """

    header: bool = True
    names: tuple[str, ...] = ()
    delimiter: str = Field(default=",", min_length=1)
    nulls: tuple[str, ...] = ("",)
    strip: bool = False
    quote: str = Field(default='"', max_length=1)
    encoding: str = "utf-8"
    list_separator: str | None = Field(default=None, min_length=1)
    map_separator: str = Field(default=":", min_length=1)

    @model_validator(mode="after")
    def _readable_settings(self) -> Self:
        if not self.header and not self.names:
            raise ValueError(
                "names are needed with header = false; give the columns' names in order"
            )
        if "\n" in self.delimiter or "\r" in self.delimiter:
            raise ValueError(
                "delimiter separates the fields of a line and cannot end it; write another"
            )
        if not self.quote.isascii() or (self.quote and self.quote in self.delimiter):
            raise ValueError(
                f"quote {self.quote!r} cannot enclose fields beside delimiter {self.delimiter!r}; "
                "write an ASCII character that is no part of it, or leave it empty"
            )
        if self.map_separator == self.list_separator:
            raise ValueError(
                f"list_separator and map_separator are both {self.map_separator!r}; give them different ones"
            )
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(
                f"encoding {self.encoding!r} is unknown; write one such as utf-8 or latin-1"
            ) from error
        twice = repeated(self.names)
        if twice is not None:
            raise ValueError(f"names lists {twice!r} twice; give each column a name of its own")
        return self


class FileSet(Config):
    """Files of one format. `rename` maps a column's name in the file to the one used everywhere else."""

    path: tuple[str, ...] = Field(min_length=1)
    format: Format
    csv: Csv | None = None
    rename: dict[str, str] = {}

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_several(cls, path: Any) -> Any:
        return (path,) if isinstance(path, str) else path

    @model_validator(mode="after")
    def _csv_for_csv(self) -> Self:
        if self.csv is not None and self.format != "csv":
            raise ValueError(f"csv = ... describes CSV files, and format is {self.format!r}")
        return self


class Source(FileSet):
    """Files whose rows are impressions. `split` is for a split by file: a name, or names with shares."""

    split: str | dict[str, float] | None = None


@dataclass(frozen=True)
class DataFile:
    """One file. `index` numbers the files of all sources; `split` is what its source says.

    `folders` are the columns that names of folders such as `day=2026-01-01` state, as text.
    """

    path: Path
    index: int
    format: Format
    csv: Csv | None
    rename: dict[str, str]
    split: str | dict[str, float] | None = None
    folders: dict[str, str | None] = field(default_factory=dict)

    def renamed(self, name: str) -> str:
        """The name used everywhere else for a column of the file."""
        return self.rename.get(name, name)

    def original(self, name: str) -> str:
        """The name that the file has for a column."""
        return next((old for old, new in self.rename.items() if new == name), name)


def find_files(
    sources: Sequence[FileSet], *, folder: Path, shared_csv: Csv, where: str
) -> tuple[DataFile, ...]:
    """The files that sources name, in reading order. Raises ConfigError or DataError naming what is missing."""
    found: list[DataFile] = []
    for source in sources:
        settings = (source.csv or shared_csv) if source.format == "csv" else None
        split = source.split if isinstance(source, Source) else None
        for path in _paths(source, folder, where):
            file = DataFile(
                path, len(found), source.format, settings, source.rename, split, _folders(path)
            )
            found.append(file)
    # One file may have several names: a link, or a path through "..".
    real = [os.path.realpath(file.path) for file in found]
    twice = repeated(real)
    if twice is not None:
        path = found[real.index(twice)].path
        raise ConfigError(f"{where}: file {path} is named twice; its rows would count double")
    return tuple(found)


def _paths(source: FileSet, folder: Path, where: str) -> Iterator[Path]:
    for pattern in source.path:
        path = folder / _substituted(pattern, where)
        if "*" not in pattern and "?" not in pattern:
            if not path.exists():
                raise DataError(f"{path}: no such file; {where} names it as {pattern!r}")
            matches = [path]
        else:
            # A bracket is one: only * and ? match anything else than themselves.
            matches = [Path(match) for match in sorted(glob.glob(str(path).replace("[", "[[]")))]
            if not matches:
                raise DataError(
                    f"{path}: no file matches this pattern; {where} names it as {pattern!r}"
                )
        for match in matches:
            if match.is_dir():
                yield from _within(match, source.format, where)
            else:
                yield match


def _within(folder: Path, format_: Format, where: str) -> Iterator[Path]:
    """The data files of a format in a folder and the folders below it, by name; hidden ones and `_SUCCESS` left out."""
    inside = [path.relative_to(folder) for path in _below(folder)]
    found = sorted(path for path in inside if _is_data(path, format_))
    if not found:
        suffixes = ", ".join(f"*{suffix}" for suffix in _SUFFIXES[format_])
        others = f"; it holds {min(inside)}" if inside else ", and no other file"
        raise DataError(
            f"{folder}: the folder holds no {format_} file ({suffixes}){others}; "
            f"name the files in {where}, such as {str(folder / '*')!r}"
        )
    yield from (folder / path for path in found)


def _below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, through links to folders too, but for those that lead back up."""
    for place, folders, names in os.walk(folder, followlinks=True):
        above = {os.path.realpath(place), *map(str, Path(os.path.realpath(place)).parents)}
        folders[:] = [name for name in folders if os.path.realpath(Path(place, name)) not in above]
        yield from (Path(place, name) for name in names)


def _is_data(path: Path, format_: Format) -> bool:
    if any(part.startswith((".", "_")) for part in path.parts):
        return False
    name = path.name.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(_SUFFIXES[format_])


def _folders(path: Path) -> dict[str, str | None]:
    """What folders above a file state, as Hive writes it: `day=2026-01-01`."""
    stated = [part.partition("=") for part in path.parent.parts]
    return {
        name: None if value == _NULL_PARTITION else unquote(value)
        for name, equals, value in stated
        if name and equals
    }


def _substituted(pattern: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise ConfigError(
                f"{where}: path {pattern!r} needs the environment variable {name}, which is not set; "
                f"set it to the folder that holds the data, such as: export {name}=/path/to/data"
            )
        return os.environ[name]

    return _VARIABLE.sub(value, pattern)


def repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
