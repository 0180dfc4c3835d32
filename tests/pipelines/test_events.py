"""Counters and attributed labels against plain loops, and the properties that make them point-in-time."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract import check
from pipelines.plan import load_plan
from recsys.errors import ConfigError, DataError
from tests.pipelines.small_pipeline import SmallPipeline

START = datetime(2026, 10, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """A row of a log: whose and of which item, at how many seconds, and what it was."""

    user: str | None
    item: int | None
    second: int | None
    kind: str | None


rows = st.builds(
    Row,
    st.sampled_from(["ann", "bob", None]),
    st.sampled_from([1, 2, None]),
    st.one_of(st.integers(0, 9), st.none()),
    st.sampled_from(["view", "cart", None]),
)

LOG_SCHEMA = """
[columns]
user = "string"
item = "int64"
kind = "string"
shown_at = "timestamp"
views = "int64"
pairs = "int64"
recent = "int64"
bought = "bool"

[keys]
user = "user"
item = "item"
time = "shown_at"
keep = ["views", "pairs", "recent"]

[tables]
item = { rows = 100 }

[features]
item = { kind = "categorical", table = "item" }
views = { kind = "numeric" }

[tasks]
buy = { label = "bought" }
"""
LABEL = (
    '{ event = { column = "kind", equals = "cart" }, same = ["user", "item"], within_seconds = 4 }'
)
LOG_PIPELINE = """
schema_file = "schema.toml"

[source]
path = "log*.parquet"
format = "parquet"

[counters.views]
[counters.pairs]
by = ["user", "item"]
where = { column = "kind", equals = "cart" }
[counters.recent]
by = "item"
window_seconds = 3

[labels]
bought = LABEL

