"""Serving's lookup in NumPy is a loop over rows, ids and weights."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recsys.collate import Packed
from recsys.gather import SideLayout, gather
from recsys.schema import Schema
from tests import kinds
from tests.bundles import full_schema


@pytest.mark.parametrize("schema", [full_schema(), kinds.schema()], ids=["full", "kinds"])
def test_gather_equals_a_plain_loop_over_rows_and_ids(schema: Schema) -> None:
    random = np.random.default_rng(3)
    tables = {
        name: random.normal(size=(table.rows, table.dim)).astype(np.float32)
        for name, table in schema.all_tables.items()
    }
    for side in ("user", "candidate"):
        layout = SideLayout.of(schema, side)
        for rows in (1, 7):
            packed = _random_packed(layout, tables, random, rows)
            found = gather(packed, layout, tables=tables)
            np.testing.assert_allclose(
                found.block_BI, _looped_block(packed, layout, tables), rtol=1e-6, atol=1e-6
            )
            for name in layout.sequences:
                tokens, valid = _looped_tokens(packed, layout, tables, name)
                np.testing.assert_array_equal(found.tokens[name], tokens)
                np.testing.assert_array_equal(found.valid[name], valid)


def _random_packed(
    layout: SideLayout,
    tables: dict[str, NDArray[np.float32]],
    random: np.random.Generator,
    rows: int,
) -> Packed:
    events = random.integers(0, 4, rows)
    lengths: list[NDArray[np.int64]] = []
    values: list[NDArray[np.int64]] = []
    for slot in layout.slots:
        by_kind = {
            "single": np.ones(rows, int),
            "bag": random.integers(0, 4, rows),
            "token": events,
        }
        lengths.append(by_kind[slot.kind])
        values.append(random.integers(0, len(tables[slot.table]), by_kind[slot.kind].sum()))
    width = sum(item.width for item in layout.dense)
    return Packed(
        np.concatenate(values),
        random.choice([0.0, 0.5, 3.0], sum(map(len, values))).astype(np.float32),
        np.array(lengths, np.int32),
        random.normal(size=(rows, width)).astype(np.float32),
    )


def _here(packed: Packed, slot: int, row: int) -> slice:
    start = packed.lengths_FB[:slot].sum() + packed.lengths_FB[slot, :row].sum()
    return slice(start, start + packed.lengths_FB[slot, row])


def _ids(packed: Packed, slot: int, row: int) -> NDArray[np.int64]:
    return packed.values_N[_here(packed, slot, row)]


def _looped_block(
    packed: Packed, layout: SideLayout, tables: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    rows = []
    for row in range(len(packed.dense_BD)):
        parts = []
        for f, slot in enumerate(layout.slots):
            if slot.kind == "token":
                continue
            assert packed.weights_N is not None
            ids, weights = _ids(packed, f, row), packed.weights_N[_here(packed, f, row)]
            total, whole = np.zeros(slot.dim, np.float32), 0.0
            for index, weight in zip(ids, weights, strict=True):
                factor = weight if slot.weighted else 1.0
                total, whole = total + factor * tables[slot.table][index], whole + factor
            parts.append(total / whole if slot.pooling == "mean" and whole else total)
        rows.append(np.concatenate([*parts, packed.dense_BD[row]]))
    return np.array(rows, np.float32)


def _looped_tokens(
    packed: Packed, layout: SideLayout, tables: dict[str, NDArray[np.float32]], sequence: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    here = [(f, slot) for f, slot in enumerate(layout.slots) if slot.sequence == sequence]
    lengths = packed.lengths_FB[here[0][0]]
    longest, width = max(1, int(lengths.max())), sum(slot.dim for _, slot in here)
    tokens = np.zeros((len(lengths), longest, width), np.float32)
    valid = np.zeros((len(lengths), longest), np.bool_)
    for row, length in enumerate(lengths):
        for event in range(length):
            vectors = [tables[slot.table][_ids(packed, f, row)[event]] for f, slot in here]
            tokens[row, event] = np.concatenate(vectors)
            valid[row, event] = True
    return tokens, valid
