"""Who writes into a run: one training at a time, which holds a lock of the operating system on a file in the run.

However the process ends, by `kill -9` too, its lock ends with it. The file stays and names who had it last. Who only
reads a run asks nobody.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys.errors import ArtifactError

logger = logging.getLogger(__name__)

LOCK = "training.lock"
# A killed process keeps its lock until its memory has been given back.
_DYING_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.05
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run until the block ends. Raises ArtifactError when another process, or another block, holds it."""
    descriptor = _hold_on(run)
    try:
        found = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(found).encode())
        yield
    finally:
        # A child that was forked meanwhile has the file open too, and with it the lock.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def require_unheld(run: Path) -> None:
    """Raise ArtifactError when a run is held; nothing is written."""
    if is_held(run):
        raise _refusal(run)


def wait_until_unheld(run: Path, *, seconds: float) -> None:
    """Return when a run is held no more, and at the latest after so many seconds."""
    last = time.monotonic() + seconds
    while is_held(run) and time.monotonic() < last:
        time.sleep(_LOOK_AGAIN_SECONDS)


def is_held(run: Path) -> bool:
    """Whether a run is held at this moment; one that lacks the file, or does not exist, is not."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _hold_on(run: Path) -> int:
    """The descriptor that holds the lock."""
    last = time.monotonic() + _DYING_SECONDS
    while True:
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        # Another process may have put another run in this place meanwhile.
        if _lock(descriptor, fcntl.LOCK_EX) and _is_at(descriptor, run / LOCK):
            return descriptor
        os.close(descriptor)
        if time.monotonic() > last:
            raise _refusal(run)
        time.sleep(_LOOK_AGAIN_SECONDS)


def _lock(descriptor: int, operation: int) -> bool:
    """Whether the lock is ours now, as far as the file system has locks."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        logger.warning(
            "train.not_held hint='this file system has no locks (%s): see to it that one training at a time "
            "writes into a run'",
            error.strerror,
        )
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: a lock on a removed file keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refusal(run: Path) -> ArtifactError:
    try:
        found = json.loads((run / LOCK).read_bytes())
        holder = f"process {found['process']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        holder = "another process"
    return ArtifactError(
        f"{run}: {holder} is training this run, so nothing was changed; wait for it or stop it, "
        "then run the same command again, or choose another directory"
    )
