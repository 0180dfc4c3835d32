"""The simulated log: its shape, its truth against a plain loop over its rows, and what a learner can get from it.

`_learned_auc` fits a sparse logistic regression on explicit columns, so that what is claimed about the data does not
lean on our own models.
"""

import hashlib
import math
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import scipy.sparse  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipelines import simulate as simulate_module
from pipelines import simulate_truth as truth
from pipelines.plan import load_plan
from pipelines.rows import Tally, open_rows
from pipelines.simulate import SimulatedLog, simulate
from recsys.day_names import names_in
from recsys.errors import ArtifactError, ConfigError
from recsys.experiment import load_experiment
from recsys.schema import load_schema

Array = np.ndarray[Any, Any]

SMALL: dict[str, Any] = {"rows": 60_000, "users": 500, "items": 150, "days": 14}
# Columns whose values are names, and those whose values measure something.
NAMED = ("category", "brand", "country", "age_band", "tier", "device", "hour")
MEASURED = ("position", "price", "duration_seconds")
LABELS = {"click": "clicked", "like": "liked", "long_view": "long_viewed", "purchase": "purchased"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SimulatedLog:
    return simulate(tmp_path_factory.mktemp("simulated") / "log", **SMALL)


@pytest.fixture(scope="module")
def rows(log: SimulatedLog) -> pa.Table:
    return _read(log)


def _read(log: SimulatedLog) -> pa.Table:
    """All impressions in the order of the files, with the label that pipeline.toml makes by rule."""
    table = ds.dataset(log.directory / "impressions").to_table()
    long_viewed = pc.greater_equal(table["preview_seconds"], simulate_module.LONG_VIEW_SECONDS)
    return table.append_column("long_viewed", long_viewed)


def _numbers(rows: pa.Table, name: str) -> Array:
    return np.asarray(rows[name].to_numpy(zero_copy_only=False))


def _logit(probability: Array) -> Array:
    return np.asarray(np.log(probability) - np.log1p(-probability))


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestWhatIsWritten:
    def test_equal_arguments_write_equal_files_and_another_seed_other_ones(
        self, log: SimulatedLog, tmp_path: Path
    ) -> None:
        simulate(tmp_path / "again", **SMALL)
        simulate(tmp_path / "other", **SMALL, seed=1)
        assert _digests(tmp_path / "again") == _digests(log.directory)
        other, first = _digests(tmp_path / "other"), _digests(log.directory)
        assert {name for name in first if other[name] == first[name]} == {
            "schema.toml",
            "pipeline.toml",
            "experiment.toml",
        }

    def test_each_day_has_its_file_and_its_share_of_the_rows(self, log: SimulatedLog) -> None:
        files = sorted((log.directory / "impressions").iterdir())
        assert [path.stem for path in files] == list(log.days)
        assert (log.days[0], log.days[-1]) == ("2026-10-01", "2026-10-14")
        sizes = [pq.read_metadata(path).num_rows for path in files]
        assert sum(sizes) == log.rows == SMALL["rows"]
        assert max(sizes) - min(sizes) <= 1

    def test_rows_lie_in_their_day_in_order_of_time(self, log: SimulatedLog) -> None:
        for path in sorted((log.directory / "impressions").iterdir()):
            shown = pq.read_table(path)["shown_at"]
            assert {str(day) for day in pc.unique(pc.strftime(shown, "%Y-%m-%d")).to_pylist()} == {
                path.stem
            }
            assert (np.diff(shown.cast(pa.int64()).to_numpy()) >= 0).all()

    def test_counts_of_the_summary_are_those_of_the_rows(
        self, log: SimulatedLog, rows: pa.Table
    ) -> None:
        assert log.to_json()["rows"] == rows.num_rows
        for name, count in {
            "clicked": log.clicks,
            "liked": log.likes,
            "purchased": log.purchases,
        }.items():
            assert pc.sum(rows[name]).as_py() == count
        assert f"{log.clicks:,} clicks" in log.render()

    def test_impressions_are_numbered_from_zero(self, rows: pa.Table) -> None:
        assert (_numbers(rows, "impression_id") == np.arange(rows.num_rows)).all()

    def test_a_page_shows_distinct_items_at_positions_from_one_to_one_user_at_one_instant(
        self, rows: pa.Table
    ) -> None:
        pages = rows.group_by("request_id").aggregate(
            [
                ("item_id", "count"),
                ("item_id", "count_distinct"),
                ("position", "min"),
                ("position", "max"),
                ("position", "count_distinct"),
                ("user_id", "count_distinct"),
                ("session_id", "count_distinct"),
                ("shown_at", "count_distinct"),
            ]
        )
        size = _numbers(pages, "item_id_count")
        for name in ("item_id_count_distinct", "position_max", "position_count_distinct"):
            assert (_numbers(pages, name) == size).all(), name
        for name in (
            "position_min",
            *(f"{key}_count_distinct" for key in ("user_id", "session_id", "shown_at")),
        ):
            assert (_numbers(pages, name) == 1).all(), name
        # One short page a day makes the rows come out even.
        assert (size < 8).sum() <= SMALL["days"]

    def test_no_two_requests_of_a_user_share_an_instant(self, rows: pa.Table) -> None:
        instants = rows.group_by(["user_id", "shown_at"]).aggregate(
            [("request_id", "count_distinct")]
        )
        assert (_numbers(instants, "request_id_count_distinct") == 1).all()

    def test_sessions_have_several_requests_of_one_user(self, rows: pa.Table) -> None:
        sessions = rows.group_by("session_id").aggregate(
            [("request_id", "count_distinct"), ("user_id", "count_distinct")]
        )
        assert (_numbers(sessions, "user_id_count_distinct") == 1).all()
        requests = _numbers(sessions, "request_id_count_distinct")
        assert 1.5 < requests.mean() < 3.5
        assert requests.max() == 4

    def test_purchases_follow_clicks_and_watching_is_observed_on_clicks_alone(
        self, rows: pa.Table
    ) -> None:
        clicked, purchased = _numbers(rows, "clicked"), _numbers(rows, "purchased")
        assert not (purchased & ~clicked).any()
        assert (rows["watch_minutes"].is_valid().to_numpy() == clicked).all()

    def test_nulls_occur_where_the_catalogue_and_the_device_are_unknown(
        self, log: SimulatedLog, rows: pa.Table
    ) -> None:
        items = pq.read_table(log.directory / "items.parquet")
        assert 0 < items["price"].null_count < items.num_rows / 5
        assert 0 < rows["device"].null_count < rows.num_rows / 10
        assert not pc.any(pc.is_nan(items["price"])).as_py()

    def test_memory_does_not_grow_with_the_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(simulate_module, "WINDOW_ROWS", 2_000)

        def peak_bytes(rows: int) -> int:
            tracemalloc.start()
            simulate(tmp_path / str(rows), rows=rows, users=100, items=100, days=3)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return peak

        peak_bytes(6_000)
        assert peak_bytes(60_000) < 1.3 * peak_bytes(12_000)

    def test_cutting_days_into_windows_keeps_order_and_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(simulate_module, "WINDOW_ROWS", 1_000)
        log = simulate(tmp_path / "log", rows=10_001, users=20, items=100, days=3)
        rows = _read(log)
        assert rows.num_rows == 10_001
        assert (np.diff(rows["shown_at"].cast(pa.int64()).to_numpy()) >= 0).all()
        assert (
            pq.ParquetFile(next((tmp_path / "log" / "impressions").iterdir())).num_row_groups == 4
        )
        _assert_truth_of_a_plain_loop(log, rows, seed=0)


class TestSettings:
    def test_the_three_files_agree_with_each_other_and_with_the_days(
        self, log: SimulatedLog
    ) -> None:
        schema = load_schema(log.schema_file)
        plan = load_plan(log.pipeline_file)
        experiment = load_experiment(log.experiment_file)
        experiment.check_against(schema)
        assert plan.schema == schema
        assert names_in(experiment.data.train) == log.days[:-2]
        assert names_in(experiment.data.validation) == log.days[-2:-1]
        assert names_in(experiment.data.test or ()) == log.days[-1:]

    def test_no_input_reads_the_truth_or_what_happened(self, log: SimulatedLog) -> None:
        schema = load_schema(log.schema_file)
        happened = {
            "clicked",
            "liked",
            "long_viewed",
            "purchased",
            "watch_minutes",
            "preview_seconds",
        }
        assert not [name for name in schema.request_columns if name.startswith("oracle_")]
        assert not happened & set(schema.request_columns)

    def test_every_declared_table_holds_every_value(self, log: SimulatedLog) -> None:
        schema = load_schema(log.schema_file)
        assert schema.tables["item"].rows == SMALL["items"] + 2
        assert schema.tables["category"].rows == len(truth.CATEGORIES) + 2
        assert schema.tables["brand"].rows == len(truth.BRANDS) + 2

    def test_the_pipeline_makes_the_history_that_the_truth_saw(
        self, log: SimulatedLog, rows: pa.Table
    ) -> None:
        reader = open_rows(load_plan(log.pipeline_file)).with_histories()
        tables = [part.table for piece in reader.parts for part in reader.read(piece, Tally())]
        built = pa.concat_tables(tables).sort_by("impression_id")
        expected = _histories(rows)
        assert built["clicks_item"].to_pylist() == expected
        assert max(len(items) for items in expected) == truth.HISTORY


def _histories(rows: pa.Table) -> list[list[int]]:
    """For each row the item ids of its user's last clicks before it, by a plain loop; ties by item id."""
    clicks: dict[str, list[int]] = defaultdict(list)
    waiting: dict[str, tuple[Any, list[int]]] = {}
    found = []
    columns = (rows[name].to_pylist() for name in ("user_id", "shown_at", "item_id", "clicked"))
    for user, shown, item, clicked in zip(*columns, strict=True):
        instant, items = waiting.get(user, (shown, []))
        if instant != shown:
            clicks[user] += sorted(items)
            items = []
        waiting[user] = (shown, [*items, item] if clicked else items)
        found.append(clicks[user][-truth.HISTORY :])
    return found


def _assert_truth_of_a_plain_loop(log: SimulatedLog, rows: pa.Table, *, seed: int) -> None:
    """Recompute the oracle of every 37th row from what the log and the world say, one scalar at a time."""
    world = truth.make_world(log.users, log.items, seed=seed)
    items, users = world.items, world.users
    number = {int(item): place for place, item in enumerate(items.item_id_V)}
    histories = _histories(rows)
    for place in range(0, rows.num_rows, 37):
        row = {name: rows[name][place].as_py() for name in rows.column_names}
        item, user = number[row["item_id"]], int(row["user_id"][1:])
        device = len(truth.DEVICES) if row["device"] is None else truth.DEVICES.index(row["device"])
        topics = [world.topic_CK[items.category_V[number[clicked]]] for clicked in histories[place]]
        match = (
            3.0 * float(np.mean(topics, axis=0) @ world.topic_CK[items.category_V[item]])
            if topics
            else 0.0
        )
        age, tier = users.age_U[user] * 0.75 - 1.5, users.tier_U[user] * 1.5 - 1.5
        evening = math.cos((row["shown_at"].hour - 21) * math.pi / 12)
        for response, name in enumerate(("click", "like", "long_view")):
            logit = (
                truth.BIAS_T[response]
                + items.effect_VT[item, response]
                + users.effect_UT[user, response]
            )
            logit += match * truth.MATCH_T[response] + world.device_effect[device, response]
            logit += age * items.luridness_V[item] * truth.AGE_BY_LURIDNESS_T[response]
            logit += tier * items.log_price_V[item] * truth.TIER_BY_LOG_PRICE_T[response]
            logit += math.log(row["position"]) * truth.LOG_POSITION_T[response]
            logit += evening * truth.EVENING_T[response]
            assert row[f"oracle_{name}"] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-9)


