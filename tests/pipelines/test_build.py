"""Fit and build: splits, side tables, published days, row keys; the same rows in this process and with Ray."""

import json
import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import files, parts, rows
from pipelines.build import BuildSummary, build, fit
from pipelines.ray_build import attempt, result_of
from recsys.encode import load_encoder
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.hashing import hash_ids
from recsys.layout import encoded_arrow
from recsys.publish import resolve
from recsys.schema import load_schema
from tests.pipelines.small_pipeline import PIPELINE, SCHEMA, SmallPipeline
from tests.pipelines.test_history import HISTORY, SEQUENCE_SCHEMA

BY_TIME = (
    PIPELINE[: PIPELINE.index("[split]")].replace(
        "[source]", 'fit_on = { from = "2026-10-01", to = "2026-10-02" }\n[source]'
    )
    + '[split]\nby = "time"\n'
)


def impressions(rows: int, *, seed: int = 0, days: int = 3) -> pa.Table:
    """A log over some days from 2026-10-01 on, in no order."""
    rng = np.random.default_rng(seed)
    start = int(np.datetime64("2026-10-01", "us").astype(np.int64))
    times = start + rng.integers(0, days * 86_400 * 1_000_000, rows)
    return pa.table(
        {
            "user": pa.array([f"u{user}" for user in rng.integers(0, 30, rows)]),
            "item": pa.array(rng.integers(0, 40, rows)),
            "price": pa.array(rng.normal(size=rows), pa.float32(), mask=rng.random(rows) < 0.1),
            "shown_at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "clicked": pa.array(rng.random(rows) < 0.3),
        }
    )


def parquet_pipeline(
    folder: Path, tables: dict[str, pa.Table], pipeline: str = BY_TIME, **kind: str
) -> SmallPipeline:
    text = pipeline.replace("log.csv", "log*.parquet").replace('"csv"', '"parquet"')
    return SmallPipeline(folder, pipeline=text, files=dict(tables), **kind)


def built(
    small: SmallPipeline, *, ray: bool = False, days: list[str] | None = None
) -> BuildSummary:
    path = small.write()
    fit(path, small.folder / "encoder")
    return build(path, small.folder / "data", encoder=small.folder / "encoder", ray=ray, days=days)


def day(small: SmallPipeline, name: str) -> pa.Table:
    published = resolve(small.folder / "data" / name, kind="day", verify="digests")
    return pa.concat_tables(
        [pq.read_table(file) for file in sorted(published.path.glob("part-*.parquet"))]
    )


def test_days_are_utc_days_and_hold_every_row_once(tmp_path: Path) -> None:
    log = impressions(500)
    small = parquet_pipeline(tmp_path, {"log.parquet": log})
    summary = built(small)
    expected = Counter(time.date().isoformat() for time in log.column("shown_at").to_pylist())
    assert {item.day: item.rows for item in summary.days} == expected
    tables = [day(small, name) for name in sorted(expected)]
    assert sorted(key for table in tables for key in table.column("row_key").to_pylist()) == list(
        range(500)
    )
    for name, table in zip(sorted(expected), tables, strict=True):
        assert {time.date().isoformat() for time in table.column("keep:shown_at").to_pylist()} == {
            name
        }


def test_a_published_day_says_what_it_is(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(100)})
    built(small)
    published = resolve(tmp_path / "data" / "2026-10-02", kind="day")
    encoder = load_encoder(tmp_path / "encoder")
    schema = load_schema(tmp_path / "schema.toml")
    assert published.metadata["day"] == "2026-10-02"
    assert published.metadata["rows"] == day(small, "2026-10-02").num_rows
    assert published.metadata["data_digest"] == schema.data_digest
    assert published.metadata["encoder_digest"] == encoder.digest
    assert published.metadata["rules_digest"] == small.plan().rules_digest
    assert published.metadata["labels_digest"] == small.plan().labels_digest
    assert day(small, "2026-10-02").schema.equals(encoded_arrow(schema))


