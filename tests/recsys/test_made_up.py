"""Made-up rows reach what real ones may not: nulls, unknown ids, keys that maps lack, bags without weight."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.encode import Encoder
from recsys.layout import dense, dense_column, slots
from recsys.made_up import made_up_rows
from recsys.request_rows import RequestEncoder
from tests import kinds
from tests.bundles import full_encoder


def encoded(encoder: Encoder, rows: pa.Table) -> pa.Table:
    return RequestEncoder.of(encoder).encode(rows, rows=rows.num_rows)


def ids_of(column: pa.ChunkedArray) -> set[int]:
    flat = column.combine_chunks()
    return set((flat.flatten() if pa.types.is_list(flat.type) else flat).to_pylist())


@pytest.mark.parametrize("encoder", [full_encoder(), kinds.encoder()], ids=["full", "kinds"])
def test_made_up_rows_hold_known_and_missing_ids_and_a_row_of_nulls(encoder: Encoder) -> None:
    rows = made_up_rows(encoder, 64, seed=0)
    assert all(value is None or not any(value) for value in rows.to_pylist()[0].values())
    found = encoded(encoder, rows)
    for slot in slots(encoder.schema):
        ids = ids_of(found.column(slot.name))
        # A text has no missing n-gram, and its vocabulary of hashes knows no made-up one.
        assert slot.name in ("query", "title") or 0 in ids, slot.name
        assert slot.name == "query" or max(ids) > 1, slot.name
    assert 1 in ids_of(found.column("user_id"))


def test_made_up_lists_are_empty_and_overlong() -> None:
    rows = made_up_rows(full_encoder(), 64, seed=0)
    lengths = [len(events or ()) for events in rows.column("clicks_item").to_pylist()]
    assert min(lengths) == 0
    assert max(lengths) > full_encoder().schema.sequences["clicks"].max_length


def test_made_up_numbers_of_every_kind_are_there_and_missing() -> None:
    encoder = kinds.encoder()
    found = encoded(encoder, made_up_rows(encoder, 64, seed=0))
    for item in dense(encoder.schema):
        numbers = found.column(dense_column(item.name)).combine_chunks()
        flat = numbers.flatten() if item.width > 1 else numbers
        assert len(set(flat.to_pylist())) > 3, item.name


def test_made_up_bags_have_weights_none_and_no_total() -> None:
    encoder = kinds.encoder()
    rows = made_up_rows(encoder, 64, seed=0)
    weights: list[Any] = rows.column("interest_weights").to_pylist()
    ids = rows.column("interests").to_pylist()
    assert [len(item or ()) for item in weights] == [len(item or ()) for item in ids]
    assert any(item and not any(item) for item in weights)
    assert any(item and all(item) for item in weights)


def test_made_up_maps_hold_and_lack_the_keys_of_rows() -> None:
    rows = made_up_rows(kinds.encoder(), 64, seed=0)
    for name, key in (("category_ctr", "category"), ("item_seconds", "item_id")):
        pairs = zip(rows.column(name).to_pylist(), rows.column(key).to_pylist(), strict=True)
        held = [value in dict(found) for found, value in pairs if found and value is not None]
        assert 0.2 < np.mean(held) < 0.8, name
        assert any(None in dict(found).values() for found in rows.column(name).to_pylist() if found)
