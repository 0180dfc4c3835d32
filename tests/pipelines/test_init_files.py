"""Files as they come: written in many ways, of many columns, broken. Each is proposed for, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.build import build, fit
from pipelines.init import propose
from pipelines.plan import Plan, load_plan
from recsys.errors import DataError
from tests.pipelines.raw_files import csv, csv_text, log, parquet


def _plan(folder: Path, *files: Path, **settings: Any) -> Plan:
    """The plan that is proposed, after all of its rows were fitted on and encoded."""
    propose(files, **settings).write(folder)
    fit(folder / "pipeline.toml", folder / "encoder")
    build(folder / "pipeline.toml", folder / "data", encoder=folder / "encoder")
    return load_plan(folder / "pipeline.toml")


def _without(columns: dict[str, list[Any]], *names: str) -> dict[str, list[Any]]:
    return {name: values for name, values in columns.items() if name not in names}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
def test_the_delimiter_is_found(delimiter: str, tmp_path: Path) -> None:
    columns = log(400)
    columns["shown_at"] = [time.strftime("%Y-%m-%d") for time in columns["shown_at"]]
    plan = _plan(tmp_path, csv(tmp_path / "log.txt", columns, delimiter=delimiter))

    assert plan.settings.csv.delimiter == delimiter
    assert plan.schema.keys.time == "shown_at"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_the_encoding_is_found(encoding: str, tmp_path: Path) -> None:
    columns = log(400) | {"city": ["Köln", "Łódź" if encoding != "latin-1" else "Århus"] * 200}
    (tmp_path / "log.csv").write_bytes(csv_text(columns).encode(encoding))
    proposal = propose([tmp_path / "log.csv"])

    city = next(column for column in proposal.decided.tables.columns if column.name == "city")
    assert set(city.values.to_pylist()) == set(columns["city"])
    assert _plan(tmp_path, tmp_path / "log.csv").schema.keys.user == "user_id"


def test_a_file_without_a_header_gets_names_and_its_usual_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    triples = {
        "user": draw.integers(1, 300, 6_000).tolist(),
        "item": draw.integers(1, 200, 6_000).tolist(),
        "level": draw.integers(0, 4, 6_000).tolist(),
    }
    plan = _plan(tmp_path, csv(tmp_path / "pairs.tsv", triples, delimiter="\t", header=False))

    assert plan.settings.csv.names == ("c0", "c1", "c2")
    assert (plan.schema.keys.user, plan.schema.keys.item) == ("c0", "c1")
    assert {name: task.given for name, task in plan.schema.tasks.items()} == {
        "c2_at_least_1": None,
        "c2_at_least_2": "c2_at_least_1",
        "c2_at_least_3": "c2_at_least_2",
    }


def test_names_with_blanks_and_signs_are_replaced(tmp_path: Path) -> None:
    columns = log(400)
    odd = {
        " user id ": columns["user_id"],
        "Item #": columns["item_id"],
        "price €": columns["price"],
        "clicked?": ["yes" if clicked else "no" for clicked in columns["clicked"]],
        "": list(range(400)),
    }
    plan = _plan(tmp_path, csv(tmp_path / "log.csv", odd))

    assert plan.schema.keys.user == "user_id"
    assert plan.schema.keys.item == "Item"
    assert plan.settings.labels["is_clicked"].made_of == ("clicked",)
    assert list(plan.schema.features) == ["Item", "price"], "a number of the row is no input"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M"),
        ("%m-%d-%y", "%m-%d-%y"),
        ("%Y%m%d", "%Y%m%d"),
        ("%d %b %Y %H:%M:%S", "%d %b %Y %H:%M:%S"),
        ("%Y-%m-%dT%H:%M:%S%z", None),
    ],
)
def test_the_format_of_dates_is_found(written: str, said: str | None, tmp_path: Path) -> None:
    columns = log(400)
    columns["shown_at"] = [time.strftime(written) for time in columns["shown_at"]]
    plan = _plan(tmp_path, csv(tmp_path / "log.csv", columns))

    assert plan.schema.keys.time == "shown_at"
    assert plan.settings.timestamps.get("shown_at") == said
    assert len(plan.settings.fit_on.names) == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(("factor", "unit"), [(1, "seconds"), (1_000, "milliseconds")])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_unit_of_epochs_is_found(factor: int, unit: str, suffix: str, tmp_path: Path) -> None:
    columns = log(400)
    columns["shown_at"] = [int(time.timestamp()) * factor for time in columns["shown_at"]]
    write = csv if suffix == "csv" else parquet
    plan = _plan(tmp_path, write(tmp_path / f"log.{suffix}", columns))

    assert plan.settings.timestamps == {"shown_at": unit}


def test_json_lines_with_absent_keys_and_lists(tmp_path: Path) -> None:
    columns = log(400)
    lines = []
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        values = dict(zip(columns, row, strict=True))
        values["shown_at"] = values["shown_at"].isoformat()
        values["tags"] = ["new", "cheap"][: number % 3]
        if number % 5 == 0:
            del values["device"]
        lines.append(json.dumps(values))
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    plan = _plan(tmp_path, tmp_path / "log.jsonl")

    assert plan.settings.all_sources[0].format == "jsonl"
    assert plan.schema.features["tags"].kind == "multi_valued"


def test_a_file_beside_the_rows_is_joined_by_its_unique_key(tmp_path: Path) -> None:
    genres = ["Action", "Comedy", "Drama", "Horror", "War"]
    items: dict[str, list[Any]] = {
        "itemId": list(range(1_000, 1_060)),
        "genres": [
            "|".join(genres[number % 5 : number % 5 + 1 + number % 3]) for number in range(60)
        ],
    }
    plan = _plan(
        tmp_path,
        csv(tmp_path / "log.csv", log(400)),
        csv(tmp_path / "items.csv", items, delimiter=";"),
    )

    (join,) = plan.settings.joins
    assert (join.on, join.columns, join.rename) == (
        ("item_id",),
        ("genres",),
        {"itemId": "item_id"},
    )
    assert join.csv is not None
    assert (join.csv.delimiter, join.csv.list_separator) == (";", "|")
    assert plan.schema.features["genres"].kind == "multi_valued"


def test_a_folder_of_days_is_one_pattern(tmp_path: Path) -> None:
    for day in range(5):
        parquet(tmp_path / "raw" / f"day-{day}.parquet", log(200, seed=day))
    plan = _plan(tmp_path / "out", tmp_path / "raw")

    assert plan.settings.all_sources[0].path == ("../raw/*.parquet",)


def test_files_named_train_and_test_are_the_split(tmp_path: Path) -> None:
    files = [
        csv(tmp_path / f"{name}.csv", log(300, seed=seed))
        for seed, name in enumerate(("train", "test"))
    ]
    plan = _plan(tmp_path / "out", *files)

    assert [source.split for source in plan.settings.all_sources] == [
        "train",
        {"validation": 0.5, "test": 0.5},
    ]


def test_a_log_of_events_becomes_labelled_impressions(tmp_path: Path) -> None:
    columns = _without(log(3_000, days=20), "clicked", "purchased")
    draw = np.random.default_rng(0)
    columns["event_type"] = draw.choice(
        ["view", "view", "view", "cart", "purchase"], 3_000
    ).tolist()
    plan = _plan(tmp_path, csv(tmp_path / "events.csv", columns))

    assert plan.settings.filters[0].text == "event_type equals 'view'"
    assert plan.settings.labels["purchase"].model_dump(mode="json")["same"] == [
        "user_id",
        "item_id",
    ]
    assert plan.settings.histories["past_view"].where[0].text == "event_type equals 'view'"
    assert set(plan.schema.tasks) == {"cart", "purchase"}


def test_lists_of_earlier_items_are_a_sequence_of_the_items_table(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 6, 400)
    columns = log(400) | {
        "hist_items": [draw.integers(1_000, 1_060, length).tolist() for length in lengths],
        "hist_kinds": [draw.choice(["a", "b"], length).tolist() for length in lengths],
        "vector": draw.normal(size=(400, 4)).tolist(),
    }
    plan = _plan(tmp_path, parquet(tmp_path / "log.parquet", columns))

    sequence = plan.schema.sequences["history"]
    assert sequence.tokens["hist_items"].table == "item_id"  # type: ignore[union-attr]
    assert sequence.target == {"hist_items": "item_id"}
    assert plan.schema.features["vector"].kind == "vector"


def test_four_hundred_columns(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    columns = {f"f{number}": draw.normal(size=300).round(3).tolist() for number in range(400)}
    plan = _plan(
        tmp_path,
        csv(tmp_path / "wide.csv", columns | {"target": draw.integers(0, 2, 300).tolist()}),
    )

    assert len(plan.schema.features) == 400


def test_mixed_types_are_text_and_leading_zeros_stay(tmp_path: Path) -> None:
    columns = log(400) | {
        "amount": ["a lot" if number % 50 == 0 else number % 30 for number in range(400)],
        "zip_code": [f"{number % 30:05d}" for number in range(400)],
        "size": ["NA" if number % 9 == 0 else number % 30 for number in range(400)],
    }
    plan = _plan(tmp_path, csv(tmp_path / "log.csv", columns))

    assert plan.schema.columns["amount"] == "string"
    assert "mostly numbers, but also text such as 'a lot'" in (tmp_path / "schema.toml").read_text()
    assert plan.schema.columns["zip_code"] == "string"
    assert plan.schema.columns["size"] == "int32"
    assert "NA" in plan.settings.csv.nulls


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        (
            "dup.csv",
            {"a": [1] * 200, "b": [0, 1] * 100},
            "column 'a' occurs twice in the header (columns 1, 2)",
        ),
        ("few.csv", log(10), "10 rows are too few to train a model"),
        (
            "nothing.csv",
            {"user_id": ["u1", "u2"] * 100, "price": [1.5, 2.5, 3.5, 4.5] * 50},
            "no name says what",
        ),
        (
            "one.csv",
            log(200) | {"clicked": [1] * 200, "purchased": [1] * 200},
            "clicked, purchased: the same value",
        ),
        ("empty.csv", {"a": [], "b": []}, "holds no rows"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_a_sentence(
    name: str, columns: dict[str, list[Any]], said: str, tmp_path: Path
) -> None:
    path = csv(tmp_path / name, columns)
    if name == "dup.csv":
        path.write_text(path.read_text().replace("a,b", "a,a"))
    with pytest.raises(DataError) as refused:
        propose([path])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_of_files_with_other_columns_is_refused_by_what_differs(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", log(200))
    csv(tmp_path / "b.csv", _without(log(150), "price"))
    with pytest.raises(DataError, match=r"b\.csv: lacks price, unlike .*a\.csv"):
        propose([tmp_path])