def test_encoded_rows_are_those_of_the_encoder_row_by_row(tmp_path: Path) -> None:
    log = impressions(300)
    small = parquet_pipeline(tmp_path, {"log.parquet": log})
    built(small)
    encoded = pa.concat_tables([day(small, f"2026-10-0{n}") for n in (1, 2, 3)]).sort_by("row_key")
    assert encoded.equals(load_encoder(tmp_path / "encoder").encode(log).combine_chunks())


def test_the_encoder_sees_the_fitted_days_only(tmp_path: Path) -> None:
    log = impressions(400)
    small = parquet_pipeline(tmp_path, {"log.parquet": log})
    before = fit(small.write(), tmp_path / "a").digest
    late = pa.compute.equal(pa.compute.day(log.column("shown_at")), 3)
    other = pa.compute.if_else(late, pa.scalar(99, pa.int64()), log.column("item"))
    small.files = {"log.parquet": log.set_column(1, "item", other)}
    assert fit(small.write(), tmp_path / "b").digest == before
    small.pipeline = small.pipeline.replace('to = "2026-10-02"', 'to = "2026-10-03"')
    assert fit(small.write(), tmp_path / "c").digest != before


def test_days_may_be_built_one_by_one(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(200)})
    summary = built(small, days=["2026-10-02"])
    assert [item.day for item in summary.days] == ["2026-10-02"]
    assert summary.rows + summary.other_days == summary.rows_read == 200
    assert not (tmp_path / "data" / "2026-10-01").exists()
    with pytest.raises(DataError, match="'2026-10-09' has no rows"):
        built(small, days=["2026-10-09"])


def test_row_groups_part_sizes_and_waiting_limits_do_not_change_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = impressions(700)
    whole = parquet_pipeline(tmp_path / "whole", {"log.parquet": log})
    built(whole)
    monkeypatch.setattr(files, "BATCH_ROWS", 37)
    monkeypatch.setattr(rows, "cut_into_parts", partial(files.cut_into_parts, part_rows=300))
    monkeypatch.setattr(parts, "PART_ROWS", 100)
    monkeypatch.setattr(parts, "_MOST_WAITING_ROWS", 150)
    small = parquet_pipeline(tmp_path / "small", {"log.parquet": log})
    built(small)
    names = [item.name for item in sorted((tmp_path / "whole" / "data").iterdir())]
    assert (
        len(
            list(resolve(tmp_path / "small" / "data" / names[0], kind="day").path.glob("*.parquet"))
        )
        > 1
    )
    for name in names:
        assert day(small, name).equals(day(whole, name))


def test_a_second_build_writes_the_same_bytes_and_moves_the_pointer(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(200)})
    built(small)
    first = resolve(tmp_path / "data" / "2026-10-01", kind="day")
    built(small)
    second = resolve(tmp_path / "data" / "2026-10-01", kind="day")
    assert first.version != second.version
    assert first.files == second.files
    assert not list((tmp_path / "data").glob(".building-*"))