class TestTruth:
    def test_the_oracle_follows_from_the_clicks_before_each_row(
        self, log: SimulatedLog, rows: pa.Table
    ) -> None:
        _assert_truth_of_a_plain_loop(log, rows, seed=0)

    @pytest.mark.parametrize("task", LABELS)
    def test_labels_happen_as_often_as_the_oracle_says_in_every_tenth(
        self, rows: pa.Table, task: str
    ) -> None:
        label, chance = _numbers(rows, LABELS[task]), _numbers(rows, f"oracle_{task}")
        for tenth in np.array_split(np.argsort(chance), 10):
            error = math.sqrt(float((chance[tenth] * (1 - chance[tenth])).sum()))
            # Four standard errors: 40 comparisons, and the seed is fixed.
            assert abs(label[tenth].sum() - chance[tenth].sum()) < 4 * error

    def test_watch_time_is_right_on_average_in_every_tenth(self, rows: pa.Table) -> None:
        clicked = rows.filter(rows["clicked"])
        watched, expected = (
            _numbers(clicked, "watch_minutes"),
            _numbers(clicked, "oracle_watch_minutes"),
        )
        for tenth in np.array_split(np.argsort(expected), 10):
            # Gamma noise of shape 4: its deviation is half the mean.
            error = 0.5 * math.sqrt(float((expected[tenth] ** 2).sum()))
            assert abs(watched[tenth].sum() - expected[tenth].sum()) < 4 * error

    @pytest.mark.parametrize("task", LABELS)
    def test_the_oracle_ranks_well_but_not_perfectly(self, rows: pa.Table, task: str) -> None:
        assert 0.70 < _oracle_auc(rows, task) < 0.88

    def test_clicks_and_likes_conflict(self, rows: pa.Table) -> None:
        click, like = (_logit(_numbers(rows, f"oracle_{task}")) for task in ("click", "like"))
        assert np.corrcoef(click, like)[0, 1] < -0.3
        labels = [_numbers(rows, LABELS[task]).astype(float) for task in ("click", "like")]
        assert np.corrcoef(labels)[0, 1] < -0.03

    def test_what_a_learner_gets_depends_on_ids_and_history(self, log: SimulatedLog) -> None:
        rows = _with_items(log, _read(log))
        _assert_ids_and_history_matter(log, rows, ("click", "like"), held_out_days=3)

    @pytest.mark.parametrize("task", LABELS)
    def test_no_single_column_says_it_all(self, log: SimulatedLog, task: str) -> None:
        _assert_no_column_says_it_all(_with_items(log, _read(log)), task, held_out_days=3)


