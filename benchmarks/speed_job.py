"""The reference job of docs/speed.md: published days of Zipf-distributed ids with a planted signal, and its experiment.

    python benchmarks/speed_job.py FOLDER [--fields 26] [--table-rows 10000] [--tasks 2] [--rows 327680]

Rank r of a table's ids is drawn with a probability of about 1 / r. A task's logit is the sum over fields of a normal
value that belongs to the id, so a model that learns its ids well has the higher AUC. `job.json` tells the peers what
the experiment tells us.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.encode import Encoder
from recsys.experiment import Experiment
from recsys.fitting import fit
from recsys.layout import encoded_arrow, label_column, observed_column
from recsys.publish import publication
from recsys.schema import Schema

EXPERTS, EXPERT_HIDDEN, TOWER_HIDDEN = 8, (256, 128), (64,)
# Coprime to any number of rows up to a billion: spreads neighbouring ranks over a table.
_SPREAD = 1_000_000_007
_DEVIATION = 1.5  # of a task's logit
_BASE_LOGIT = -1.5
_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class Job:
    """Its sizes. `short_rows` are for who needs seconds a step."""

    fields: int = 26
    table_rows: int = 10_000
    dim: int = 16
    tasks: int = 2
    batch_size: int = 8192
    rows: int = 327_680
    short_rows: int = 98_304
    validation_rows: int = 65_536

    @property
    def field_names(self) -> list[str]:
        return [f"id_{n}" for n in range(self.fields)]

    @property
    def task_names(self) -> list[str]:
        return [f"task_{n}" for n in range(self.tasks)]

    def days(self) -> dict[str, int]:
        """Rows by day."""
        return {"train": self.rows, "short": self.short_rows, "validation": self.validation_rows}


def prepare(job: Job, folder: Path) -> None:
    """Write the job's schema, encoder, days and `job.json`, unless they are there."""
    mark = folder / "job.json"
    described = json.dumps(asdict(job) | {"files": _files(job)}, indent=1)
    if mark.is_file() and mark.read_text(encoding="utf-8") == described:
        return
    folder.mkdir(parents=True, exist_ok=True)
    schema = schema_of(job)
    (folder / "schema.json").write_text(schema.to_json(), encoding="utf-8")
    encoder = fit(schema, [_raw_row(schema)])
    encoder.save(folder / "encoder")
    for number, (day, rows) in enumerate(job.days().items()):
        _publish(folder / "data" / day, encoder, _groups(job, rows, number), rows=rows)
    mark.write_text(described, encoding="utf-8")


def experiment_of(job: Job, folder: Path, **sections: dict[str, Any]) -> Experiment:
    """The job as an experiment, with sections changed."""
    tree: dict[str, Any] = {
        "schema_file": "schema.json",
        "data": {"train": ["train"], "validation": ["validation"], "batch_size": job.batch_size},
        "model": {
            "mixing": {"kind": "mmoe", "experts": EXPERTS, "expert_hidden": list(EXPERT_HIDDEN)},
            "heads": {"kind": "towers", "hidden": list(TOWER_HIDDEN)},
        },
        "train": {"device": "cpu", "patience": None},
    }
    for name, changes in sections.items():
        tree[name] = tree.get(name, {}) | changes
    return Experiment.parse(tree, where="speed").resolved(folder)


def schema_of(job: Job) -> Schema:
    """Ids of their own tables, all of them the candidate's."""
    tree: dict[str, Any] = {
        "columns": dict.fromkeys(job.field_names, "int64") | dict.fromkeys(job.task_names, "bool"),
        "tables": {
            name: {"rows": job.table_rows, "dim": job.dim, "ids": "hash"}
            for name in job.field_names
        },
        "features": {name: {"kind": "categorical", "table": name} for name in job.field_names},
        "tasks": {name: {"label": name} for name in job.task_names},
    }
    return Schema.parse(tree, where="speed")


def zipf(count: int, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ids whose rank r has a probability of about 1 / r, ranks spread over the table."""
    # The ranks' distribution function is about log r / log rows.
    ranks = np.exp(rng.random(count) * np.log(rows)).astype(np.int64) - 1
    return ranks * _SPREAD % rows


def _groups(job: Job, rows: int, day: int) -> Iterator[pa.Table]:
    """A day's rows in the pieces that become row groups."""
    rng = np.random.default_rng([1, day])
    for start in range(0, rows, _GROUP_ROWS):
        yield _encoded(job, min(_GROUP_ROWS, rows - start), rng, first_key=(day << 40) + start)


def _encoded(job: Job, rows: int, rng: np.random.Generator, *, first_key: int) -> pa.Table:
    logits = np.full((job.tasks, rows), _BASE_LOGIT)
    columns: dict[str, Any] = {}
    for field, name in enumerate(job.field_names):
        columns[name] = zipf(rows, job.table_rows, rng)
        for task in range(job.tasks):
            logits[task] += _value(columns[name], seed=field * job.tasks + task) / job.fields**0.5
    for task, name in enumerate(job.task_names):
        labels = rng.random(rows) < 1 / (1 + np.exp(-logits[task]))
        columns[label_column(name)] = labels.astype(np.float32)
        columns[observed_column(name)] = np.ones(rows, np.bool_)
    keys = first_key + np.arange(rows, dtype=np.int64)
    columns |= {"weight": np.ones(rows, np.float32), "group": keys, "row_key": keys}
    return pa.table(columns, schema=encoded_arrow(schema_of(job)))


def _value(ids: NDArray[np.int64], *, seed: int) -> NDArray[np.float64]:
    """A number of deviation `_DEVIATION` that belongs to an id: uniform, of its hash."""
    mixed = (ids.astype(np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    uniform: NDArray[np.float64] = (mixed >> np.uint64(11)) / 2.0**53
    return _DEVIATION * 12**0.5 * (uniform - 0.5)


def _publish(root: Path, encoder: Encoder, groups: Iterator[pa.Table], *, rows: int) -> None:
    metadata = {
        "day": root.name,
        "rows": rows,
        "data_digest": encoder.schema.data_digest,
        "encoder_digest": encoder.digest,
        "labels_digest": "planted",
        "rules_digest": "planted",
    }
    with publication(root, kind="day", metadata=metadata) as draft:
        file, layout = draft.path / "part-00000.parquet", encoded_arrow(encoder.schema)
        # As a build writes it.
        with pq.ParquetWriter(file, layout, compression="zstd", write_page_checksum=True) as writer:
            for group in groups:
                writer.write_table(group)


def _raw_row(schema: Schema) -> pa.Table:
    """Hashed ids leave nothing to fit; an encoder wants a row all the same."""
    layout = schema.raw_arrow(labels=True)
    return pa.table([pa.array([0]).cast(field.type) for field in layout], schema=layout)


def _files(job: Job) -> dict[str, str]:
    """Where each day's rows are, for who knows nothing of publications."""
    return {day: f"data/{day}/*/part-00000.parquet" for day in job.days()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    for name in ("fields", "table_rows", "tasks", "rows"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Job, name))
    options = parser.parse_args()
    sizes = {name: value for name, value in vars(options).items() if name != "folder"}
    prepare(Job(**sizes), options.folder)


if __name__ == "__main__":
    main()