[split]
by = "hash"
parts = { train = 0.5, test = 0.5 }
""".replace("LABEL", LABEL)


def table(log: list[Row]) -> pa.Table:
    times = [None if row.second is None else START + timedelta(seconds=row.second) for row in log]
    return pa.table(
        {
            "user": pa.array([row.user for row in log], pa.string()),
            "item": pa.array([row.item for row in log], pa.int64()),
            "kind": pa.array([row.kind for row in log], pa.string()),
            "shown_at": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )


def found(folder: Path, *files: list[Row], pipeline: str = LOG_PIPELINE) -> list[tuple[Any, ...]]:
    """What the code makes of a log, cut into files, row by row."""
    tables: dict[str, Any] = {f"log{n}.parquet": table(log) for n, log in enumerate(files)}
    for old in folder.glob("log*"):
        old.unlink()
    small = SmallPipeline(folder, LOG_SCHEMA, pipeline, tables)
    return [(row["views"], row["pairs"], row["recent"], row["bought"]) for row in small.rows()]


def naive(log: list[Row]) -> list[tuple[Any, ...]]:
    """What it should make, each row held against all rows."""
    ends = max((row.second for row in log if row.second is not None), default=-1)
    return [(*_counts(row, log), _bought(row, log, ends)) for row in log]


def _counts(row: Row, log: list[Row]) -> tuple[int | None, int | None, int | None]:
    if row.second is None:
        return None, None, None
    earlier = [other for other in log if other.second is not None and other.second < row.second]
    views = sum(other.user == row.user for other in earlier)
    pairs = sum(
        (other.user, other.item, other.kind) == (row.user, row.item, "cart") for other in earlier
    )
    recent = sum(
        other.item == row.item and (other.second or 0) >= row.second - 3 for other in earlier
    )
    return (
        None if row.user is None else views,
        None if row.user is None or row.item is None else pairs,
        None if row.item is None else recent,
    )


def _bought(row: Row, log: list[Row], ends: int) -> bool | None:
    if row.second is None or row.user is None or row.item is None or ends < row.second + 4:
        return None
    return any(
        (other.user, other.item, other.kind) == (row.user, row.item, "cart")
        and other.second is not None
        and row.second <= other.second <= row.second + 4
        for other in log
    )


@given(st.lists(rows, min_size=1, max_size=30), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_counters_and_attributed_labels_equal_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, log: list[Row], cut: int
) -> None:
    pieces = [piece for piece in (log[:cut], log[cut:]) if piece]
    assert found(tmp_path_factory.mktemp("log"), *pieces) == naive(log)


@given(st.lists(rows, max_size=20), rows, st.lists(rows, max_size=8), st.randoms())
@settings(max_examples=20, deadline=None)
def test_changing_events_at_or_after_a_row_changes_no_counter_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    log: list[Row],
    row: Row,
    others: list[Row],
    random: Any,
) -> None:
    row = replace(row, second=row.second or 0)
    past = [other for other in log if other.second is not None and other.second < row.second]
    future = [replace(other, second=row.second + (other.second or 0)) for other in others]
    folder = tmp_path_factory.mktemp("log")
    before = found(folder, [row, *past])[0][:3]
    mixed = [*past, *future]
    random.shuffle(mixed)
    assert found(folder, [row, *mixed])[0][:3] == before


@given(st.lists(rows, max_size=20), rows)
@settings(max_examples=20, deadline=None)
def test_changing_events_before_a_row_or_after_its_window_changes_no_label_of_it(
    tmp_path_factory: pytest.TempPathFactory, log: list[Row], row: Row
) -> None:
    row = replace(row, second=5)
    end = Row(None, None, 20, None)
    inside = [other for other in log if other.second is not None and 5 <= other.second <= 9]
    outside = [replace(other, second=second) for other in log for second in (4, 10)]
    folder = tmp_path_factory.mktemp("log")
    assert (
        found(folder, [row, *inside, *outside, end])[0][3]
        == (found(folder, [row, *inside, end])[0][3])
    )


def test_the_order_of_rows_and_files_changes_nothing(tmp_path: Path) -> None:
    log = [Row("ann", n % 2 + 1, n * 7 % 10, ("view", "cart")[n % 3 == 0]) for n in range(20)]
    expected = sorted(zip(map(str, log), found(tmp_path, log), strict=True))
    turned = list(reversed(log))
    assert (
        sorted(zip(map(str, turned), found(tmp_path, turned[:7], turned[7:]), strict=True))
        == expected
    )


def test_a_filtered_row_is_still_counted_and_still_an_outcome(tmp_path: Path) -> None:
    log = [Row("ann", 1, 0, "cart"), Row("ann", 1, 1, "view"), Row("ann", 1, 5, "cart")]
    pipeline = LOG_PIPELINE + '\n[[filters]]\ncolumn = "kind"\nequals = "view"\n'
    assert found(tmp_path, log, pipeline=pipeline) == [(1, 1, 1, True)]


def test_a_filter_may_leave_out_rows_whose_label_is_not_known_yet(tmp_path: Path) -> None:
    log = [Row("ann", 1, 0, "view"), Row("ann", 1, 7, "view"), Row("ann", 1, 8, "cart")]
    pipeline = LOG_PIPELINE + '\n[[filters]]\ncolumn = "bought"\nnot_null = true\n'
    assert [row[3] for row in found(tmp_path, log, pipeline=pipeline)] == [False]


def test_an_attributed_label_takes_the_dtype_that_the_schema_declares(tmp_path: Path) -> None:
    log = [Row("ann", 1, 0, "cart"), Row("ann", 2, 0, "view"), Row("bob", 1, 9, "view")]
    schema = LOG_SCHEMA.replace('bought = "bool"', 'bought = "float32"')
    small = SmallPipeline(tmp_path, schema, LOG_PIPELINE, {"log.parquet": table(log)})
    assert [row["bought"] for row in small.rows()] == [1.0, 0.0, None]


def test_events_may_be_told_by_a_label_of_their_own_row(tmp_path: Path) -> None:
    pipeline = LOG_PIPELINE.replace(
        "[labels]", '[labels]\ncarted = { column = "kind", equals = "cart" }'
    ).replace(
        'event = { column = "kind", equals = "cart" }',
        'event = { column = "carted", equals = true }',
    )
    log = [Row("ann", 1, 0, "view"), Row("ann", 1, 4, "cart"), Row("ann", 1, 9, "cart")]
    assert [row[3] for row in found(tmp_path, log, pipeline=pipeline)] == [True, True, None]


def test_a_key_of_several_columns_depends_on_their_order(tmp_path: Path) -> None:
    schema = LOG_SCHEMA.replace('kind = "string"', 'kind = "string"\nother = "int64"')
    pipeline = LOG_PIPELINE.replace('by = ["user", "item"]', 'by = ["item", "other"]')
    log = table([Row("ann", item, second, "cart") for second, item in enumerate((1, 2, 2))])
    log = log.append_column("other", pa.array([2, 1, 1]))
    small = SmallPipeline(tmp_path, schema, pipeline, {"log.parquet": log})
    assert [row["pairs"] for row in small.rows()] == [0, 0, 1]


def digests(folder: Path, pipeline: str) -> tuple[str, str]:
    plan = SmallPipeline(folder, LOG_SCHEMA, pipeline, {}).plan()
    return plan.labels_digest, plan.rules_digest


def test_an_attributed_label_and_what_it_is_made_of_are_in_the_labels_digest(
    tmp_path: Path,
) -> None:
    by_label = LOG_PIPELINE.replace(
        "[labels]", '[labels]\ncarted = { column = "kind", equals = "cart" }'
    ).replace(
        'event = { column = "kind", equals = "cart" }',
        'event = { column = "carted", equals = true }',
    )
    variants = [
        LOG_PIPELINE,
        LOG_PIPELINE.replace("within_seconds = 4", "within_seconds = 5"),
        by_label,
        by_label.replace('"cart"', '"basket"'),
    ]
    assert len({digests(tmp_path, pipeline)[0] for pipeline in variants}) == 4


def test_a_counter_is_in_the_rules_digest_alone(tmp_path: Path) -> None:
    labels, rules = digests(tmp_path, LOG_PIPELINE)
    changed = digests(tmp_path, LOG_PIPELINE.replace("window_seconds = 3", "window_seconds = 4"))
    assert changed[0] == labels
    assert changed[1] != rules


def test_a_feature_that_says_whether_the_row_is_the_event_is_a_leak(tmp_path: Path) -> None:
    schema = LOG_SCHEMA.replace(
        "views = { kind", 'kind = { kind = "categorical", table = "kind" }\nviews = { kind'
    ).replace("[tables]", "[tables]\nkind = { rows = 9 }")
    log = [Row("ann", 1, 0, "view"), Row("ann", 1, 9, "cart")]
    report = check(
        SmallPipeline(tmp_path, schema, LOG_PIPELINE, {"log.parquet": table(log)}).write()
    )
    assert "feature 'kind' reads column 'kind', which the label of task 'buy'" in report.problems[0]


@pytest.mark.parametrize(
    ("schema", "pipeline", "said"),
    [
        (
            (),
            ("counters.recent", "counters.recnt"),
            r"counters\.recnt: .*not declared \(did you mean 'recent'\?\); write recnt =",
        ),
        (('views = "int64"', 'views = "float32"'), (), r"counters\.views: .* found float32"),
        (
            ('time = "shown_at"', ""),
            (),
            r"counters\.views: time is missing, and the schema has no keys",
        ),
        (
            ('user = "user"\nitem', "item"),
            (),
            r"counters\.views: by is missing, and the schema has no keys\.user",
        ),
        (
            ('kind = "string"', 'kind = "float32"'),
            ('by = "item"', 'by = "kind"'),
            r"counters\.recent: column 'kind' is float32, and rows are told",
        ),
        (
            (),
            ('by = "item"', 'by = ["item", "views"]'),
            r"counters\.recent names column 'views', which counters\.views",
        ),
        (
            (),
            ('"kind", equals = "cart" }\n', '"bought", equals = true }\n'),
            r"counters\.pairs names column 'bought'",
        ),
        ((), ('event = { column = "kind"', 'event = { column = "bought"'), r"labels\.bought"),
        (
            (),
            ("[labels]", '[labels]\nviews = { column = "kind", equals = "view" }'),
            r"counters\.views makes .*labels",
        ),
        (
            (),
            ("[split]", '[[filters]]\ncolumn = "views"\nabove = 1\n[split]'),
            r"filters\[0\] names column 'views'",
        ),
        (
            (),
            ("within_seconds", "within"),
            r"unknown key 'labels\.bought\.within' \(did you mean 'within_seconds'",
        ),
        (
            (),
            ("within_seconds = 4", "within_seconds = 0"),
            r"labels\.bought\.within_seconds: .* found 0",
        ),
        ((), (", within_seconds = 4", ""), r"'labels\.bought\.within_seconds' is missing"),
        (
            (),
            (LABEL, '{ colum = "kind" }'),
            r"unknown key 'labels\.bought\.colum' \(did you mean 'column'",
        ),
        (
            (),
            ("window_seconds = 3", "window = 3"),
            r"unknown key 'counters\.recent\.window' \(did you mean 'window_seconds'",
        ),
        (
            (),
            ('equals = "cart"', "equals = 7"),
            r"counters\.pairs: 7 cannot be compared with column 'kind'",
        ),
    ],
)
def test_a_mistake_in_a_section_is_one_sentence(
    tmp_path: Path, schema: tuple[str, ...], pipeline: tuple[str, ...], said: str
) -> None:
    texts = []
    for text, change in ((LOG_SCHEMA, schema), (LOG_PIPELINE, pipeline)):
        assert not change or change[0] in text
        texts.append(text.replace(change[0], change[1], 1) if change else text)
    with pytest.raises(ConfigError, match=said):
        load_plan(SmallPipeline(tmp_path, *texts, {}).write())


def test_a_key_that_no_file_has_and_one_of_no_usable_type_are_named(tmp_path: Path) -> None:
    log = [Row("ann", 1, 0, "view")]
    with pytest.raises(DataError, match=r"no column 'usr' \(did you mean 'user'\?\)"):
        found(tmp_path, log, pipeline=LOG_PIPELINE.replace('by = "item"', 'by = "usr"'))
    priced = table(log).append_column("price", pa.array([1.5]))
    pipeline = LOG_PIPELINE.replace('by = "item"', 'by = "price"')
    small = SmallPipeline(tmp_path / "priced", LOG_SCHEMA, pipeline, {"log.parquet": priced})
    with pytest.raises(ConfigError, match=r"counters\.recent: column 'price' is float64"):
        small.rows()
