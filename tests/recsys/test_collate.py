"""Collation puts each row's ids, weights and numbers where the layout says, whatever slice or chunks they come in."""

import numpy as np
import pyarrow as pa
import pytest

from recsys.collate import collate
from recsys.fitting import fit
from recsys.layout import BlockSide, dense, dense_column, slots, weights_column
from tests import kinds, samples


def listed(value: object) -> list[float]:
    return list(value) if isinstance(value, list) else [value]  # type: ignore[list-item]


@pytest.mark.parametrize("side", [None, "user", "candidate"])
def test_packed_rows_are_those_of_a_loop(side: BlockSide | None) -> None:
    schema = kinds.schema()
    encoded = kinds.encoder().encode(kinds.rows(60, seed=6))
    chunked = pa.concat_tables([encoded.slice(31, 9), encoded.slice(0, 4)])
    for table in (encoded, encoded.slice(13, 20), encoded.slice(7, 1), chunked):
        packed = collate(table, schema, side=side)
        values, weights, lengths = list[float](), list[float](), list[list[int]]()
        for slot in slots(schema, side):
            rows = [listed(value) for value in table.column(slot.name).to_pylist()]
            lengths.append([len(ids) for ids in rows])
            values += [value for ids in rows for value in ids]
            weights += (
                [w for row in table.column(weights_column(slot.name)).to_pylist() for w in row]
                if slot.weighted
                else [1.0] * sum(lengths[-1])
            )
        assert packed.values_N.tolist() == values
        assert packed.lengths_FB.tolist() == lengths
        assert packed.weights_N is not None
        assert packed.weights_N.tolist() == weights
        columns = [table.column(dense_column(item.name)) for item in dense(schema, side)]
        expected = [
            [number for column in columns for number in listed(column[row].as_py())]
            for row in range(table.num_rows)
        ]
        np.testing.assert_array_equal(packed.dense_BD, np.array(expected, np.float32))


def test_there_are_no_weights_where_no_slot_has_any() -> None:
    schema = samples.parse()
    rows = samples.rows(20)
    assert collate(fit(schema, [rows]).encode(rows), schema).weights_N is None