@pytest.mark.slow
def test_the_default_log_is_hard_enough_and_can_be_learned(tmp_path: Path) -> None:
    log = simulate(tmp_path / "log")
    rows = _with_items(log, _read(log))
    for task in LABELS:
        assert 0.70 < _oracle_auc(rows, task) < 0.88
        _assert_no_column_says_it_all(rows, task, held_out_days=1)
    gaps = _assert_ids_and_history_matter(log, rows, tuple(LABELS), held_out_days=1)
    assert max(gaps[task] for task in ("click", "like", "long_view")) < 0.01


def _assert_ids_and_history_matter(
    log: SimulatedLog, rows: pa.Table, tasks: tuple[str, ...], *, held_out_days: int
) -> dict[str, float]:
    """How far the oracle lies above what was learned, per task, once permuted ids and no history were seen to cost."""
    test_B = _held_out(rows, held_out_days)
    shuffled = np.random.default_rng(5).permutation(rows.num_rows)
    others, ids, history = _known_columns(rows), _item_columns(rows), _match_column(log, rows)
    whole = scipy.sparse.hstack([others, ids, history], format="csr")
    permuted = scipy.sparse.hstack([others, ids[shuffled], history], format="csr")
    without = scipy.sparse.hstack([others, ids], format="csr")
    gaps = {}
    for task in tasks:
        learned = _learned_auc(rows, task, whole, test_B)
        assert learned - _learned_auc(rows, task, permuted, test_B) > 0.03
        assert learned - _learned_auc(rows, task, without, test_B) > 0.01
        gaps[task] = _oracle_auc(rows.filter(pa.array(test_B)), task) - learned
    return gaps


