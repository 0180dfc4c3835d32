"""A tiny pipeline on disk: a log of impressions, its schema and its pipeline file, each to be changed by a test."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.plan import Plan, load_plan
from pipelines.rows import RowReader, Rows, Tally, open_rows

SCHEMA = """
[columns]
user = "string"
item = "int64"
price = "float32"
shown_at = "timestamp"
clicked = "bool"

[keys]
user = "user"
item = "item"
time = "shown_at"

[tables]
user = { rows = 100 }
item = { rows = 100 }

[features]
user = { kind = "categorical", table = "user", side = "user" }
item = { kind = "categorical", table = "item" }
price = { kind = "numeric" }

[tasks]
click = { label = "clicked" }
"""

PIPELINE = """
schema_file = "schema.toml"

[source]
path = "log.csv"
format = "csv"

[split]
by = "hash"
parts = { train = 0.5, test = 0.5 }
"""

CSV = """user,item,price,shown_at,clicked
ann,1,2.5,2026-10-01T10:00:00Z,1
bob,2,,2026-10-01T11:00:00Z,0
ann,2,3.5,2026-10-02T09:00:00Z,1
"""


@dataclass
class SmallPipeline:
    """Files of a pipeline under one folder."""

    folder: Path
    schema: str = SCHEMA
    pipeline: str = PIPELINE
    files: dict[str, str | bytes | pa.Table] = field(default_factory=lambda: {"log.csv": CSV})

    @property
    def path(self) -> Path:
        return self.folder / "pipeline.toml"

    def write(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "schema.toml").write_text(self.schema)
        self.path.write_text(self.pipeline)
        for name, content in self.files.items():
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, pa.Table):
                pq.write_table(content, target)
            elif isinstance(content, bytes):
                target.write_bytes(content)
            else:
                target.write_text(content)
        return self.path

    def plan(self) -> Plan:
        return load_plan(self.write())

    def reader(self) -> RowReader:
        return open_rows(self.plan()).with_histories()

    def batches(self, tally: Tally | None = None) -> list[Rows]:
        reader = self.reader()
        counted = Tally() if tally is None else tally
        return [rows for part in reader.parts for rows in reader.read(part, counted)]

    def rows(self) -> list[dict[str, Any]]:
        """All rows as the encoder would get them, in order."""
        found: list[dict[str, Any]] = []
        for rows in self.batches():
            found += rows.table.to_pylist()
        return found
