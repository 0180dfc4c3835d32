"""A build that was killed goes on with the parts it had finished, and publishes what an undisturbed one does."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines import files, parts, rows
from pipelines.build import build, fit
from pipelines.staging import put, staging
from recsys.errors import ArtifactError, DataError
from recsys.publish import resolve
from tests.pipelines.small_pipeline import SmallPipeline
from tests.pipelines.test_build import BY_TIME, impressions, parquet_pipeline
from tests.pipelines.test_history import HISTORY, SEQUENCE_SCHEMA

ROOT = Path(__file__).parents[2]
PARTS = 5
# Runs the command line and gets a signal when a function is called for the n-th time.
SIGNALLED = """
import os, signal, sys
from functools import partial
from importlib import import_module
from pipelines import files, rows
from recsys.cli import main

# A shell's background jobs, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
number, owner, name, calls, *command = sys.argv[1:]
rows.cut_into_parts = partial(files.cut_into_parts, part_rows=300)
module, _, inner = owner.partition(":")
target = getattr(import_module(module), inner) if inner else import_module(module)
original, left = getattr(target, name), int(calls)

def counted(*arguments, **named):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), int(number))
    return original(*arguments, **named)

setattr(target, name, counted)
sys.argv = ["recsys", *command]
main()
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPipeline:
    """A fitted pipeline of five parts, with histories."""
    monkeypatch.setattr(rows, "cut_into_parts", partial(files.cut_into_parts, part_rows=300))
    tables = {f"log{n}.parquet": impressions(300, seed=n) for n in range(PARTS)}
    pipeline = parquet_pipeline(tmp_path, tables, BY_TIME + HISTORY, schema=SEQUENCE_SCHEMA)
    fit(pipeline.write(), tmp_path / "encoder")
    return pipeline


def built(small: SmallPipeline, data: str = "data", *, ray: bool = False) -> None:
    build(small.path, small.folder / data, encoder=small.folder / "encoder", ray=ray)


def digests(root: Path) -> dict[str, Mapping[str, Any]]:
    """Size and SHA-256 of all published files, by day."""
    days = sorted(path.name for path in root.iterdir() if path.name[0] != ".")
    return {day: resolve(root / day, kind="day", verify="digests").files for day in days}


def signalled(
    small: SmallPipeline, number: int, owner: str, name: str, calls: int, *options: str
) -> subprocess.CompletedProcess[str]:
    folder = small.folder
    command = ["build", str(small.path), str(folder / "data"), "--encoder", str(folder / "encoder")]
    return subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(number), owner, name, str(calls), *command, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def killed(small: SmallPipeline, owner: str, name: str, calls: int, *options: str) -> None:
    run = signalled(small, signal.SIGKILL, owner, name, calls, *options)
    assert run.returncode == -signal.SIGKILL, run.stderr


def staged(small: SmallPipeline) -> list[Path]:
    return list((small.folder / "data").glob(".building-*"))


def resumed(caplog: pytest.LogCaptureFixture) -> str | None:
    found = re.search(r"build\.resumed parts=(\d+/\d+)", caplog.text)
    return found[1] if found else None