def _assert_no_column_says_it_all(rows: pa.Table, task: str, *, held_out_days: int) -> None:
    """Neither a column's values nor the mean label of each of its values come within 0.03 AUC of the oracle."""
    test_B = _held_out(rows, held_out_days)
    test = rows.filter(pa.array(test_B))
    oracle, label_B = _oracle_auc(test, task), _numbers(rows, LABELS[task])
    for name in (*NAMED, *MEASURED, "item_id", "user_id"):
        if name in MEASURED:
            auc = roc_auc_score(label_B[test_B], np.nan_to_num(_numbers(rows, name))[test_B])
            assert oracle - max(auc, 1 - auc) > 0.03, name
        code_B = _codes(rows[name])
        positives = np.bincount(code_B[~test_B], label_B[~test_B], code_B.max() + 1)
        seen = np.bincount(code_B[~test_B], minlength=code_B.max() + 1)
        # Shrunk towards the base rate, as if ten more rows of each value had been seen.
        mean = (positives + 10 * label_B.mean()) / (seen + 10)
        assert oracle - roc_auc_score(label_B[test_B], mean[code_B[test_B]]) > 0.03, name


def _learned_auc(rows: pa.Table, task: str, columns: Any, test_B: Array) -> float:
    """Test AUC of a logistic regression; a purchase's is the product of two, as in a funnel."""
    parts = ("click", "purchase") if task == "purchase" else (task,)
    score = np.ones(int(test_B.sum()))
    for part in parts:
        train_B = ~test_B & _numbers(rows, "clicked") if part == "purchase" else ~test_B
        model = LogisticRegression(C=0.5, max_iter=1_000, tol=3e-4)
        model.fit(columns[train_B], _numbers(rows, LABELS[part])[train_B])
        score *= model.predict_proba(columns[test_B])[:, 1]
    return float(roc_auc_score(_numbers(rows, LABELS[task])[test_B], score))


