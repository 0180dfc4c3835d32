"""Point-in-time histories against a plain loop, and the properties that make them point-in-time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.timeline import EventLog, Moments, moments
from tests.pipelines.small_pipeline import PIPELINE, SCHEMA, SmallPipeline

TIME = pa.timestamp("us", tz="UTC")
TYPES = {"item": pa.int64(), "brand": pa.string()}


@dataclass(frozen=True)
class Event:
    """A row of a log: who, when, and two tokens that may be null."""

    user: str | None
    time: int | None
    item: int | None
    brand: str | None

    @property
    def order(self) -> tuple[Any, ...]:
        """Time, then tokens; null before everything, as the code -1 is."""
        return (
            self.time,
            self.item is not None,
            self.item or 0,
            self.brand is not None,
            self.brand or "",
        )


events = st.builds(
    Event,
    st.sampled_from(["ann", "bob", "cat", None]),
    st.one_of(st.integers(-3, 6), st.none()),
    st.one_of(st.integers(-2, 2), st.none()),
    st.sampled_from(["x", "y", "", None]),
)


def lists(
    log: list[Event], rows: list[Event], *, max_length: int, batch: int
) -> list[tuple[list[Any], list[Any]]]:
    """What the code makes: events added `batch` at a time."""
    gathered = EventLog(("item", "brand"))
    for start in range(0, len(log), batch):
        some = log[start : start + batch]
        tokens = {
            "item": pa.array([event.item for event in some], pa.int64()),
            "brand": pa.array([event.brand for event in some], pa.string()),
        }
        gathered.add(whose_and_when(some), tokens)
    timeline = gathered.timeline(TYPES)
    found = timeline.lists(timeline.before(whose_and_when(rows)).last(max_length))
    return list(zip(found["item"].to_pylist(), found["brand"].to_pylist(), strict=True))


def whose_and_when(some: list[Event]) -> Moments:
    users = pa.array([event.user for event in some], pa.string())
    return moments([users], pa.array([event.time for event in some], TIME))


def naive(
    log: list[Event], rows: list[Event], *, max_length: int
) -> list[tuple[list[Any], list[Any]]]:
    """What it should make: for each row all earlier events of its user, sorted, the last ones kept."""
    result = []
    for row in rows:
        earlier: list[Event] = []
        if row.user is not None and row.time is not None:
            known = [event for event in log if event.user == row.user]
            earlier = sorted(
                (event for event in known if event.time is not None and event.time < row.time),
                key=lambda event: event.order,
            )
        last = earlier[-max_length:]
        result.append(([event.item for event in last], [event.brand for event in last]))
    return result


@given(
    st.lists(events, max_size=40),
    st.lists(events, max_size=12),
    st.integers(1, 5),
    st.integers(1, 50),
)
@settings(max_examples=100, deadline=None)
def test_histories_equal_a_plain_loop(
    log: list[Event], rows: list[Event], max_length: int, batch: int
) -> None:
    assert lists(log, rows, max_length=max_length, batch=batch) == naive(
        log, rows, max_length=max_length
    )


@given(st.lists(events, max_size=30), events, st.data())
@settings(max_examples=60, deadline=None)
def test_changing_events_at_or_after_the_row_changes_nothing(
    log: list[Event], row: Event, data: st.DataObject
) -> None:
    before = lists(log, [row], max_length=3, batch=7)
    when = row.time or 0
    past = [event for event in log if event.time is not None and event.time < when]
    future = data.draw(
        st.lists(
            st.builds(
                Event,
                st.just(row.user),
                st.integers(when, when + 5),
                st.integers(-2, 2),
                st.just("z"),
            )
        )
    )
    mixed = data.draw(st.permutations([*past, *future]))
    assert lists(list(mixed), [row], max_length=3, batch=7) == (
        before if row.time is not None else [([], [])]
    )


def test_many_users_and_extreme_times_do_not_collide() -> None:
    rng = np.random.default_rng(0)
    limit = 2**62
    log = [
        Event(
            f"u{rng.integers(50)}",
            int(rng.integers(-limit, limit)) // 10**6 * 10**6,
            int(rng.integers(9)),
            None,
        )
        for _ in range(2_000)
    ]
    rows = [
        Event(f"u{rng.integers(60)}", int(rng.integers(-limit, limit)), None, None)
        for _ in range(300)
    ]
    assert lists(log, rows, max_length=4, batch=333) == naive(log, rows, max_length=4)


SEQUENCE_SCHEMA = SCHEMA.replace(
    "[keys]", 'seen_item = "list<int64>"\nseen_at = "list<timestamp>"\n[keys]'
).replace(
    "[tasks]",
    '[sequences.seen]\nitem = { table = "item" }\nage = { kind = "time_gap", column = "seen_at" }\n[tasks]',
)
HISTORY = """
[histories.seen]
where = { column = "clicked", equals = true }
max_length = 2
tokens = { seen_item = "item", seen_at = "shown_at" }
"""


def log_rows(*rows: tuple[str, int, str, int]) -> str:
    lines = [
        f"{user},{item},1,2026-10-01T00:00:{second}Z,{clicked}"
        for user, item, second, clicked in rows
    ]
    return "\n".join(["user,item,price,shown_at,clicked", *lines]) + "\n"


LOG = (
    ("ann", 1, "01", 1),
    ("ann", 2, "02", 0),
    ("bob", 3, "02", 1),
    ("ann", 4, "03", 1),
    ("ann", 5, "03", 1),
    ("ann", 6, "04", 0),
)


def seen(
    path: Path, *rows: tuple[str, int, str, int], filters: str = "", split: int = 0
) -> dict[int, list[int]]:
    """For each row's item its history, the log written as one file, or cut in two after `split` rows."""
    pieces = (rows,) if not split else (rows[:split], rows[split:])
    files: dict[str, str | bytes | pa.Table] = {
        f"log{n}.csv": log_rows(*piece) for n, piece in enumerate(pieces)
    }
    pipeline = PIPELINE.replace("log.csv", "log*.csv") + HISTORY + filters
    small = SmallPipeline(path, schema=SEQUENCE_SCHEMA, pipeline=pipeline, files=files)
    return {row["item"]: row["seen_item"] for row in small.rows()}


