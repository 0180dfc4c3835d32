"""The format of `predictions/`: one row per evaluated row, beside `report.json`, and how it is read back.

```
row_key  group  weight  label:click  observed:click  logit:click  label:purchase  ...  keep:country
```

Wide, with the column names of encoded rows, so that a day and its predictions select and join alike, kept columns are
stored once however many tasks there are, and a funnel's conditional entry (`purchase|click`) finds parent and child in
one row. One task is read by its three columns alone. A task with `given` holds the logit of its joint probability.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import ArtifactError, DataError, nearest
from recsys.layout import encoded_arrow, kept_column, label_column, logit_column, observed_column
from recsys.measures import (
    AnyArray,
    Int64Array,
    ScoredRows,
    conditional_logit,
    scored_rows,
)
from recsys.schema import Schema

FORMAT_VERSION = 1
_FORMAT_KEY = b"recsys.predictions"
_ROW_GROUP = 65_536


@dataclass(frozen=True)
class Predictions:
    """One metric entry's rows with their row keys. `source` names them in messages."""

    source: str
    row_key_B: Int64Array
    rows: ScoredRows


def predictions_arrow(schema: Schema) -> pa.Schema:
    """Arrow schema of the predictions for rows of a schema."""
    encoded = encoded_arrow(schema)
    fields = [encoded.field(name) for name in ("row_key", "group", "weight")]
    for task in schema.task_names:
        fields += [encoded.field(label_column(task)), encoded.field(observed_column(task))]
        fields.append(pa.field(logit_column(task), pa.float32()))
    fields += [encoded.field(kept_column(name)) for name in schema.keys.kept]
    return pa.schema(fields, metadata={_FORMAT_KEY: str(FORMAT_VERSION).encode()})


def predictions_table(encoded: pa.Table, logits_BT: AnyArray, *, schema: Schema) -> pa.Table:
    """Predictions of encoded rows: their keys, labels and kept columns, and one logit a task."""
    assert logits_BT.shape == (encoded.num_rows, len(schema.task_names)), logits_BT.shape
    columns = {name: encoded.column(name) for name in encoded.column_names}
    for index, task in enumerate(schema.task_names):
        columns[logit_column(task)] = pa.array(np.asarray(logits_BT[:, index], dtype=np.float32))
    target = predictions_arrow(schema)
    return pa.table([columns[name] for name in target.names], schema=target)


class PredictionWriter:
    """Writes predictions, batch by batch, to `directory/part-<part>.parquet`; a part is a process's own file."""

    def __init__(self, directory: Path, schema: Schema, *, part: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._schema = schema
        self._writer = pq.ParquetWriter(
            directory / f"part-{part:05}.parquet", predictions_arrow(schema), compression="zstd"
        )

    def write(self, encoded: pa.Table, logits_BT: AnyArray) -> None:
        table = predictions_table(encoded, logits_BT, schema=self._schema)
        self._writer.write_table(table, row_group_size=_ROW_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()


def read_predictions(directory: Path, entry: str) -> Predictions:
    """The rows of one metric entry, such as `click`, `purchase` or `purchase|click`.

    Rows where the task (for a conditional entry, either task) is unobserved are left out; a conditional entry keeps the
    rows whose parent label is 1 and holds the conditional logit. Raises ArtifactError for missing or damaged files and
    DataError for an entry that the files do not hold.
    """
    task, _, given = entry.partition("|")
    tasks = (task, given) if given else (task,)
    table = _read(directory, tasks)
    used = table.column(observed_column(task))
    if given:
        clicked = pc.equal(table.column(label_column(given)), 1)
        used = pc.and_(pc.and_(used, table.column(observed_column(given))), clicked)
    table = table.filter(used)
    logits_B = _numpy(table, logit_column(task))
    if given:
        logits_B = conditional_logit(logits_B, _numpy(table, logit_column(given)))
    source = f"{directory} ({entry})"
    rows = scored_rows(
        logits_B,
        _numpy(table, label_column(task)),
        weights_B=_numpy(table, "weight"),
        groups_B=_numpy(table, "group"),
        name=source,
    )
    return Predictions(source, _numpy(table, "row_key"), rows)


def aligned(first: Predictions, second: Predictions) -> tuple[ScoredRows, ScoredRows]:
    """Both models' rows in the order of their row keys.

    Raises DataError when the keys are not the same set, when a key repeats, or when labels, weights or groups differ.
    """
    order_first, order_second = np.argsort(first.row_key_B), np.argsort(second.row_key_B)
    keys_first, keys_second = first.row_key_B[order_first], second.row_key_B[order_second]
    for predictions, keys_B in ((first, keys_first), (second, keys_second)):
        repeated = keys_B[1:][keys_B[1:] == keys_B[:-1]]
        if len(repeated):
            raise DataError(
                f"{predictions.source}: row key {repeated[0]} occurs more than once, so rows cannot be paired; "
                "give each impression a key of its own"
            )
    _refuse_unequal_keys(first, second)
    rows_first, rows_second = first.rows.take(order_first), second.rows.take(order_second)
    for what in ("labels", "weights", "groups"):
        differs_B = getattr(rows_first, f"{what}_B") != getattr(rows_second, f"{what}_B")
        if differs_B.any():
            raise DataError(
                f"{first.source} and {second.source}: {what} of {int(differs_B.sum())} rows differ "
                f"(first: row key {keys_first[np.argmax(differs_B)]}); evaluate both on one build of the data"
            )
    return rows_first, rows_second


def _refuse_unequal_keys(first: Predictions, second: Predictions) -> None:
    problems: list[str] = []
    for predictions, other in ((first, second), (second, first)):
        alone = np.setdiff1d(predictions.row_key_B, other.row_key_B)
        if len(alone):
            problems.append(
                f"{len(alone)} rows are only in {predictions.source} (such as row key {alone[0]})"
            )
    if problems:
        raise DataError(f"unequal rows: {' and '.join(problems)}; evaluate both on the same rows")


def _read(directory: Path, tasks: tuple[str, ...]) -> pa.Table:
    parts = sorted(directory.glob("part-*.parquet"))
    if not parts:
        raise ArtifactError(
            f"{directory}: holds no predictions (no part-*.parquet); evaluate first"
        )
    columns = ["row_key", "group", "weight"]
    for task in tasks:
        columns += [label_column(task), observed_column(task), logit_column(task)]
    return pa.concat_tables([_read_part(part, columns) for part in parts])


def _read_part(path: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            _check_format(path, found)
            for name in columns:
                if name not in found.names:
                    known = [
                        key.partition(":")[2] for key in found.names if key.startswith("logit:")
                    ]
                    task = name.partition(":")[2]
                    raise DataError(
                        f"{path}: no task {task!r}{nearest(task, known)}; it holds {', '.join(known)}"
                    )
            return file.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); evaluate again") from error


def _check_format(path: Path, found: pa.Schema) -> None:
    version = (found.metadata or {}).get(_FORMAT_KEY)
    if version is None:
        raise ArtifactError(f"{path}: not a file of predictions; give an evaluation's predictions")
    if version != str(FORMAT_VERSION).encode():
        raise ArtifactError(
            f"{path}: predictions format {version.decode()}, this release reads {FORMAT_VERSION}"
        )


def _numpy(table: pa.Table, column: str) -> AnyArray:
    values: AnyArray = table.column(column).to_numpy()
    return values
