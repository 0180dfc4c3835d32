"""The ranker: requests, raw rows and HTTP give the same scores, and no candidate sees another."""

import json
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.calibrate import Calibrators, task_scores
from recsys.collate import collate
from recsys.errors import DataError, RequestError
from recsys.export import eager_logits
from serving.client import score_rows_over_http
from serving.config import Limits
from serving.ranker import Ranker
from tests.bundles import columnless_user_bundle, full_bundle, full_encoder, full_model, full_rows
from tests.serving.requests import NOW, full_request, running


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return Ranker.load(full_bundle())


def entries(tree: dict[str, Any]) -> dict[str, list[float]]:
    """Every array of an answer by name."""
    found = {"score": tree["score"]}
    for entry, numbers in tree["tasks"].items():
        found |= {f"{kind}:{entry}": values for kind, values in numbers.items()}
    return found


def test_a_plain_tree_and_its_json_are_one_request(ranker: Ranker) -> None:
    request = full_request()
    decoded = ranker.wire.decode(json.dumps(request).encode())
    parsed = ranker.rank(decoded).plain()
    assert ranker.rank(request).plain() == parsed
    request["context"]["features"]["shown_at"] = NOW
    request["user"]["features"]["clicks_age"] = [
        datetime.fromisoformat(age) for age in request["user"]["features"]["clicks_age"]
    ]
    assert ranker.rank(request).plain() == parsed


def test_a_wrong_plain_tree_is_refused_like_json(ranker: Ranker) -> None:
    request = full_request()
    request["candidates"]["features"]["price"] = [1, "2", 3]
    with pytest.raises(RequestError, match="Expected number or null, got string") as refused:
        ranker.rank(request)
    assert refused.value.pointer == "/candidates/features/price/1"


def test_candidates_in_another_order_get_the_same_scores(ranker: Ranker) -> None:
    request = full_request(40)
    order = np.random.default_rng(0).permutation(40)
    shuffled = json.loads(json.dumps(request))
    shuffled["candidates"]["ids"] = [request["candidates"]["ids"][index] for index in order]
    for name, values in request["candidates"]["features"].items():
        shuffled["candidates"]["features"][name] = [values[index] for index in order]
    first, second = entries(ranker.rank(request).plain()), entries(ranker.rank(shuffled).plain())
    for name, values in first.items():
        np.testing.assert_allclose(np.array(values)[order], second[name], rtol=0, atol=1e-6)


def test_a_candidate_alone_or_twice_scores_as_among_others(ranker: Ranker) -> None:
    request = full_request(9)
    together = entries(ranker.rank(request).plain())
    for index in range(9):
        alone = json.loads(json.dumps(request))
        alone["candidates"]["ids"] = ["a", "b"]
        for name, values in request["candidates"]["features"].items():
            alone["candidates"]["features"][name] = [values[index]] * 2
        for name, values in entries(ranker.rank(alone).plain()).items():
            assert values[0] == values[1]
            assert values[0] == pytest.approx(together[name][index], abs=1e-6)


def test_equal_scores_keep_the_order_of_the_request(ranker: Ranker) -> None:
    request = {"candidates": {"features": {"price": [2.0, 5.0, 2.0, 5.0, 2.0]}}}
    order = ranker.rank(request).plain()["order"]
    assert order in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


def request_of_row(row: dict[str, Any]) -> dict[str, Any]:
    """The request that carries one raw row."""
    user = ("user_id", "likes", "member", "clicks_item", "clicks_age")
    return {
        "user": {"features": {name: row[name] for name in user}},
        "context": {"features": {name: row[name] for name in ("hour", "shown_at")}},
        "candidates": {"features": {name: [row[name]] for name in ("item_id", "tags", "price")}},
    }


def test_a_row_scores_in_a_file_as_in_a_request(ranker: Ranker) -> None:
    rows = full_rows(30, seed=8)
    table = ranker.score_rows(rows)
    for index, row in enumerate(rows.to_pylist()):
        for name, values in entries(ranker.rank(request_of_row(row)).plain()).items():
            assert table.column(name)[index].as_py() == pytest.approx(values[0], abs=1e-6), name


def test_rows_score_as_the_trained_model_scores_them_with_the_position_held(ranker: Ranker) -> None:
    rows = full_rows(200, seed=9)
    held = rows.set_column(
        rows.column_names.index("position"), "position", pa.array([1] * 200, pa.int32())
    )
    schema = ranker.schema
    logits = eager_logits(full_model(), schema, collate(full_encoder().encode_inputs(held), schema))
    expected = task_scores(logits, schema, calibrators=Calibrators.identity(schema))
    table = ranker.score_rows(rows)
    for entry, values in (dict(expected.raw) | dict(expected.value)).items():
        kind = "value" if entry in expected.value else "raw"
        np.testing.assert_allclose(table.column(f"{kind}:{entry}"), values, rtol=1e-5, atol=1e-5)


