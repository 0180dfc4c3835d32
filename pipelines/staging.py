"""Where a build keeps what it has finished until all of it is published, so that a killed build can go on.

`DATA/.building-<key>/` belongs to the process that holds the lock in it. The key stands for everything that decides
what lies there, so work under another key is never looked at; it is removed once it is abandoned, which the work of a
living process never is.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.errors import ArtifactError, UserError
from recsys.publish import fsync, remove_abandoned

_PREFIX = ".building-"
_LOCK = "LOCK"


class _InUseError(Exception):
    """Another process holds the lock."""


@contextmanager
def staging(data_root: Path, key: str) -> Iterator[Path]:
    """The folder beside the days for work of that key, with what an earlier process left there.

    It is removed when the block ends, and when it ends by a mistake of the user, who will correct what the work is made
    of. Whatever else ends the block, or the process, leaves it. Raises ArtifactError when the root cannot be written,
    or when another process works on the same.
    """
    place = data_root / f"{_PREFIX}{key}"
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        lock = _lock(place)
    except _InUseError as error:
        raise ArtifactError(
            f"{data_root}: another process is building the same there; wait for it, or stop it"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"{data_root}: cannot be written ({error.strerror}); choose another place"
        ) from error
    try:
        _sweep(data_root, keep=place)
        yield place
        _remove(place)
    except UserError:
        _remove(place)
        raise
    finally:
        os.close(lock)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file in place as a whole: `write` fills a sibling, which is on disk before it gets the name.

    Two processes may put the same file at once, such as a worker that has outlived its build.
    """
    path.parent.mkdir(exist_ok=True)
    sibling = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write(sibling)
    fsync(sibling)
    os.replace(sibling, path)
    fsync(path.parent)


def _lock(place: Path) -> int:
    """The descriptor that holds the lock of a folder, made if need be; the end of the process lets go of it."""
    while True:
        place.mkdir(exist_ok=True)
        try:
            descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            # Another process has removed the folder in between.
            continue
        _hold(descriptor)
        if _is_at(descriptor, place / _LOCK):
            return descriptor
        os.close(descriptor)


def _hold(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _InUseError from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: a lock on a removed file keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sweep(data_root: Path, *, keep: Path) -> None:
    for place in data_root.glob(f"{_PREFIX}*"):
        if place == keep:
            continue
        try:
            descriptor = os.open(place / _LOCK, os.O_RDWR)
            _hold(descriptor)
        except _InUseError:
            continue
        except FileNotFoundError:
            remove_abandoned(data_root, prefix=place.name)
            continue
        remove_abandoned(data_root, prefix=place.name)
        os.close(descriptor)


def _remove(place: Path) -> None:
    # First out of the way at once: what is half removed must not be found under its name.
    removed = place.with_name(f"{place.name}-{secrets.token_hex(4)}")
    os.rename(place, removed)
    shutil.rmtree(removed, ignore_errors=True)
