"""Days as users name them, and what a range of them means where not all are published."""

import logging
from datetime import date, datetime
from pathlib import Path

import pytest

from recsys.config import Config
from recsys.day_names import DayNames, DayRange, day_names, names_in
from recsys.days import open_days
from recsys.errors import ArtifactError, ConfigError
from recsys.run import open_run
from recsys.training.checkpoint import read_progress
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, raw_rows, small_data

OCTOBER = DayRange(date(2026, 10, 1), date(2026, 10, 3))


class Section(Config):
    days: DayNames | None = None


def parsed(value: object) -> object:
    return Section.parse({"days": value}, where="x.toml").days


def test_days_are_a_range_a_name_or_several_names() -> None:
    assert parsed({"from": "2026-10-01", "to": date(2026, 10, 3)}) == OCTOBER
    assert parsed("train") == ("train",)
    assert parsed(date(2026, 10, 1)) == ("2026-10-01",)
    assert parsed(["train", date(2026, 10, 1)]) == ("train", "2026-10-01")
    assert Section().days is None


def test_a_range_has_all_of_its_days_over_the_ends_of_months() -> None:
    days = DayRange(date(2028, 2, 28), date(2028, 3, 1))
    assert names_in(days) == ("2028-02-28", "2028-02-29", "2028-03-01")
    assert names_in(["train"]) == ("train",)
    assert str(OCTOBER) == "2026-10-01 to 2026-10-03"


def test_days_are_written_as_they_are_read() -> None:
    for value in ({"from": "2026-10-01", "to": "2026-10-03"}, ["train", "test"]):
        section = Section.parse({"days": value}, where="x")
        assert section.model_dump(mode="json") == {"days": value}


def test_the_command_line_takes_names_and_ranges() -> None:
    assert day_names("test") == ("test",)
    assert day_names(["a", "b"]) == ("a", "b")
    assert day_names("2026-10-01:2026-10-03") == OCTOBER
    with pytest.raises(
        ConfigError, match="days: runs from 2026-10-03 to 2026-10-01, which is back"
    ):
        day_names("2026-10-03:2026-10-01")
    with pytest.raises(ConfigError, match="days: 'x' is no day"):
        day_names("x:2026-10-01")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"from": "2026-10-01"}, "days: needs from and to"),
        ({"from": "2026-10-01", "to": "2026-02-30"}, "days: '2026-02-30' is no day; write it as"),
        ({"from": datetime(2026, 10, 1, 8), "to": "2026-10-02"}, "days: datetime.* is no day"),
        ({"from": "2026-10-02", "to": "2026-10-01"}, "days: runs from .* backwards; swap them"),
        ([], "days: names no day"),
        (["a", "a"], "days: names a day twice"),
        (["../a"], "days: '../a' is not the name of a day or split"),
        (7, r"days: name days or splits, such as \[\"train\"\], or a range .*; found 7"),
        ([7], "days: name days or splits"),
    ],
)
def test_a_mistake_is_one_sentence(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^x.toml: {said}"):
        parsed(value)


@pytest.fixture
def gappy(tmp_path: Path) -> SmallData:
    """Days 1, 2, 4 and 7 of a month."""
    return small_data(tmp_path, rows={f"2026-01-0{day}": 20 for day in (1, 2, 4, 7)})


def opened(data: SmallData, first: int, last: int) -> list[str]:
    days = DayRange(date(2026, 1, first), date(2026, 1, last))
    builds = open_days(data.directory, days, encoder=data.encoder).builds
    return [build.day for build in builds]


def test_a_range_means_the_published_days_and_says_which_are_not(
    gappy: SmallData, caplog: pytest.LogCaptureFixture
) -> None:
    assert opened(gappy, 1, 2) == ["2026-01-01", "2026-01-02"]
    assert "days.missing" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert opened(gappy, 2, 6) == ["2026-01-02", "2026-01-04"]
    assert "days=2026-01-03,2026-01-05,2026-01-06 " in caplog.text


def test_a_range_beyond_what_is_published_is_refused(gappy: SmallData) -> None:
    said = "the days from .* go beyond those published, from 2026-01-01 to 2026-01-07"
    with pytest.raises(ArtifactError, match=said):
        opened(gappy, 2, 8)
    days = DayRange(date(2025, 12, 31), date(2026, 1, 2))
    with pytest.raises(ArtifactError, match=said):
        open_days(gappy.directory, days, encoder=gappy.encoder)
    with pytest.raises(ArtifactError, match="no day from 2026-01-05 to 2026-01-06 is published"):
        opened(gappy, 5, 6)


def test_a_range_where_only_splits_are_published_is_refused(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"train": 20})
    with pytest.raises(ArtifactError, match=r"no day is published.*or name splits, such as train"):
        opened(data, 1, 2)
    with pytest.raises(ArtifactError, match="no day is published"):
        open_days(tmp_path / "nowhere", OCTOBER, encoder=data.encoder)


def test_a_run_keeps_the_days_that_its_range_meant_when_it_began(
    gappy: SmallData, tmp_path: Path
) -> None:
    text = """
schema_file = "schema.toml"
[data]
train = { from = "2026-01-01", to = "2026-01-04" }
validation = "2026-01-07"
batch_size = 16
[train]
steps = 2
"""
    (gappy.root / "experiment.toml").write_text(text)
    first = train(gappy.root / "experiment.toml", tmp_path / "run")
    gappy.build("2026-01-03", raw_rows(20, seed=9), first_key=9_000)
    # The run is finished: all that is asked is that its days open as they were.
    again = train(gappy.root / "experiment.toml", tmp_path / "run", resume=True)
    assert (first.steps, again.steps) == (2, 2)
    found = read_progress(open_run(tmp_path / "run"))
    assert found is not None
    assert [build.day for build in found[1].train] == ["2026-01-01", "2026-01-02", "2026-01-04"]
