"""Maps, vectors, weights, texts, features of user and item together: alike over HTTP, from files and in the model."""

import json
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from recsys.calibrate import Calibrators, task_scores
from recsys.collate import collate
from recsys.errors import DataError, RequestError
from recsys.export import eager_logits
from serving.client import score_rows_over_http
from serving.config import Limits
from serving.ranker import Ranker
from serving.rows import json_rows, request_tree
from tests import kinds
from tests.bundles import kinds_bundle, kinds_model
from tests.serving.requests import Caller, caller, require_problem, running
from tests.serving.test_openapi import body_schema, replaced, validator

USER, FEATURES = "/user/features", "/candidates/features"


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return Ranker.load(kinds_bundle())


@pytest.fixture(scope="module")
def service() -> Caller:
    return caller(kinds_bundle(), limits=Limits(max_list_length=40))


def one_user(ranker: Ranker, count: int = 3, *, user: int = 2) -> pa.Table:
    """Rows of one user, whose maps, lists and vectors are all there, with several candidates."""
    rows, columns = kinds.rows(60, seed=9), ranker.wire.columns
    shared = {
        name: rows.column(name).take(pa.array([user] * count))
        for name in (*columns.user, *columns.context)
    }
    return pa.table(
        shared | {name: rows.column(name).slice(10, count) for name in columns.candidate}
    )


def request(ranker: Ranker) -> dict[str, Any]:
    tree: dict[str, Any] = orjson.loads(
        orjson.dumps(request_tree(one_user(ranker), ranker.wire.columns))
    )
    features = tree["user"]["features"]
    features["category_ctr"] = {"c0": 0.5, "c1": None, "c/2~": 0.25}
    features["item_seconds"] = {"7": 3.5, "-9": None}
    features |= {"interests": ["t1", "t2", None], "interest_weights": [1.0, 0.0, 2.5]}
    features |= {"taste": [0.5, -1], "query": "red Shoe", "budget": 2.0}
    tree["candidates"]["features"] |= {
        "picture": [[1, 2, 3], None, [0, 0, 0]],
        "tags": [["t1"], [], None],
        "tag_scores": [[2.0], [], None],
    }
    return tree


def test_rows_score_as_the_model_in_this_process_and_over_http(ranker: Ranker) -> None:
    rows = pa.concat_tables([one_user(ranker, 7, user=user) for user in (2, 5, 11)])
    encoded = kinds.encoder().encode_inputs(rows)
    logits = eager_logits(kinds_model(), ranker.schema, collate(encoded, ranker.schema))
    expected = task_scores(logits, ranker.schema, calibrators=Calibrators.identity(ranker.schema))
    here = ranker.score_rows(rows)
    with running(ranker) as url:
        remote = score_rows_over_http(rows, url)
    for entry, values in (dict(expected.raw) | dict(expected.value)).items():
        name = f"{'value' if entry in expected.value else 'raw'}:{entry}"
        np.testing.assert_allclose(here.column(name), values, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(remote.column(name), values, rtol=1e-5, atol=1e-5)
    assert len(set(here.column("score").to_pylist())) > 15


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (f"{USER}/category_ctr", {"c0": -3.0, "c1": 3.0}),
        (f"{USER}/item_seconds", {"0": 90.0}),
        (f"{USER}/interest_weights", [0.0, 1.0, 2.5]),
        (f"{USER}/interests", ["t7", "t2", None]),
        (f"{USER}/taste", [0.5, 1]),
        (f"{USER}/query", "blue"),
        (f"{USER}/budget", 0.5),
        (f"{USER}/user_id", "u31"),
        ("/context/features/shown_at", "2026-01-02T22:00:00Z"),
        (f"{FEATURES}/picture", [[1, 2, -3]] * 3),
        (f"{FEATURES}/tag_scores", [[0.5], [], None]),
        (f"{FEATURES}/title", ["wool"] * 3),
        (f"{FEATURES}/category", ["c1"] * 3),
        (f"{FEATURES}/clicks", [0, 5, 50]),
        (f"{FEATURES}/listed_at", ["2026-01-02T22:00:00Z"] * 3),
    ],
)
def test_every_value_of_a_request_counts(ranker: Ranker, place: str, value: Any) -> None:
    asked = request(ranker)
    asked["candidates"]["features"] |= {"item_id": [0, 1, 2], "category": ["c0", "c1", "c5"]}
    first = ranker.rank(asked).plain()["tasks"]
    set_at(asked, place, value)
    assert ranker.rank(asked).plain()["tasks"] != first