def test_a_hash_split_keeps_a_user_together_and_its_shares(tmp_path: Path) -> None:
    shares = 'column = "user"\nseed = 3\nparts = { train = 0.6, test = 0.4 }'
    pipeline = PIPELINE.replace("parts = { train = 0.5, test = 0.5 }", shares)
    log = impressions(4_000)
    users = pa.array([f"user {n}" for n in range(4_000)])
    small = parquet_pipeline(
        tmp_path / "many", {"log.parquet": log.set_column(0, "user", users)}, pipeline
    )
    summary = built(small)
    # 4 000 draws of 0.6: five standard deviations are 155.
    assert abs({item.day: item.rows for item in summary.days}["train"] - 2_400) < 155
    few = parquet_pipeline(tmp_path / "few", {"log.parquet": log}, pipeline)
    built(few)
    train, test = (
        set(day(few, name).column("keep:user").to_pylist()) for name in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


def test_a_split_by_file_takes_names_and_shares(tmp_path: Path) -> None:
    pipeline = """
schema_file = "schema.toml"
[[sources]]
path = "log1.parquet"
format = "parquet"
split = "train"
[[sources]]
path = "log2.parquet"
format = "parquet"
split = { validation = 0.5, test = 0.5 }
[split]
by = "file"
seed = 1
"""
    tables = {"log1.parquet": impressions(300), "log2.parquet": impressions(1_000, seed=1)}
    small = SmallPipeline(tmp_path, pipeline=pipeline, files=dict(tables))
    sizes = {item.day: item.rows for item in built(small).days}
    assert sizes["train"] == 300
    assert sizes["validation"] + sizes["test"] == 1_000
    assert abs(sizes["test"] - 500) < 80
    assert {item.day: item.rows for item in built(small).days} == sizes
    small.pipeline = pipeline.replace("seed = 1", "seed = 2")
    keys = set(day(small, "test").column("row_key").to_pylist())
    built(small)
    assert set(day(small, "test").column("row_key").to_pylist()) != keys


def test_impression_keys_are_row_keys_and_texts_are_hashed(tmp_path: Path) -> None:
    for dtype, values in (("int64", pa.array([7, 5, 9])), ("string", pa.array(["x", "y", "z"]))):
        schema = SCHEMA.replace("[keys]", f'seen = "{dtype}"\n[keys]\nimpression = "seen"')
        log = impressions(3, days=1).append_column("seen", values)
        small = parquet_pipeline(tmp_path / dtype, {"log.parquet": log}, schema=schema)
        built(small)
        keys = values.to_pylist() if dtype == "int64" else hash_ids(values).view(np.int64).tolist()
        assert day(small, "2026-10-01").column("row_key").to_pylist() == keys


JOIN = """
[[joins]]
path = "items.csv"
format = "csv"
on = ["item"]
"""


def joined(folder: Path, items: str, join: str = JOIN, **changes: Any) -> SmallPipeline:
    log = impressions(50).drop_columns(["price"]).append_column("shop", pa.array(["a", "b"] * 25))
    text = BY_TIME.replace("log.csv", "log.parquet").replace('"csv"', '"parquet"') + join
    return SmallPipeline(
        folder, pipeline=text, files={"log.parquet": log, "items.csv": items}, **changes
    )


def test_every_row_meets_its_row_of_a_side_table_and_misses_are_counted(tmp_path: Path) -> None:
    prices = {item: item / 4 for item in range(0, 40, 2)}
    items = (
        "item,price\n" + "".join(f"{item},{price}\n" for item, price in prices.items()) + ",99\n"
    )
    small = joined(tmp_path, items)
    found = small.rows()
    assert [row["price"] for row in found] == [prices.get(row["item"]) for row in found]
    assert built(small).unmatched == {"items.csv": sum(row["item"] not in prices for row in found)}


def test_a_side_table_may_have_several_keys(tmp_path: Path) -> None:
    prices = {
        (item, shop, clicked): item + 100 * (shop == "b") + 0.5 * clicked
        for item in range(40)
        for shop in "ab"
        for clicked in (0, 1)
    }
    listed = {key: price for key, price in prices.items() if key[0] % 3}
    items = "item,shop,clicked,price\n" + "".join(
        f"{item},{shop},{clicked},{p}\n" for (item, shop, clicked), p in listed.items()
    )
    found = joined(tmp_path, items, JOIN.replace('["item"]', '["item", "shop", "clicked"]')).rows()
    shops = ["a", "b"] * 25
    expected = [
        listed.get((row["item"], shop, row["clicked"]))
        for row, shop in zip(found, shops, strict=True)
    ]
    assert [row["price"] for row in found] == expected
    assert None in expected


def test_a_side_table_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.csv: item = 3 occurs more than once"):
        joined(tmp_path, "item,price\n3,1\n4,1\n3,2\n").rows()


def test_a_join_that_adds_nothing_or_shadows_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="offers no column"):
        joined(tmp_path, "item,colour\n3,red\n").rows()
    with pytest.raises(ConfigError, match="column 'clicked' is in the rows already"):
        joined(
            tmp_path, "item,price,clicked\n3,1,1\n", JOIN + 'columns = ["price", "clicked"]\n'
        ).rows()


BY_FILE = PIPELINE.replace('format = "csv"', 'format = "csv"\nsplit = "train"').replace(
    'by = "hash"\nparts = { train = 0.5, test = 0.5 }', 'by = "file"'
)


