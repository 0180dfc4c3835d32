"""Every example builds to the same bytes in this process and as a Ray Data job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build, fit
from recsys.publish import resolve

EXAMPLES = Path(__file__).parents[2] / "examples"
PIPELINES = sorted(EXAMPLES.glob("*/pipeline*.toml"))


def digests(root: Path) -> dict[str, Mapping[str, Any]]:
    """Size and SHA-256 of all published files, by day or split."""
    days = sorted(path.name for path in root.iterdir() if path.name[0] != ".")
    return {day: resolve(root / day, kind="day").files for day in days}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:`use_.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "pipeline", PIPELINES, ids=lambda path: path.relative_to(EXAMPLES).as_posix()
)
def test_ray_writes_the_same_bytes_as_this_process(
    pipeline: Path, recsys_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RECSYS_DATA", str(recsys_data))
    encoder = tmp_path / "encoder"
    fit(pipeline, encoder)
    here = build(pipeline, tmp_path / "here", encoder=encoder)
    there = build(pipeline, tmp_path / "there", encoder=encoder, ray=True)
    assert there.rows == here.rows > 0
    assert digests(tmp_path / "there") == digests(tmp_path / "here")


def test_there_are_examples() -> None:
    assert PIPELINES
