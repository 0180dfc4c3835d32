"""What is proposed for a log of impressions, and that it trains as it stands."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipelines.build import build, fit
from pipelines.init import propose
from pipelines.plan import load_plan
from recsys.errors import ConfigError, DataError
from recsys.schema import Schema, load_schema
from tests.pipelines.raw_files import csv, log, parquet


def _written(folder: Path, *files: Path, **settings: object) -> Schema:
    propose(files, **settings).write(folder)  # type: ignore[arg-type]
    load_plan(folder / "pipeline.toml")
    return load_schema(folder / "schema.toml")


@pytest.mark.parametrize("write", [csv, parquet])
def test_keys_and_tasks_are_found_by_their_names(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    suffix = "csv" if write is csv else "parquet"
    schema = _written(tmp_path / "out", write(tmp_path / f"log.{suffix}", log()))

    assert (schema.keys.user, schema.keys.item, schema.keys.time) == (
        "user_id",
        "item_id",
        "shown_at",
    )
    assert {name: task.given for name, task in schema.tasks.items()} == {
        "clicked": None,
        "purchased": "clicked",
    }
    assert schema.features["country"].side == "user"
    assert schema.features["price"].kind == "numeric"
    assert "past_clicked" in schema.sequences


def test_what_is_proposed_trains_and_is_evaluated(tmp_path: Path) -> None:
    from recsys.evaluation.evaluate import evaluate
    from recsys.experiment import load_experiment
    from recsys.training.trainer import train

    propose([csv(tmp_path / "log.csv", log())]).write(tmp_path)
    fit(tmp_path / "pipeline.toml", tmp_path / "encoder")
    summary = build(tmp_path / "pipeline.toml", tmp_path / "data", encoder=tmp_path / "encoder")
    train(
        load_experiment(tmp_path / "experiment.toml", overrides=["train.epochs=3"]),
        tmp_path / "run",
    )
    evaluation = evaluate(tmp_path / "run", tmp_path / "report")

    assert summary.rows == 3_000
    assert len(summary.days) == 10, "a day of the log each"
    assert evaluation.report.rows > 200
    assert (evaluation.report.binary("clicked").auc or 0) > 0.5


def test_files_that_are_there_stay_unless_forced(tmp_path: Path) -> None:
    proposal = propose([csv(tmp_path / "log.csv", log())])
    (tmp_path / "pipeline.toml").write_text("mine")
    with pytest.raises(ConfigError, match=r"pipeline\.toml: is there already; .* --force"):
        proposal.write(tmp_path)
    assert (tmp_path / "pipeline.toml").read_text() == "mine"
    assert not (tmp_path / "schema.toml").exists()

    proposal.write(tmp_path, force=True)
    load_plan(tmp_path / "pipeline.toml")


def test_a_label_that_is_no_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--label clikced: no such column \(did you mean 'clicked'\?\)"
    ):
        propose([csv(tmp_path / "log.csv", log())], labels=["clikced"])


def test_ten_rows_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 rows are too few"):
        propose([csv(tmp_path / "log.csv", log(10))])


def test_what_tells_the_label_is_left_out_with_its_reason(tmp_path: Path) -> None:
    columns = log()
    clicked = columns["clicked"]
    columns |= {
        "dwell_seconds": [30.0 * value for value in clicked],
        "reason": [("shown", "acted")[value] for value in clicked],
        "closed_at": [
            time if value else None
            for time, value in zip(columns["shown_at"], clicked, strict=True)
        ],
        "constant": ["x"] * len(clicked),
        "session": [f"s{number}" for number in range(len(clicked))],
    }
    schema = _written(tmp_path, parquet(tmp_path / "log.parquet", columns))
    text = (tmp_path / "schema.toml").read_text()

    assert (
        not {"dwell_seconds", "reason", "closed_at", "constant", "session"} & schema.columns.keys()
    )
    assert "# - reason (string): alone it tells clicked almost surely (AUC 1.000)" in text
    assert "# - closed_at (timestamp): whether it is there tells clicked" in text
    assert "# - session (string): an id, (nearly) another one in every row" in text


def test_a_position_is_trained_and_fixed_in_the_server(tmp_path: Path) -> None:
    columns = log() | {"position": [number % 10 + 1 for number in range(3_000)]}
    schema = _written(tmp_path, parquet(tmp_path / "log.parquet", columns))

    assert (schema.features["position"].serve, schema.features["position"].value) == ("fixed", 1)


def test_a_question_is_asked_where_no_name_helps(tmp_path: Path) -> None:
    asked: list[tuple[str, Sequence[str]]] = []

    def second(question: str, choices: Sequence[str]) -> int:
        asked.append((question, choices))
        return 1

    columns = {name: log()[name] for name in ("item_id", "price", "clicked", "purchased")}
    path = csv(tmp_path / "rows.csv", columns, header=False)
    proposal = propose([path], ask=second)

    assert proposal.tasks == ("c3",)
    assert asked == [
        (
            "Which column says what happened, and is to be predicted?",
            ["c2: the values 0, 1", "c3: the values 0, 1"],
        )
    ]
    assert "predicts c3, the last column" in propose([path]).render()


def test_nothing_left_out_points_to_no_reasons(tmp_path: Path) -> None:
    columns = {name: log()[name] for name in ("user_id", "item_id", "clicked")}
    assert "left out: nothing\n" in propose([csv(tmp_path / "rows.csv", columns)]).render()


def test_a_number_that_is_named_is_a_regression(tmp_path: Path) -> None:
    schema = _written(tmp_path, csv(tmp_path / "log.csv", log()), labels=["price"])

    assert schema.tasks["price"].kind == "regression"
    assert "clicked" not in schema.columns, "an outcome that is not predicted is no input"


def test_a_time_whose_nulls_tell_the_label_is_no_key(tmp_path: Path) -> None:
    columns = log()
    columns["shown_at"] = [
        None if not clicked and number % 2 else time
        for number, (time, clicked) in enumerate(
            zip(columns["shown_at"], columns["clicked"], strict=True)
        )
    ]
    proposal = propose([parquet(tmp_path / "log.parquet", columns)])

    assert (
        "time: shown_at is not used, because clicked is the same in all rows where it is null"
        in proposal.render()
    )
    assert proposal.decided.roles.time is None
    assert not proposal.decided.counters


def test_a_split_that_the_data_brings_along_is_used(tmp_path: Path) -> None:
    columns = log() | {
        "split": [
            ("train", "train", "val", "test", "unknown")[number % 5] for number in range(3_000)
        ]
    }
    propose([parquet(tmp_path / "log.parquet", columns)]).write(tmp_path)
    plan = load_plan(tmp_path / "pipeline.toml")

    assert list(plan.settings.split.rules) == ["train", "validation", "test"]
    assert plan.settings.filters[0].text == "split in ['train', 'val', 'test']"


def test_a_time_in_several_forms_is_said_to_be_unread(tmp_path: Path) -> None:
    rows = log(rows=400)
    del rows["shown_at"]
    forms = ("2026-07-{:02d}", "{:02d}/07/2026", "Jul {:02d} 2026")
    rows["date"] = [forms[row % 3].format(13 + row % 10) for row in range(400)]
    file = csv(tmp_path / "log.csv", rows)
    said = propose([file]).render()
    assert "time: none found (date is text in no one form of a time, such as '" in said
    assert propose([csv(tmp_path / "dated.csv", log(rows=400))]).render().count("none found") == 0
