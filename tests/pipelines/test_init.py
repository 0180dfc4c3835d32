"""What is proposed for a log of impressions, and that it trains as it stands."""

from collections.abc import Callable
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