def log_with(line: str, *, at: int) -> dict[str, str | bytes | pa.Table]:
    """A CSV log of 40 rows of which one, counted from 1, is the given line."""
    lines = ["user,item,price,shown_at,clicked", *["ann,1,1,2026-10-01,1"] * 40]
    lines[at] = line
    return {"log.csv": "\n".join(lines)}


def test_a_label_that_is_not_0_or_1_is_named_with_its_file_and_row(tmp_path: Path) -> None:
    schema = SCHEMA.replace('clicked = "bool"', 'clicked = "int8"')
    small = SmallPipeline(tmp_path, schema, BY_FILE, log_with("ann,1,1,2026-10-01,7", at=31))
    with pytest.raises(
        DataError, match=r"log\.csv, row 31: task 'click', column 'clicked': label 7;"
    ):
        built(small)
    assert not list((tmp_path / "data").iterdir())


def test_an_infinite_number_is_named_with_its_file_and_row(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, SCHEMA, BY_FILE, log_with("ann,1,inf,2026-10-01,1", at=23))
    with pytest.raises(DataError, match=r"log\.csv, row 23: .*inf is not a finite number"):
        fit(small.write(), tmp_path / "encoder")


def test_row_numbers_in_errors_count_filtered_rows_too(tmp_path: Path) -> None:
    log = log_with("bob,1,inf,2026-10-01,1", at=23)
    pipeline = BY_FILE + '\n[[filters]]\ncolumn = "user"\nequals = "bob"\n'
    small = SmallPipeline(tmp_path, SCHEMA, pipeline, log)
    with pytest.raises(DataError, match=r"log\.csv, row 23: "):
        fit(small.write(), tmp_path / "encoder")


def test_a_row_without_a_time_is_refused_unless_it_is_filtered(tmp_path: Path) -> None:
    log = impressions(20)
    times = pa.array(
        [None if n == 11 else time for n, time in enumerate(log.column("shown_at").to_pylist())]
    )
    small = parquet_pipeline(tmp_path, {"log.parquet": log.set_column(3, "shown_at", times)})
    with pytest.raises(DataError, match=r"log\.parquet, row 12: the time is null"):
        built(small)
    small.pipeline += '\n[[filters]]\ncolumn = "shown_at"\nnot_null = true\n'
    summary = built(small)
    assert (summary.rows, summary.filtered) == (19, {"shown_at not_null": 1})
    assert "left out by filter: 1 rows" in summary.render()


def test_no_rows_at_all_is_refused(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, files={"log.csv": "user,item,price,shown_at,clicked\n"})
    with pytest.raises(DataError, match="no row is left to fit on"):
        fit(small.write(), tmp_path / "encoder")
    empty = parquet_pipeline(tmp_path / "empty", {"log.parquet": impressions(0)})
    with pytest.raises(DataError, match="no row is left to fit on"):
        fit(empty.write(), tmp_path / "encoder")


def test_an_encoder_of_another_schema_is_refused(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(50)})
    fit(small.write(), tmp_path / "encoder")
    small.schema = SCHEMA.replace('kind = "numeric"', 'kind = "numeric", transform = "log1p"')
    with pytest.raises(ArtifactError, match="fitted for another schema"):
        build(small.write(), tmp_path / "data", encoder=tmp_path / "encoder")


def test_fit_on_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    small = SmallPipeline(tmp_path, pipeline='fit_on = ["train", "trian"]\n' + PIPELINE)
    small.files = {"log.csv": "user,item,price,shown_at,clicked\n" + "ann,1,1,2026-10-01,1\n" * 40}
    with pytest.raises(
        DataError, match=r"fit_on names 'trian', which has no rows \(did you mean 'train'\?\)"
    ):
        fit(small.write(), tmp_path / "encoder")


def test_fit_extends_a_previous_encoder(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(200)})
    first = fit(small.write(), tmp_path / "first")
    second = fit(small.path, tmp_path / "second", previous=tmp_path / "first")
    assert second.accepts(first.digest)


def test_rules_change_the_rules_digest_and_paths_do_not(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {})
    before = small.plan().rules_digest
    small.pipeline = small.pipeline.replace("log*.parquet", "other.parquet")
    assert small.plan().rules_digest == before
    small.pipeline += '\n[[filters]]\ncolumn = "item"\nabove = 1\n'
    assert small.plan().rules_digest != before


