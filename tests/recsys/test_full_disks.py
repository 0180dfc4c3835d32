"""A full disk, a place that may not be written, a day damaged in the middle: one sentence, and nothing is lost."""

import errno
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from recsys.days import open_days, read_rows
from recsys.errors import ArtifactError, DataError, UserError
from recsys.experiment import Experiment, load_experiment
from recsys.layout import encoded_arrow
from recsys.publish import publication, versions
from recsys.run import load_run
from recsys.tensor_files import write_tensors
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, raw_rows, small_data
from tests.recsys.test_training import TOML, assert_bit_equal, killed_after, weights_of

AGAIN = "then run the same command again (recsys train with --resume)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    return data_in(tmp_path_factory.mktemp("data"))


def data_in(folder: Path) -> SmallData:
    found = small_data(folder)
    (folder / "experiment.toml").write_text(TOML, encoding="utf-8")
    return found


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    options = ("train.checkpoint_every=4", "train.log_every=1", "train.keep_checkpoints=100")
    return load_experiment(data.root / "experiment.toml", overrides=[*options, *overrides])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond that many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Less than a checkpoint's tables, its dense parameters, and, once some were written, the records.
@pytest.mark.parametrize("size", [6_000, 1_000])
def test_a_training_without_room_goes_on_once_there_is_some(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    experiment, run = experiment_of(data), tmp_path / "run"
    train(experiment, tmp_path / "whole")
    with killed_after(monkeypatch, 6):
        train(experiment, run)
    before = versions(run / "checkpoints")
    sentence = rf"^{run}(/checkpoints)?: cannot be written \(File too large\); make room there, "
    with files_of_at_most(size), pytest.raises(ArtifactError, match=sentence + re.escape(AGAIN)):
        train(experiment, run, resume=True)
    assert versions(run / "checkpoints") == before
    assert not list((run / "checkpoints").glob(".*"))
    assert load_run(run, checkpoint="CURRENT").step == 4

    train(experiment, run, resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(run))


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of that size, where this machine lets the test mount one."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no file system for a test")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["60k", "150k"])
def test_a_full_disk_keeps_the_checkpoints_before(
    data: SmallData, tmp_path: Path, size: str
) -> None:
    experiment, disk = experiment_of(data), tmp_path / "disk"
    train(experiment, tmp_path / "whole")
    with small_disk(disk, size):
        with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device\)"):
            train(experiment, disk / "run")
        for version in versions(disk / "run" / "checkpoints"):
            load_run(disk / "run", checkpoint=version)
        remount(disk, "size=100m")
        train(experiment, disk / "run", resume=True)
        assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(disk / "run"))


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_is_told(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, disk = experiment_of(data), tmp_path / "disk"
    with small_disk(disk, "100m"):
        with killed_after(monkeypatch, 6):
            train(experiment, disk / "run")
        remount(disk, "ro")
        with pytest.raises(ArtifactError, match=r"\(Read-only file system\); allow writing there"):
            train(experiment, disk / "run", resume=True)
        remount(disk, "rw")
        assert train(experiment, disk / "run", resume=True).steps == 18


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_keeps_a_publication_from_its_place_is_told(tmp_path: Path, number: int) -> None:
    sentence = rf"{tmp_path}: cannot be written \({os.strerror(number)}\); .*, {re.escape(AGAIN)}"
    with (
        pytest.raises(ArtifactError, match=sentence),
        publication(tmp_path, kind="day") as draft,
    ):
        raise OSError(number, os.strerror(number), str(draft.path / "part"))
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_place_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), publication(tmp_path / "root", kind="day"):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / "source"))


def test_tensors_without_room_are_an_error_of_the_system(tmp_path: Path) -> None:
    with files_of_at_most(1_000), pytest.raises(OSError, match="File too large") as raised:
        write_tensors(tmp_path / "file", {"x": torch.zeros(1_000)})
    assert raised.value.errno == errno.EFBIG


def day_files(data: SmallData, day: str) -> list[Path]:
    days = open_days(data.directory, [day], encoder=data.encoder)
    return sorted({group.file for group in days.groups})


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("cut", [False, True])
def test_a_day_damaged_in_the_middle_is_told_and_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    data, day = data_in(tmp_path), "2026-01-01"
    experiment, run = experiment_of(data), tmp_path / "run"
    train(experiment, tmp_path / "whole")
    with killed_after(monkeypatch, 6):
        train(experiment, run)
    files = day_files(data, day)
    if cut:
        files[1].write_bytes(files[1].read_bytes()[:-100])
    else:
        flip(files[1], 1_000)

    said = (
        "bytes, the manifest says"
        if cut
        else rf"cannot be read \(.*\); build .* again, {re.escape(AGAIN)}"
    )
    with pytest.raises(UserError, match=rf"{files[1]}: .*{said}"):
        train(experiment, run, resume=True)
    assert load_run(run, checkpoint="CURRENT").step == 4

    data.build(day, raw_rows(300, seed=0), first_key=0)
    train(experiment, run, resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(run))


def test_no_flipped_bit_of_a_day_is_read_as_another_row(tmp_path: Path) -> None:
    data = data_in(tmp_path)
    days = open_days(data.directory, ["2026-01-02"], encoder=data.encoder)
    file, columns = days.groups[0].file, encoded_arrow(data.schema).names
    groups = tuple(group for group in days.groups if group.file == file)
    whole, rows = file.read_bytes(), read_rows(groups, columns)
    told = 0
    for position in range(0, len(whole), 97):
        flip(file, position)
        try:
            assert read_rows(groups, columns).equals(rows), position
        except DataError:
            told += 1
        file.write_bytes(whole)
    assert told > len(whole) / 97 / 2