def test_scored_rows_keep_their_keys_and_come_in_chunks(ranker: Ranker) -> None:
    rows = full_rows(64, seed=3)
    many = pa.concat_tables([rows] * 70)
    table = ranker.score_rows(many)
    assert table.column_names[:4] == ["user_id", "item_id", "shown_at", "country"]
    assert table.num_rows == 64 * 70 > 4096
    once = ranker.score_rows(rows)
    for name in once.column_names[4:]:
        scores = table.column(name).to_numpy().reshape(70, 64)
        np.testing.assert_allclose(
            scores, np.tile(once.column(name), (70, 1)), rtol=1e-5, atol=1e-6
        )
    without = ranker.score_rows(rows.drop_columns(["country", "clicked"]))
    assert without.column("score").equals(once.column("score"))
    assert ranker.score_rows(rows.slice(0, 0)).schema.equals(once.schema)


def test_rows_without_a_column_or_with_another_type_are_refused(ranker: Ranker) -> None:
    rows = full_rows(5, seed=3)
    with pytest.raises(DataError, match="no column 'price'"):
        ranker.score_rows(rows.drop_columns(["price"]))
    cast = rows.set_column(
        rows.column_names.index("item_id"), "item_id", rows["item_id"].cast("string")
    )
    with pytest.raises(DataError, match="'item_id' is string"):
        ranker.score_rows(cast)


def test_a_row_that_cannot_be_scored_is_counted_from_the_first(ranker: Ranker) -> None:
    # Chunks are scored one after the other; this row lies in the second.
    rows = pa.concat_tables([full_rows(200, seed=3)] * 25)
    with pytest.raises(DataError, match=r"row 4500: .*column 'price': nan is not a finite number"):
        ranker.score_rows(with_a_nan(rows, row=4500))


def test_a_model_without_user_columns_ranks_and_scores() -> None:
    ranker = Ranker.load(columnless_user_bundle())
    features = {
        "age": [20, 70],
        "job": ["nurse", None],
        "hours": [1.0, 50.0],
        "member": [True, None],
    }
    answer = ranker.rank({"candidates": {"features": features}}).plain()
    rows = pa.table(features, schema=ranker.schema.raw_arrow(labels=False))
    assert ranker.score_rows(rows).column("score").to_pylist() == pytest.approx(
        answer["score"], abs=1e-6
    )


def test_rows_score_over_http_as_in_this_process() -> None:
    rows = full_rows(12, seed=4)
    # Each user has candidates in a run, some more than a request may hold.
    user = rows.select(
        ["user_id", "likes", "member", "clicks_item", "clicks_age", "hour", "shown_at"]
    )
    other = rows.drop_columns(user.column_names)
    runs = np.repeat(np.arange(12), [1, 5, 2, 1, 1, 9, 3, 1, 1, 1, 2, 1])
    joined = user.take(pa.array(runs))
    for name in other.column_names:
        joined = joined.append_column(name, other[name].take(pa.array(np.arange(len(runs)) % 12)))
    ranker = Ranker.load(full_bundle(), limits=Limits(max_candidates=4))
    expected = ranker.score_rows(joined)
    key = "k" * 32
    with running(ranker, key=key) as url:
        found = score_rows_over_http(joined, url, key=key)
        assert score_rows_over_http(joined.slice(0, 0), url, key=key).schema.equals(expected.schema)
        with pytest.raises(RequestError, match="Bearer"):
            score_rows_over_http(joined, url)
        with pytest.raises(RequestError, match="no model 'nope'"):
            score_rows_over_http(joined, url, key=key, model="nope")
        with pytest.raises(DataError, match=r"row 1: .*column 'price': nan is not a finite number"):
            score_rows_over_http(with_a_nan(joined), url, key=key)
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        if pa.types.is_floating(expected[name].type):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert found[name].equals(expected[name])


def with_a_nan(rows: pa.Table, *, row: int = 1) -> pa.Table:
    """The rows, one with a price that JSON could only carry as null."""
    price = np.where(np.arange(rows.num_rows) == row, np.nan, 2.0)
    index = rows.column_names.index("price")
    return rows.set_column(index, "price", pa.array(price, rows.schema.field(index).type))


def test_a_server_that_does_not_answer_is_a_clear_error() -> None:
    with pytest.raises(RequestError, match="check that the server runs"):
        score_rows_over_http(full_rows(2, seed=0), "http://127.0.0.1:9")
