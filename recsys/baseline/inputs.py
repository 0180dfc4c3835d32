"""Encoded rows as a matrix that trees can split: one number or small category a column.

| encoded | columns |
| --- | --- |
| dense value | itself; of a vector the first 64 components |
| bucket or time gap | its number, which is ordered; of a sequence's events the newest |
| single id | a category, if its table has at most 1000 rows; else the id's label statistics |
| bag of ids | how many; how often each, if its table has at most 64 rows; else the mean of their label statistics |
| sequence of ids | how many; how often each, as for bags; the newest as a single id; how many are the target |

Label statistics differ by task and are filled in later (`recsys.baseline.statistics`): here they are ids.

Axes: **B** rows, **N** ids of one slot, **I** input columns, **T** tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.collate import Packed, collate
from recsys.days import Days
from recsys.layout import (
    Slot,
    dense,
    encoded_arrow,
    kept_column,
    label_column,
    observed_column,
    slots,
)
from recsys.measures import AnyArray, BoolArray, Int64Array
from recsys.schema import RESERVED_ROWS, BucketFeature, Schema, TimeGapToken

CATEGORY_ROWS = 1_000
COUNTED_ROWS = 64
VECTOR_COMPONENTS = 64

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Input:
    """One column of the matrix."""

    name: str
    categorical: bool = False


@dataclass(frozen=True, eq=False)
class Ids:
    """Ids of one slot: `lengths_B` of them a row, in row order, each weighing `weights_N` (1 each if None)."""

    name: str
    ids_N: Int64Array
    lengths_B: Int64Array
    weights_N: Float32Array | None = None


@dataclass(frozen=True, eq=False)
class TreeRows:
    """Rows for trees. `inputs_BI` holds the columns of `inputs`; label statistics of `ids` come on top of them."""

    inputs: tuple[Input, ...]
    inputs_BI: Float32Array
    ids: tuple[Ids, ...]
    labels_BT: Float32Array
    observed_BT: BoolArray
    weights_B: Float32Array

    def __len__(self) -> int:
        return len(self.weights_B)


def read_tree_rows(days: Days, *, up_to_rows: int, seed: int) -> TreeRows:
    """The rows of days, or a sample of that many, drawn evenly from every row group and kept in stored order.

    Raises DataError naming the file when one cannot be read.
    """
    kept = {kept_column(name) for name in days.schema.keys.kept}
    columns = [name for name in encoded_arrow(days.schema).names if name not in kept]
    random = np.random.Generator(np.random.PCG64([seed, 0]))
    share = min(1.0, up_to_rows / days.rows)
    parts: list[TreeRows] = []
    start = 0
    for group in days.groups:
        table = days.read((group,), columns)
        stop = start + group.rows
        if share < 1:
            # Differences of rounded totals: the counts add up, however small the row groups are.
            count = round(share * stop) - round(share * start)
            table = table.take(np.sort(random.choice(group.rows, count, replace=False)))
        start = stop
        parts.append(tree_rows(table, days.schema))
    return _concatenated(parts)


def tree_rows(encoded: pa.Table, schema: Schema) -> TreeRows:
    """The matrix, ids and labels of encoded rows with labels."""
    packed = collate(encoded, schema)
    columns: list[tuple[Input, AnyArray]] = list(_dense_columns(packed, schema))
    ids: list[Ids] = []
    by_slot = _ids_by_slot(packed, schema)
    for slot, found in by_slot.items():
        columns += _slot_columns(slot, found, schema)
        ids += _statistic_ids(slot, found, schema)
    columns += _sequence_columns({slot.name: found for slot, found in by_slot.items()}, schema)
    inputs_BI = np.empty((encoded.num_rows, len(columns)), np.float32)
    for index, (_, values_B) in enumerate(columns):
        inputs_BI[:, index] = values_B
    tasks = schema.task_names
    return TreeRows(
        inputs=tuple(column for column, _ in columns),
        inputs_BI=inputs_BI,
        ids=tuple(ids),
        labels_BT=_side_by_side(encoded, [label_column(task) for task in tasks]),
        observed_BT=_side_by_side(encoded, [observed_column(task) for task in tasks]).astype(bool),
        weights_B=encoded.column("weight").to_numpy(),
    )


def _ids_by_slot(packed: Packed, schema: Schema) -> dict[Slot, Ids]:
    found: dict[Slot, Ids] = {}
    start = 0
    for slot, lengths_B in zip(slots(schema), packed.lengths_FB, strict=True):
        stop = start + int(lengths_B.sum(dtype=np.int64))
        weights_N = packed.weights_N[start:stop] if packed.weights_N is not None else None
        found[slot] = Ids(
            slot.name,
            packed.values_N[start:stop],
            lengths_B.astype(np.int64),
            weights_N if slot.weighted else None,
        )
        start = stop
    return found


def _dense_columns(packed: Packed, schema: Schema) -> Iterator[tuple[Input, AnyArray]]:
    start = 0
    for item in dense(schema):
        for component in range(min(item.width, VECTOR_COMPONENTS)):
            name = item.name if item.width == 1 else f"{item.name}[{component}]"
            yield Input(name), packed.dense_BD[:, start + component]
        start += item.width


def _slot_columns(slot: Slot, found: Ids, schema: Schema) -> Iterator[tuple[Input, AnyArray]]:
    rows = schema.all_tables[slot.table].rows
    ordered = _is_ordered(slot, schema)
    if slot.kind == "single":
        if ordered or rows <= CATEGORY_ROWS:
            yield Input(slot.name, categorical=not ordered), found.ids_N
        return
    if slot.kind == "bag":
        yield Input(f"{slot.name} count"), found.lengths_B
    elif ordered or rows <= CATEGORY_ROWS:
        # Row 0 (missing) is also what an empty sequence has as its newest event.
        yield Input(f"{slot.name} newest", categorical=not ordered), _newest(found).ids_N
    if rows <= COUNTED_ROWS and not ordered:
        counts_BV = _counts(found, rows)
        for value in range(1, rows):
            yield Input(f"{slot.name} = {value}"), counts_BV[:, value]


def _statistic_ids(slot: Slot, found: Ids, schema: Schema) -> Iterator[Ids]:
    rows = schema.all_tables[slot.table].rows
    enters_as_it_is = rows <= (COUNTED_ROWS if slot.kind == "bag" else CATEGORY_ROWS)
    if enters_as_it_is or _is_ordered(slot, schema):
        return
    yield _newest(found) if slot.kind == "token" else found


def _sequence_columns(by_name: dict[str, Ids], schema: Schema) -> Iterator[tuple[Input, AnyArray]]:
    for name, sequence in schema.sequences.items():
        first = next(iter(sequence.tokens))
        yield Input(f"{name} length"), by_name[f"{name}.{first}"].lengths_B
        for token, feature in sequence.target.items():
            events, target = by_name[f"{name}.{token}"], by_name[feature]
            same_N = events.ids_N == np.repeat(target.ids_N, events.lengths_B)
            # Two unknown ids are not the same one.
            same_N &= events.ids_N >= RESERVED_ROWS
            yield Input(f"{name}.{token} is {feature}"), _sums(same_N, events.lengths_B)


def _is_ordered(slot: Slot, schema: Schema) -> bool:
    """Whether larger row numbers mean larger values."""
    if slot.sequence is None:
        return isinstance(schema.features[slot.name], BucketFeature)
    token = slot.name.removeprefix(f"{slot.sequence}.")
    return isinstance(schema.sequences[slot.sequence].tokens[token], TimeGapToken)


def _newest(found: Ids) -> Ids:
    """The last id of every row, row 0 where there is none."""
    ends_B = np.cumsum(found.lengths_B)
    newest_B = np.zeros(len(ends_B), np.int64)
    some_B = found.lengths_B > 0
    newest_B[some_B] = found.ids_N[ends_B[some_B] - 1]
    return Ids(f"{found.name} newest", newest_B, np.ones(len(ends_B), np.int64))


def _counts(found: Ids, rows: int) -> AnyArray:
    """How often (by weight) each of a table's rows is in each row's ids, [B, rows]."""
    count = len(found.lengths_B)
    cell_N = np.repeat(np.arange(count), found.lengths_B) * rows + found.ids_N
    flat = np.bincount(cell_N, weights=found.weights_N, minlength=count * rows)
    return flat.reshape(count, rows)


def _sums(values_N: AnyArray, lengths_B: Int64Array) -> AnyArray:
    row_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
    return np.bincount(row_N, weights=values_N, minlength=len(lengths_B))


def _side_by_side(encoded: pa.Table, names: list[str]) -> Float32Array:
    return np.stack([encoded.column(name).to_numpy().astype(np.float32) for name in names], axis=1)


def _concatenated(parts: list[TreeRows]) -> TreeRows:
    ids = tuple(
        Ids(
            same[0].name,
            np.concatenate([item.ids_N for item in same]),
            np.concatenate([item.lengths_B for item in same]),
            None
            if same[0].weights_N is None
            else np.concatenate([item.weights_N for item in same if item.weights_N is not None]),
        )
        for same in zip(*(part.ids for part in parts), strict=True)
    )
    return TreeRows(
        parts[0].inputs,
        np.concatenate([part.inputs_BI for part in parts]),
        ids,
        np.concatenate([part.labels_BT for part in parts]),
        np.concatenate([part.observed_BT for part in parts]),
        np.concatenate([part.weights_B for part in parts]),
    )
