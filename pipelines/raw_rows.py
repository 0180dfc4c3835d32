"""The raw rows that a pipeline encodes: typed, joined, labelled, with histories, as a server would be sent them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.plan import load_plan
from pipelines.rows import RowReader, Tally, open_rows
from recsys.errors import DataError, nearest


@dataclass(frozen=True)
class WrittenRows:
    """How many raw rows went into which file."""

    path: Path
    rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    def render(self) -> str:
        return f"{self.path}: {self.rows:,} raw rows"


def write_rows(
    pipeline: Path, out: Path, *, days: Sequence[str] | None = None, limit: int | None = None
) -> WrittenRows:
    """Write a pipeline's raw rows, in the order of its files, to one Parquet file; with `days` only theirs.

    They hold every column of the schema, labels too: what `recsys score` reads, beside what happened.
    Raises ConfigError or DataError (naming file, row and column).
    """
    plan = load_plan(pipeline)
    tables = _Tables(open_rows(plan).with_histories(), days, limit)
    partial = out.with_name(f".{out.name}.partial")
    schema = plan.schema.raw_arrow(labels=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
        tables.require_days(pipeline)
        os.replace(partial, out)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return WrittenRows(out, tables.rows)


@dataclass
class _Tables:
    """Tables of the days asked for until the limit is reached; remembers which days it met."""

    reader: RowReader
    days: Sequence[str] | None
    limit: int | None
    rows: int = 0
    met: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[pa.Table]:
        for part in self.reader.parts:
            for batch in self.reader.read(part, Tally()):
                self.met.update(batch.assigned.names)
                table = batch.of(self._asked_for).table
                taken = table if self.limit is None else table.slice(0, self.limit - self.rows)
                self.rows += taken.num_rows
                yield taken
                if self.rows == self.limit:
                    return

    def _asked_for(self, name: str) -> bool:
        return self.days is None or name in self.days

    def require_days(self, pipeline: Path) -> None:
        if self.rows == self.limit:
            return
        for day in self.days or ():
            if day not in self.met:
                raise DataError(
                    f"{pipeline}: {day!r} has no rows{nearest(day, self.met)}; check the source and the filters"
                )
