"""What is said while long work goes on."""

import io
import logging
import re
import sys

import pytest

from pipelines import progress as module
from pipelines.progress import Progress, progress, tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_figures_say_nothing_that_is_not_known_yet() -> None:
    shown = Progress("build", parts=4)
    assert shown.figures(2.0) == {}
    shown.rows_read(300)
    shown.rows_read(600)
    assert shown.figures(2.0) == {"rows": 600, "rows_per_second": 300}
    shown.finish_part()
    shown.rows_read(400)
    assert shown.figures(5.0) == {"rows": 1_000, "rows_per_second": 200, "seconds_left": 15}


def test_parts_that_were_done_before_are_no_measure_of_speed() -> None:
    shown = Progress("build", parts=40, done=12)
    assert shown.figures(3.0) == {}
    for _ in range(7):
        shown.rows_read(10)
        shown.finish_part()
    assert shown.figures(7.0) == {"rows": 70, "rows_per_second": 10, "seconds_left": 21}


def test_nothing_is_left_at_the_end() -> None:
    shown = Progress("fit", parts=1)
    shown.rows_read(10)
    shown.finish_part()
    assert "seconds_left" not in shown.figures(1.0)


def test_without_a_terminal_there_are_lines_inside_a_part_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO), progress("build", parts=2) as shown:
        shown.rows_read(65_536)
        shown.finish_part()
        shown.finish_part()
    lines = [re.sub(r"(second|left)=\d+", r"\1=N", record.message) for record in caplog.records]
    assert lines == [
        "progress what=build parts=0/2 rows=65536 rows_per_second=N",
        "progress what=build parts=1/2 rows=65536 rows_per_second=N seconds_left=N",
        "progress what=build parts=2/2 rows=65536 rows_per_second=N",
    ]


def test_lines_are_rare_and_the_last_one_always_comes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(tracked(range(50), total=50, what="check")) == list(range(50))
    assert [record.message for record in caplog.records] == ["progress what=check parts=50/50"]


def test_a_terminal_gets_a_bar_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_REFRESHES", 0.0)
    with progress("fit", parts=3) as shown:
        shown.rows_read(1_500)
        shown.finish_part()
    assert "fit" in terminal.getvalue()
    assert "1/3" in terminal.getvalue()
    assert "1,500 rows" in terminal.getvalue()
