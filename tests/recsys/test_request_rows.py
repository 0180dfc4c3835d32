"""What a request carries once reaches each of its candidates, whichever feature reads it."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from recsys.encode import Encoder
from recsys.errors import DataError
from recsys.fitting import fit
from recsys.layout import encoded_arrow
from recsys.request_rows import RequestColumns, RequestEncoder
from recsys.schema import MISSING_ROW, Schema
from tests import every_kind, kinds
from tests.bundles import full_schema


@pytest.fixture(scope="module")
def columns() -> RequestColumns:
    return RequestColumns.of(kinds.schema())


def encoded(
    encoder: Encoder, rows: pa.Table, *, users: int, user_of_row_N: NDArray[np.int64]
) -> tuple[pa.Table, pa.Table]:
    """The candidate side of rows as a request has them, users apart, and of whole rows put together by hand."""
    columns, request = RequestColumns.of(encoder.schema), RequestEncoder.of(encoder)
    user = rows.select([*columns.user, *columns.context]).slice(0, users)
    candidates = rows.select(columns.candidate)
    joined = columns.joined(candidates, user=user, user_of_row_N=user_of_row_N)
    whole = dict(zip(candidates.column_names, candidates.columns, strict=True))
    taken = user.take(pa.array(user_of_row_N))
    whole |= dict(zip(taken.column_names, taken.columns, strict=True))
    count = len(user_of_row_N)
    return (
        request.encode(joined, rows=count, side="candidate"),
        request.encode(pa.table(whole), rows=count, side="candidate"),
    )


def test_each_column_is_carried_once_and_shared_where_candidates_need_it(
    columns: RequestColumns,
) -> None:
    sections = (*columns.user, *columns.context, *columns.candidate)
    assert sorted(sections) == sorted(kinds.schema().request_columns)
    assert set(columns.shared) == {"user_id", "interests", "category_ctr", "item_seconds", "budget"}
    assert RequestColumns.of(full_schema()).shared == ()


@pytest.mark.parametrize("source", ["kinds", "every_kind"])
def test_candidates_are_encoded_as_rows_that_hold_their_users_values(source: str) -> None:
    if source == "kinds":
        encoder, rows = kinds.encoder(), kinds.rows(80, seed=4)
    else:
        encoder, rows = fit(every_kind.parse(), [every_kind.rows(200)]), every_kind.rows(80, seed=4)
    random = np.random.default_rng(0)
    # A slice, so that no array begins at its first value.
    some = rows.slice(5, 60)
    for users in (1, 7, 60):
        user_of_row_N = random.integers(0, users, 60)
        found, expected = encoded(encoder, some, users=users, user_of_row_N=user_of_row_N)
        assert found.equals(expected)
        assert found.schema == encoded_arrow(encoder.schema, labels=False, side="candidate")


def test_lists_maps_and_texts_of_a_request_are_not_copied_for_its_candidates(
    columns: RequestColumns,
) -> None:
    rows = kinds.rows(20, seed=1)
    user, candidates = rows.slice(3, 1).select(columns.user), rows.select(columns.candidate)
    joined = columns.joined(candidates, user=user, user_of_row_N=np.zeros(20, np.int64))
    for name in ("item_seconds", "interests", "user_id"):
        assert len(joined.column(name).chunk(0).dictionary) == 1
    assert joined.column("budget").to_pylist() == user.column("budget").to_pylist() * 20


def test_a_text_too_long_to_be_copied_for_each_candidate_is_encoded() -> None:
    encoder, rows = kinds.encoder(), kinds.rows(600, seed=4)
    columns = RequestColumns.of(encoder.schema)
    user = rows.slice(0, 1).select([*columns.user, *columns.context])
    # 600 copies are more than an Arrow array of strings can hold.
    user = user.set_column(user.column_names.index("user_id"), "user_id", [["u" * 4_000_000]])
    joined = columns.joined(
        rows.select(columns.candidate), user=user, user_of_row_N=np.zeros(600, np.int64)
    )
    found = RequestEncoder.of(encoder).encode(joined, rows=600, side="candidate")
    pairs, categories = found.column("user_category").to_pylist(), rows.column("category")
    assert [pair == MISSING_ROW for pair in pairs] == categories.is_null().to_pylist()


def test_candidates_take_what_features_of_a_users_columns_alone_make() -> None:
    tree = kinds.tree()
    tree["features"] |= {
        "user_too": {"kind": "categorical", "column": "user_id", "table": "user"},
        "interests_too": tree["features"]["interests"]
        | {"column": "interests", "side": "candidate"},
        "taste_too": {"kind": "vector", "column": "taste", "dim": 2},
        "query_too": tree["features"]["query"] | {"column": "query", "side": "candidate"},
        "interest_ctr": {
            "kind": "lookup",
            "column": "category_ctr",
            "key": "user_id",
            "user_columns": ["category_ctr", "user_id"],
        },
    }
    rows = kinds.rows(60, seed=7)
    encoder = fit(Schema.parse(tree, where="schema.toml"), [rows])
    user_of_row_N = np.random.default_rng(0).integers(0, 5, 60)
    found, expected = encoded(encoder, rows, users=5, user_of_row_N=user_of_row_N)
    assert found.equals(expected)


def test_a_shared_map_of_another_type_is_refused() -> None:
    encoder = kinds.encoder()
    columns, rows = RequestColumns.of(encoder.schema), kinds.rows(5, seed=1)
    odd = pa.array([[("c1", 1)]], pa.map_(pa.string(), pa.int32()))
    user = rows.slice(0, 1).select(columns.user).drop_columns(["category_ctr"])
    joined = columns.joined(
        rows.select(columns.candidate),
        user=user.append_column("category_ctr", odd),
        user_of_row_N=np.zeros(5, np.int64),
    )
    with pytest.raises(DataError, match=r"'category_ctr' is map<string, int32.*>, the schema says"):
        RequestEncoder.of(encoder).encode(joined, rows=5, side="candidate")


def test_a_shared_column_that_is_not_there_is_named() -> None:
    encoder = kinds.encoder()
    columns, rows = RequestColumns.of(encoder.schema), kinds.rows(5, seed=1)
    user = rows.slice(0, 1).select(columns.user).drop_columns(["budget"])
    joined = columns.joined(
        rows.select(columns.candidate), user=user, user_of_row_N=np.zeros(5, np.int64)
    )
    with pytest.raises(DataError, match="needs column 'budget'"):
        RequestEncoder.of(encoder).encode(joined, rows=5, side="candidate")


def test_a_feature_of_the_candidate_may_read_a_users_column_alone() -> None:
    tree = kinds.tree()
    tree["features"]["user_again"] = {"kind": "categorical", "column": "user_id", "table": "user"}
    columns = RequestColumns.of(Schema.parse(tree, where="schema.toml"))
    assert "user_id" in columns.user
    assert "user_id" in columns.shared
    assert "user_id" not in columns.candidate
