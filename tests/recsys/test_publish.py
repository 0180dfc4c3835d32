"""The commit protocol: what a reader sees when writing stops anywhere, and when bytes change afterwards."""

import logging
import os
from pathlib import Path

import pytest

import recsys.publish as publish
from recsys.errors import ArtifactError
from recsys.publish import prune, publication, resolve, versions


def put(root: Path, text: str) -> str:
    with publication(root, kind="note", metadata={"about": text}) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "note.txt").write_text(text)
        (draft.path / "other.txt").write_text(text * 2)
    assert draft.published is not None
    return draft.published.version


def read(root: Path) -> str:
    return (resolve(root, kind="note", verify="digests").path / "sub" / "note.txt").read_text()


def test_a_reader_gets_the_newest_version_and_its_metadata(tmp_path: Path) -> None:
    first, second = put(tmp_path, "one"), put(tmp_path, "two")

    assert versions(tmp_path) == [first, second]
    assert read(tmp_path) == "two"
    assert resolve(tmp_path / first, kind="note").metadata == {"about": "one"}


def test_an_exception_inside_leaves_the_old_version_and_no_litter(tmp_path: Path) -> None:
    put(tmp_path, "one")

    def stopped_halfway() -> None:
        with publication(tmp_path, kind="note") as draft:
            (draft.path / "half.txt").write_text("h")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped_halfway()

    assert read(tmp_path) == "one"
    assert sorted(entry.name[0] for entry in tmp_path.iterdir()) == ["2", "C"]


@pytest.mark.parametrize("call", ["rename", "replace", "fsync"])
def test_killed_at_any_system_call_a_reader_sees_the_old_or_the_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Killed(BaseException):
        pass

    put(tmp_path, "old")
    for at in range(12):
        calls = 0
        real = getattr(os, call)

        def killed(*arguments: object, real: object = real, at: int = at) -> object:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Killed
            return real(*arguments)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(publish.os, call, killed)
            try:
                put(tmp_path, "new")
            except Killed:
                assert read(tmp_path) in {"old", "new"}
            else:
                break
    else:
        pytest.fail("the write never completed")
    assert read(tmp_path) == "new"


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    version = put(root, "one")
    for file in [path for path in (root / version).rglob("*") if path.is_file()]:
        good = file.read_bytes()
        for position in range(len(good)):
            file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            with pytest.raises(ArtifactError):
                resolve(root, kind="note", verify="digests")
        file.write_bytes(good)
    assert read(root) == "one"


def test_a_damaged_version_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "one")
    second = put(tmp_path, "two")
    (tmp_path / second / "other.txt").write_text("tampered")

    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == "one"
    assert "fell_back" in caplog.text


def test_a_missing_file_another_kind_and_an_empty_place_are_told_apart(tmp_path: Path) -> None:
    version = put(tmp_path, "one")
    with pytest.raises(ArtifactError, match="holds a published note in place of the bundle"):
        resolve(tmp_path, kind="bundle")
    (tmp_path / version / "other.txt").unlink()
    with pytest.raises(ArtifactError, match=r"other\.txt: missing"):
        resolve(tmp_path, kind="note")
    with pytest.raises(ArtifactError, match="no such note"):
        resolve(tmp_path / "nowhere", kind="note")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no published note"):
        resolve(tmp_path / "empty", kind="note")


def test_what_a_killed_process_left_goes_and_what_a_neighbour_writes_stays(tmp_path: Path) -> None:
    old, young = tmp_path / ".draft-old", tmp_path / ".draft-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    # A draft that is published between the listing and the look at it is gone by then.
    (tmp_path / ".draft-published").symlink_to(tmp_path / "gone")

    put(tmp_path, "one")

    assert read(tmp_path) == "one"
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("text", ["7", '"text"', "[]", "{}", "null", "{"])
def test_a_manifest_that_is_none_is_damaged(tmp_path: Path, text: str) -> None:
    version = put(tmp_path, "one")
    (tmp_path / version / "MANIFEST.json").write_text(text)

    with pytest.raises(ArtifactError, match="damaged"):
        resolve(tmp_path, kind="note")


def test_a_pointer_cannot_lead_outside(tmp_path: Path) -> None:
    put(tmp_path / "root", "one")
    put(tmp_path / "other", "two")
    (tmp_path / "root" / "CURRENT").write_text("../other")

    with pytest.raises(ArtifactError, match="not a version name"):
        resolve(tmp_path / "root", kind="note")


def test_pruning_keeps_the_newest_and_what_a_pointer_names(tmp_path: Path) -> None:
    names = [put(tmp_path, str(number)) for number in range(5)]
    publish.point(tmp_path, names[0], pointer="BEST")
    prune(tmp_path, keep=2, pointers=("CURRENT", "BEST"))

    assert versions(tmp_path) == [names[0], *names[-2:]]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written"):
        put(tmp_path / "file", "one")