@pytest.mark.parametrize(
    ("owner", "name", "calls", "expected"),
    [
        ("pipelines.parts", "put", 2, None),  # before any part is finished
        ("pipelines.staging:os", "replace", 12, "2/5"),  # a part's file written, not yet in place
        ("pipelines.build", "_place", 4, "5/5"),  # while the first day is published
        ("recsys.publish", "point", 2, "5/5"),  # one day published, the second not pointed to
    ],
)
def test_a_killed_build_goes_on_and_publishes_the_same_bytes(
    small: SmallPipeline,
    caplog: pytest.LogCaptureFixture,
    owner: str,
    name: str,
    calls: int,
    expected: str | None,
) -> None:
    built(small, "undisturbed")
    killed(small, owner, name, calls)
    assert len(staged(small)) == 1
    with caplog.at_level(logging.INFO):
        built(small)
    assert resumed(caplog) == expected
    assert digests(small.folder / "data") == digests(small.folder / "undisturbed")
    assert not staged(small)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:`use_.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("ray", [False, True])
def test_a_killed_ray_build_goes_on_with_and_without_ray(
    small: SmallPipeline,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ray: bool,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    built(small, "undisturbed")
    killed(small, "pipelines.progress:Progress", "finish_part", 5 + 2, "--ray")
    with caplog.at_level(logging.INFO):
        built(small, ray=ray)
    assert resumed(caplog) is not None
    assert digests(small.folder / "data") == digests(small.folder / "undisturbed")


def interrupted(small: SmallPipeline, monkeypatch: pytest.MonkeyPatch, *, after_files: int) -> None:
    """Stop a build as Ctrl-C does, when it has put so many files in place."""
    left = after_files

    def stopping(*arguments: Any) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        put(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(parts, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            built(small)


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    small: SmallPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    run = signalled(small, signal.SIGINT, "pipelines.parts", "put", 9)
    folder = small.folder
    assert run.returncode == 130
    assert run.stderr.splitlines()[-1] == (
        f"recsys: interrupted; 2 of 5 parts are kept; go on with: recsys build {folder / 'pipeline.toml'} "
        f"{folder / 'data'} --encoder {folder / 'encoder'}"
    )
    with caplog.at_level(logging.INFO):
        built(small)
    assert resumed(caplog) == "2/5"


@pytest.mark.parametrize("change", ["file", "rules", "encoder", "days"])
def test_a_build_of_anything_else_starts_anew(
    small: SmallPipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    interrupted(small, monkeypatch, after_files=8)
    days = None
    match change:
        case "file":
            os.utime(small.folder / "log3.parquet", ns=(0, 0))
        case "rules":
            small.path.write_text(small.pipeline + '\n[[filters]]\ncolumn = "item"\nabove = 1\n')
        case "encoder":
            text = small.pipeline.replace('to = "2026-10-02"', 'to = "2026-10-03"')
            small.path.write_text(text)
            fit(small.path, small.folder / "encoder")
            small.path.write_text(small.pipeline)
        case "days":
            days = ["2026-10-02"]
    with caplog.at_level(logging.INFO):
        encoder = small.folder / "encoder"
        build(small.path, small.folder / "data", encoder=encoder, days=days)
    assert resumed(caplog) is None
    assert len(staged(small)) == 1, "young work under another key stays"


def test_a_file_that_changes_while_it_is_read_publishes_nothing(
    small: SmallPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touching(*arguments: Any) -> None:
        os.utime(small.folder / "log3.parquet", ns=(0, 0))
        put(*arguments)

    monkeypatch.setattr(parts, "put", touching)
    with pytest.raises(DataError, match=r"log3\.parquet: changed while it was read"):
        built(small)
    assert not list((small.folder / "data").iterdir())


def test_a_part_whose_files_are_gone_or_cut_is_written_again(
    small: SmallPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built(small, "undisturbed")
    interrupted(small, monkeypatch, after_files=12)
    (place,) = staged(small)
    first, second = sorted(place.glob("2026-10-01/*.parquet"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    with caplog.at_level(logging.INFO):
        built(small)
    assert resumed(caplog) == "1/5"
    assert digests(small.folder / "data") == digests(small.folder / "undisturbed")


def test_two_processes_do_not_build_the_same_at_once(tmp_path: Path) -> None:
    with staging(tmp_path, "a"):
        with (
            pytest.raises(ArtifactError, match="another process is building the same there"),
            staging(tmp_path, "a"),
        ):
            pass
        with staging(tmp_path, "b") as other:
            assert other.is_dir()
        assert (tmp_path / ".building-a").is_dir()
    assert not list(tmp_path.iterdir())


def test_only_abandoned_work_of_other_builds_is_removed(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * 24 * 3600
    for key in ("young", "old"):
        with pytest.raises(KeyboardInterrupt), staging(tmp_path, key):
            raise KeyboardInterrupt
    (tmp_path / ".building-lockless").mkdir()
    with staging(tmp_path, "living") as living:
        for place in (tmp_path / ".building-old", tmp_path / ".building-lockless", living):
            os.utime(place, (long_ago, long_ago))
        with staging(tmp_path, "mine"):
            left = {place.name for place in tmp_path.iterdir()}
    assert left == {".building-young", ".building-living", ".building-mine"}