def _known_columns(rows: pa.Table) -> Any:
    """What a row says besides item id and history: categories one-hot, measures standardised."""
    measures = [np.log1p(np.nan_to_num(_numbers(rows, name).astype(float))) for name in MEASURED]
    scaled = [(values - values.mean()) / values.std() for values in measures]
    interests = rows["interests"].combine_chunks().flatten()
    hot = [_one_hot(interests[side::2]) for side in (0, 1)]
    named = [_one_hot(rows[name]) for name in NAMED]
    return scipy.sparse.hstack([*named, hot[0] + hot[1], np.stack(scaled, axis=1)], format="csr")


def _item_columns(rows: pa.Table) -> Any:
    """One column an item, and one an item that grows with the user's age."""
    ids = _one_hot(rows["item_id"])
    age_B = np.asarray(pc.index_in(rows["age_band"], value_set=pa.array(truth.AGE_BANDS)))
    return scipy.sparse.hstack([ids, ids.multiply(age_B[:, None] / 2.0 - 1.0)], format="csr")


def _match_column(log: SimulatedLog, rows: pa.Table) -> Array:
    """What the history says about each row: the truth's match, from the clicks that a plain loop finds in the rows."""
    world = truth.make_world(log.users, log.items, seed=log.seed)
    by_id_V = np.argsort(world.items.item_id_V)
    sorted_id_V = world.items.item_id_V[by_id_V]
    recent_QL = np.full((rows.num_rows, truth.HISTORY), -1)
    for row, items in enumerate(_histories(rows)):
        recent_QL[row, : len(items)] = by_id_V[np.searchsorted(sorted_id_V, items)]
    item_Q1 = by_id_V[np.searchsorted(sorted_id_V, _numbers(rows, "item_id"))][:, None]
    return truth.page_match(world, recent_QL, item_Q1)


def _one_hot(values: pa.Array | pa.ChunkedArray) -> Any:
    code_B = _codes(values)
    ones = np.ones(len(code_B))
    return scipy.sparse.csr_matrix((ones, (np.arange(len(code_B)), code_B)))


def _codes(values: pa.Array | pa.ChunkedArray) -> Array:
    """A number from 0 for each distinct value, null being one."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(pc.dictionary_encode(whole, null_encoding="encode").indices)


def _with_items(log: SimulatedLog, rows: pa.Table) -> pa.Table:
    """The rows with the columns of the catalogue, in order of time."""
    items = pq.read_table(log.directory / "items.parquet")
    place = pc.index_in(rows["item_id"], value_set=items["item_id"].combine_chunks())
    for name in ("category", "brand", "price", "duration_seconds"):
        rows = rows.append_column(name, items[name].combine_chunks().take(place))
    return rows


def _held_out(rows: pa.Table, days: int) -> Array:
    day = pc.floor_temporal(rows["shown_at"], unit="day").cast(pa.int64()).to_numpy()
    return np.isin(day, np.unique(day)[-days:])


def _oracle_auc(rows: pa.Table, task: str) -> float:
    return float(roc_auc_score(_numbers(rows, LABELS[task]), _numbers(rows, f"oracle_{task}")))


class TestMistakes:
    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"days": 2}, "simulate: days is 2; give at least 3"),
            ({"items": 99}, "simulate: items is 99; give at least 100"),
            ({"users": 0}, "simulate: users is 0; give at least 10"),
            ({"rows": 999}, "simulate: rows is 999; give at least 1000"),
            ({"rows": 1_000, "days": 11}, "simulate: 1000 rows are few for 11 days"),
            ({"seed": -1}, "simulate: seed is -1; give at least 0"),
        ],
    )
    def test_a_size_that_makes_no_log_is_refused(
        self, tmp_path: Path, sizes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            simulate(tmp_path / "log", **sizes)
        assert list(tmp_path.iterdir()) == []

    def test_a_start_that_is_no_date_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match="start is 'October'; write a date such as 2026-10-01"
        ):
            simulate(tmp_path / "log", start="October")

    @pytest.mark.parametrize(
        "occupy", [Path.touch, lambda path: (path / "mine").mkdir(parents=True)]
    )
    def test_nothing_that_exists_is_overwritten(
        self, tmp_path: Path, occupy: Callable[[Path], None]
    ) -> None:
        occupy(tmp_path / "log")
        with pytest.raises(
            ConfigError, match=r"log: is there already .* remove it or name another"
        ):
            simulate(tmp_path / "log")

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "log").mkdir()
        log = simulate(tmp_path / "log", rows=1_400, users=10, items=100)
        assert log.schema_file.is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["log"]

    def test_a_place_that_cannot_be_written_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ArtifactError, match="cannot be written"):
            simulate(tmp_path / "file" / "log")