def test_a_row_sees_the_clicks_before_it_and_neither_itself_nor_its_instant(tmp_path: Path) -> None:
    assert seen(tmp_path, *LOG) == {1: [], 2: [1], 3: [], 4: [1], 5: [1], 6: [4, 5]}


def test_the_order_of_rows_and_files_changes_no_history(tmp_path: Path) -> None:
    expected = seen(tmp_path / "sorted", *LOG)
    assert seen(tmp_path / "reversed", *reversed(LOG)) == expected
    assert seen(tmp_path / "two files", *LOG[3:], *LOG[:3], split=3) == expected


def test_a_filtered_row_is_still_an_event(tmp_path: Path) -> None:
    filters = '\n[[filters]]\ncolumn = "clicked"\nequals = false\n'
    assert seen(tmp_path, *LOG, filters=filters) == {2: [1], 6: [4, 5]}


def test_histories_of_one_sequence_are_aligned_and_carry_times(tmp_path: Path) -> None:
    files: dict[str, str | bytes | pa.Table] = {"log.csv": log_rows(*LOG)}
    small = SmallPipeline(
        tmp_path, schema=SEQUENCE_SCHEMA, pipeline=PIPELINE + HISTORY, files=files
    )
    last = small.rows()[-1]
    assert [
        (item, when.second) for item, when in zip(last["seen_item"], last["seen_at"], strict=True)
    ] == [(4, 3), (5, 3)]


def test_a_pipeline_without_a_single_event_has_empty_histories(tmp_path: Path) -> None:
    assert seen(tmp_path, ("ann", 1, "01", 0), ("ann", 2, "02", 0)) == {1: [], 2: []}


@pytest.mark.parametrize(
    "where", ["", 'where = [{ column = "clicked", equals = true }, { column = "item", above = 1 }]']
)
def test_where_may_be_absent_or_several_rules(tmp_path: Path, where: str) -> None:
    history = HISTORY.replace('where = { column = "clicked", equals = true }', where)
    files: dict[str, str | bytes | pa.Table] = {"log.csv": log_rows(*LOG)}
    small = SmallPipeline(
        tmp_path, schema=SEQUENCE_SCHEMA, pipeline=PIPELINE + history, files=files
    )
    assert small.rows()[3]["seen_item"] == ([] if where else [1, 2])


def test_a_row_whose_rule_is_null_is_no_event(tmp_path: Path) -> None:
    log = log_rows(*LOG).replace("ann,1,1,2026-10-01T00:00:01Z,1", "ann,1,1,2026-10-01T00:00:01Z,")
    small = SmallPipeline(tmp_path, SEQUENCE_SCHEMA, PIPELINE + HISTORY, {"log.csv": log})
    assert [row["seen_item"] for row in small.rows()] == [[], [], [], [], [], [4, 5]]