def test_only_rules_of_the_tasks_columns_change_the_labels_digest(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {})

    def digest(rules: str) -> str:
        return replace(small, pipeline=small.pipeline + rules).plan().labels_digest

    clicked = '\n[labels]\nclicked = { column = "price", at_least = 1.0 }\n'
    assert digest('\n[[filters]]\ncolumn = "item"\nabove = 1\n') == digest("")
    assert digest('\n[labels]\nunused = { column = "price", at_least = 1.0 }\n') == digest("")
    assert len({digest(""), digest(clicked), digest(clicked.replace("1.0", "2.0"))}) == 3


def test_a_summary_is_plain_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(20)})
    with caplog.at_level(logging.INFO):
        summary = built(small)
    assert json.loads(json.dumps(summary.to_json()))["rows"] == 20
    assert "build.done" in caplog.text


@pytest.mark.ray
@pytest.mark.filterwarnings(
    "ignore:`use_.* is deprecated:DeprecationWarning"
)  # Ray warns of its own defaults
def test_ray_writes_the_same_bytes_as_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(rows, "cut_into_parts", partial(files.cut_into_parts, part_rows=2_000))
    small = every_format(tmp_path)
    here = built(small)
    expected = {
        item.day: resolve(tmp_path / "data" / item.day, kind="day").files for item in here.days
    }
    there = built(small, ray=True)
    assert len(small.reader().parts) == 3
    assert there.rows_read == here.rows_read == 5_000
    for name, manifest in expected.items():
        assert resolve(tmp_path / "data" / name, kind="day").files == manifest


EVENTS = """
[counters.shown]
by = ["user", "item"]
window_seconds = 86_400
[labels]
returned = { event = { column = "clicked", equals = true }, same = "user", within_seconds = 3600 }
"""


def every_format(folder: Path) -> SmallPipeline:
    """Parquet, CSV and JSON lines in one pipeline, with a history, a counter and an attributed label."""
    logs = [impressions(count, seed=count).to_pylist() for count in (3_000, 1_200, 800)]
    texts = [
        [
            row | {"shown_at": row["shown_at"].isoformat(), "clicked": int(row["clicked"])}
            for row in log
        ]
        for log in logs
    ]
    names = list(texts[1][0])
    lines = [",".join("" if row[n] is None else str(row[n]) for n in names) for row in texts[1]]
    tables: dict[str, str | bytes | pa.Table] = {
        "log.parquet": pa.Table.from_pylist(logs[0], impressions(1).schema),
        "log.csv": "\n".join([",".join(names), *lines]),
        "log.jsonl": "\n".join(
            json.dumps(row | {"clicked": bool(row["clicked"])}) for row in texts[2]
        ),
    }
    sources = "".join(
        f'[[sources]]\npath = "log.{kind}"\nformat = "{kind}"\n'
        for kind in ("parquet", "csv", "jsonl")
    )
    pipeline = BY_TIME[: BY_TIME.index("[source]")] + sources + BY_TIME[BY_TIME.index("[split]") :]
    schema = SEQUENCE_SCHEMA.replace("[keys]", 'shown = "int64"\nreturned = "bool"\n[keys]')
    schema = schema.replace("[sequences", 'shown = { kind = "numeric" }\n[sequences', 1)
    schema += 'back = { label = "returned" }\n'
    return SmallPipeline(folder, schema, pipeline + HISTORY + EVENTS, tables)


def test_a_mistake_met_by_a_worker_is_raised_as_it_would_be_here(tmp_path: Path) -> None:
    small = parquet_pipeline(tmp_path, {"log.parquet": impressions(20)})
    fit(small.write(), tmp_path / "encoder")
    small.files["log.parquet"] = impressions(20).set_column(1, "item", pa.array(["x"] * 20))
    job = parts.PartJob(small.reader(), load_encoder(tmp_path / "encoder"), tmp_path)
    with pytest.raises(DataError, match=r"log\.parquet: column 'item' is string"):
        result_of(json.loads(attempt(job, 0)))
