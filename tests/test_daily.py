"""The recipe of docs/daily.md, run as it stands there."""

import json
import re
from pathlib import Path

import pytest

from recsys.run import open_run
from tests.test_docs import ROOT, _blocks, _run


@pytest.mark.slow
def test_the_daily_recipe_works_and_keeps_what_was_learned(tmp_path: Path) -> None:
    blocks = [block for block in _blocks(ROOT / "docs" / "daily.md") if block.language == "sh"]
    assert len(blocks) == 2

    for block in blocks:
        _run(block, tmp_path)

    runs = tmp_path / "log" / "runs"
    parent = open_run(runs / "2026-10-06").parent
    assert parent is not None
    assert parent.run == runs / "2026-10-05"
    report = json.loads((runs / "2026-10-06" / "warm_start.json").read_text())
    assert report["tables"]["item"]["kept"] > 50
    assert not report["dense"]["fresh"]


def test_the_recipe_trains_each_day_once_and_validates_on_the_next() -> None:
    text = (ROOT / "docs" / "daily.md").read_text(encoding="utf-8")
    trained, validated = re.findall(r"--set data\.\w+=(\S+)", text)
    assert trained < validated
