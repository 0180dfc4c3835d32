"""The examples with users, items and times run from the original files, and see of them only what came before.

Oracles are plain loops over the files. Ties leave a history's order open, so sets or times are compared.
"""

import csv
import gzip
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.build import build, fit
from pipelines.contract import check
from pipelines.raw_rows import write_rows
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import load_experiment
from recsys.report import read_report
from recsys.training.trainer import train

EXAMPLES = Path(__file__).parents[2] / "examples"
DAY = 86_400_000

Row = dict[str, Any]


@pytest.fixture
def original_files(recsys_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_DATA", str(recsys_data))
    return recsys_data


def lines(path: Path, *, delimiter: str) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def raw_rows(name: str, folder: Path, *, split: str) -> list[Row]:
    """The rows of a split as the encoder gets them, in the order of the files."""
    out = folder / f"{name}.parquet"
    write_rows(EXAMPLES / name / "pipeline.toml", out, days=[split])
    rows: list[Row] = pq.read_table(out).to_pylist()
    return rows


def built(name: str, folder: Path) -> dict[str, int]:
    """Rows by split of a whole example, checked, fitted and built."""
    pipeline = EXAMPLES / name / "pipeline.toml"
    assert check(pipeline).problems == []
    fit(pipeline, folder / "encoder")
    summary = build(pipeline, folder / "data", encoder=folder / "encoder")
    return {day.day: day.rows for day in summary.days}


def at(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def test_kuairand_splits_by_the_published_days(tmp_path: Path, original_files: Path) -> None:
    assert built("kuairand", tmp_path) == {"train": 35_716, "validation": 2_277, "test": 3_835}


def test_kuairand_rows_know_of_their_user_and_video_what_came_before(
    tmp_path: Path, original_files: Path
) -> None:
    log = lines(original_files / "kuairand_27k_explicit" / "interactions.tsv.gz", delimiter="\t")
    of_user: dict[str, list[dict[str, str]]] = defaultdict(list)
    of_video: dict[str, list[dict[str, str]]] = defaultdict(list)
    for event in sorted(log, key=lambda event: int(event["time_ms"])):
        of_user[event["user_id"]].append(event)
        of_video[event["video_id"]].append(event)
    held_out = [event for event in log if event["date"] >= "20220420"]
    found = raw_rows("kuairand", tmp_path, split="test")
    assert len(found) == len(held_out)
    for row, event in zip(found, held_out, strict=True):
        now = int(event["time_ms"])
        earlier = [other for other in of_user[event["user_id"]] if int(other["time_ms"]) < now]
        today = [other for other in earlier if int(other["time_ms"]) >= now - DAY]
        watched = [other for other in of_video[event["video_id"]] if int(other["time_ms"]) < now]
        assert row["views"] == len(earlier)
        assert row["comments"] == sum(other["is_comment"] == "1" for other in earlier)
        assert row["clicks_day"] == sum(other["is_click"] == "1" for other in today)
        assert row["video_long_views"] == sum(other["long_view"] == "1" for other in watched)
        assert row["recent_at"] == [at(int(other["time_ms"])) for other in earlier[-6:]]


@pytest.mark.slow
def test_movielens_small_keeps_users_apart_and_time_in_order(
    tmp_path: Path, original_files: Path
) -> None:
    ratings = lines(original_files / "movielens_latest_small" / "ratings.csv.gz", delimiter=",")
    rows = built("movielens_small", tmp_path)
    assert sum(rows.values()) == len(ratings) == 100_836
    found = raw_rows("movielens_small", tmp_path, split="test")
    users = {str(row["user_id"]) for row in found}
    own = [rating for rating in ratings if rating["userId"] in users]
    assert rows["test"] == len(found) == len(own)
    likes = [rating for rating in own if float(rating["rating"]) >= 4]
    of_user: dict[str, list[dict[str, str]]] = defaultdict(list)
    for like in likes:
        of_user[like["userId"]].append(like)
    for row, rating in zip(found, own, strict=True):
        now = int(rating["timestamp"])
        earlier = {
            int(like["movieId"])
            for like in of_user[rating["userId"]]
            if int(like["timestamp"]) < now
        }
        assert row["user_likes"] == len(earlier)
        assert set(row["liked_movie"]) <= earlier
        assert len(row["liked_movie"]) == min(30, len(earlier))
        assert (row["like"], row["love"]) == (
            float(rating["rating"]) >= 4,
            float(rating["rating"]) == 5,
        )


@pytest.mark.slow
def test_movielens_1m_trains_on_timed_ratings_and_counts_the_untimed_ones(
    tmp_path: Path, original_files: Path
) -> None:
    table = pq.read_table(original_files / "movielens_1m_partial" / "interactions.parquet")
    log: list[Row] = table.to_pylist()
    assert built("movielens_1m", tmp_path) == {
        "train": 496_687,
        "validation": 31_324,
        "test": 82_195,
    }

    def counted(key: str, keep: Callable[[Row], bool]) -> Counter[int]:
        return Counter(event[key] for event in log if keep(event))

    lows = counted("user_id", lambda event: event["source"] == "inferred_low")
    loves = counted("movie_id", lambda event: event["split"] == "train" and event["love"] == 1)
    likes: dict[int, list[Row]] = defaultdict(list)
    for event in log:
        if event["like"] == 1:
            likes[event["user_id"]].append(event)
    found = raw_rows("movielens_1m", tmp_path, split="validation")
    events = [event for event in log if event["split"] == "val"]
    for row, event in list(zip(found, events, strict=True))[::50]:
        earlier = {
            like["movie_id"]
            for like in likes[event["user_id"]]
            if like["timestamp"] < event["timestamp"]
        }
        assert set(row["liked_movie"]) <= earlier
        assert len(row["liked_movie"]) == min(50, len(earlier))
        assert row["user_lows"] == lows[event["user_id"]]
        assert row["movie_loves"] == loves[event["movie_id"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"), [("kuairand", "click"), ("movielens_small", "like"), ("movielens_1m", "love")]
)
def test_a_short_training_of_an_example_with_ids_beats_a_coin(
    tmp_path: Path, original_files: Path, name: str, task: str
) -> None:
    built(name, tmp_path)
    example = EXAMPLES / name
    for file in ("schema.toml", "experiment.toml"):
        (tmp_path / file).write_text((example / file).read_text(encoding="utf-8"))
    short = load_experiment(
        tmp_path / "experiment.toml", overrides=("train.steps=40", "train.threads=1")
    )
    train(short, tmp_path / "run")
    evaluate(tmp_path / "run", tmp_path / "report")
    auc = read_report(tmp_path / "report").binary(task).auc
    assert auc is not None
    assert auc > 0.6