def set_at(tree: Any, place: str, value: Any) -> None:
    *path, last = place.split("/")[1:]
    for part in path:
        tree = tree[part]
    tree[last] = value


INVALID, LENGTH, LONG = "INVALID_REQUEST", "LENGTH_MISMATCH", "LIST_TOO_LONG"
# Where a good request is changed, to what, the code, the rest of the pointer, and words of the sentence.
WRONG: dict[str, tuple[str, Any, str, str, str]] = {
    "short vector": (
        f"{USER}/taste",
        [1.0],
        LENGTH,
        "",
        "1 numbers, the vectors of 'taste' have 2",
    ),
    "long vector": (f"{USER}/taste", [1, 2, 3], LENGTH, "", "give 2 or null"),
    "empty vector": (f"{FEATURES}/picture", [None, [], None], LENGTH, "/1", "0 numbers"),
    "null in a vector": (
        f"{FEATURES}/picture",
        [None, None, [1, None, 2]],
        INVALID,
        "/2/1",
        "got null",
    ),
    "text in a vector": (f"{USER}/taste", [1, "2"], INVALID, "/1", "Expected number, got string"),
    "number for a vector": (f"{USER}/taste", 1, INVALID, "", "Expected array or null"),
    "beyond float32": (f"{USER}/taste", [1, 1e39], INVALID, "/1", "<="),
    "key that is no integer": (f"{USER}/item_seconds", {"7": 1, "x": 2}, INVALID, "/x", "no int64"),
    "key with a fraction": (f"{USER}/item_seconds", {"7.0": 1}, INVALID, "/7.0", "no int64"),
    "key with a plus": (f"{USER}/item_seconds", {"+7": 1}, INVALID, "/+7", "no int64"),
    "key with a zero": (f"{USER}/item_seconds", {"07": 1}, INVALID, "/07", "no int64"),
    "key of other digits": (f"{USER}/item_seconds", {"\u0667": 1}, INVALID, "/\u0667", "no int64"),
    "empty key": (f"{USER}/item_seconds", {"": 1}, INVALID, "/", "no int64"),
    "key beyond int64": (f"{USER}/item_seconds", {str(2**63): 1}, INVALID, f"/{2**63}", "no int64"),
    "text for a map's number": (f"{USER}/category_ctr", {"c": "1"}, INVALID, "", "got string"),
    "array for a map": (f"{USER}/category_ctr", [["c", 1]], INVALID, "", "Expected object or null"),
    "long map": (
        f"{USER}/category_ctr",
        {f"c{n}": 1 for n in range(41)},
        LONG,
        "",
        "at most 40 a map",
    ),
    "fewer weights": (
        f"{USER}/interest_weights",
        [1],
        LENGTH,
        "",
        "1 weights, 'interests' has 3 ids",
    ),
    "no weights": (f"{USER}/interest_weights", None, LENGTH, "", "0 weights"),
    "weights of nothing": (
        f"{FEATURES}/tag_scores",
        [[2], [1], None],
        LENGTH,
        "/1",
        "'tags' has 0 ids",
    ),
    "negative weight": (f"{USER}/interest_weights", [1, -1, 1], INVALID, "/1", ">= 0"),
    "null weight": (f"{USER}/interest_weights", [1, None, 1], INVALID, "/1", "got null"),
    "number for a text": (f"{USER}/query", 3, INVALID, "", "Expected string or null"),
    "map for the candidates": (
        f"{FEATURES}/category_ctr",
        [{}] * 3,
        "UNKNOWN_FIELD",
        "",
        "unknown",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_refused_with_its_pointer_and_what_to_do(
    service: Caller, ranker: Ranker, wrong: str
) -> None:
    place, value, code, rest, words = WRONG[wrong]
    asked = request(ranker)
    set_at(asked, place, value)
    problem = require_problem(service.post("/v1/rank", json=asked), code, place + rest)
    assert words in problem.detail


def test_null_and_what_is_left_out_score_alike(service: Caller, ranker: Ranker) -> None:
    asked = request(ranker)
    features = asked["user"]["features"]
    names = ("taste", "category_ctr", "item_seconds", "query", "interests", "interest_weights")
    features |= dict.fromkeys(names)
    null = service.post("/v1/rank", json=asked).json()
    for name in names:
        del features[name]
    left_out = service.post("/v1/rank", json=asked).json()
    assert left_out["tasks"] == null["tasks"]
    assert set(left_out["imputed"]) == {f"{USER}/{name}" for name in names}


def test_a_vector_may_be_longer_than_lists_may_be(ranker: Ranker) -> None:
    narrow = Ranker(ranker.bundle, Limits(max_list_length=1))
    asked = request(ranker)
    bags = ("interests", "interest_weights", "category_ctr", "item_seconds")
    asked["user"]["features"] |= {"seen_item": [], "seen_age": []} | dict.fromkeys(bags)
    assert narrow.rank(asked).plain()["degraded"]["scored"] == 3


def test_a_key_given_twice_in_a_map_is_refused(service: Caller, ranker: Ranker) -> None:
    body = json.dumps(request(ranker)).replace('"c0": 0.5', '"c0": 0.5, "c0": 0.6')
    answer = service.post("/v1/rank", content=body, headers={"Content-Type": "application/json"})
    require_problem(answer, "DUPLICATE_KEY", f"{USER}/category_ctr/c0")


@pytest.mark.parametrize(
    ("column", "value"), [("query", "\ud800"), ("category_ctr", {"\ud800": 1.0})]
)
def test_a_text_that_utf8_cannot_hold_in_a_plain_tree_is_refused(
    ranker: Ranker, column: str, value: Any
) -> None:
    tree = request(ranker)
    tree["user"]["features"][column] = value
    with pytest.raises(RequestError, match=f"column {column!r}: .* surrogates not allowed"):
        ranker.rank(tree)


def test_a_number_that_is_not_finite_in_a_plain_tree_is_called_that(ranker: Ranker) -> None:
    places = {
        f"{FEATURES}/price": ([1.0, float("nan"), 2.0], "/1", "nan is not"),
        f"{FEATURES}/clicks": ([1, 2, float("inf")], "/2", "inf is not"),
        f"{USER}/taste": ([1.0, float("-inf")], "/1", "-inf is not"),
        f"{USER}/category_ctr": ({"a": 1.0, "b": float("nan")}, "/b", "nan is not"),
    }
    for place, (value, rest, words) in places.items():
        asked = request(ranker)
        set_at(asked, place, value)
        with pytest.raises(RequestError, match=words) as refused:
            ranker.rank(asked)
        assert refused.value.pointer == place + rest


def test_the_document_describes_maps_and_vectors_and_what_it_forbids_is_refused(
    service: Caller, ranker: Ranker
) -> None:
    document = service.get("/openapi.json").json()
    schema = validator(document, body_schema(document))
    asked = request(ranker)
    schema.validate(asked)
    # The values of new kinds, each replaced by others; the rest is the same as for any schema.
    kept = ("taste", "category_ctr", "item_seconds", "interests", "interest_weights")
    asked["user"]["features"] = {name: asked["user"]["features"][name] for name in kept}
    asked["candidates"] = {"features": {"picture": asked["candidates"]["features"]["picture"]}}
    refused = allowed = 0
    for changed in replaced(asked):
        body = json.dumps(changed).encode()
        answer = service.post(
            "/v1/rank", content=body, headers={"Content-Type": "application/json"}
        )
        if schema.is_valid(changed):
            assert answer.status_code in (200, 409, 422), changed
            allowed += 1
        else:
            assert answer.status_code == 422, (changed, answer.text)
            refused += 1
    assert refused > 100
    assert allowed > 50


def test_rows_as_json_say_each_key_once_and_refuse_what_json_cannot_hold() -> None:
    maps = pa.array([[(1, 0.5), (-2, None), (1, 0.25)], None], pa.map_(pa.int64(), pa.float32()))
    assert json_rows(pa.table({"m": maps}), ["m"]) == [{"m": {"1": 0.25, "-2": None}}, {"m": None}]
    wrong = pa.array([None, [("a", np.nan)]], pa.map_(pa.string(), pa.float32()))
    with pytest.raises(DataError, match="row 1: rows, column 'm': nan at key 'a' is not a finite"):
        json_rows(pa.table({"m": wrong}), ["m"])
