"""Several processes that train together: how they find each other, and how they end.

A launcher, torchrun or our own, tells each worker in its environment which it is and where the others are. When one
fails, it alone tells why, and the launcher ends the others.
"""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from recsys.errors import ConfigError, TrainingStopped
from recsys.ranks import OtherRankFailed, is_first, ranks_here, wait_for_all
from recsys.training.distributed.restarts import WorkerLost

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# The first rank may be at the metrics of a large validation meanwhile. Launchers notice ends much sooner.
TIMEOUT = timedelta(hours=1)
# How long a worker that has nothing to tell waits for its launcher to end it.
_PATIENCE_SECONDS = 60
_TOLD = "recsys/told"
# Of Linux's prctl: the signal that comes when the parent process has ended.
_PR_SET_PDEATHSIG = 1


def is_worker() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_backend(kind: str) -> None:
    """Raise ConfigError for an embedding backend whose tables workers cannot share."""
    if kind == "plain":
        raise ConfigError(
            'model.embeddings.backend: tables of backend "plain" stay whole in one process; set it to "torchrec" '
            "(widths in multiples of 4), or train with one worker"
        )


def check_stream(stream: Path | None) -> None:
    """Raise ConfigError when workers that have no Ray between them are to share a stream."""
    if stream is not None:
        raise ConfigError(
            "data.stream: workers share a stream by Ray; add --ray-address (local, or a cluster's), "
            "or train with one worker"
        )


def check_device(device: torch.device) -> None:
    """Raise ConfigError when this machine has more workers than GPUs to train on."""
    here, gpus = ranks_here(), torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise ConfigError(
            f"{here} workers, and torch sees {gpus} GPUs here; start as many workers as there are GPUs, "
            'or set train.device = "cpu"'
        )


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the workers until the block ends; in a process that is none, nothing.

    An exception leaves the block on one rank alone, the one that tells it. The others wait for their end.
    """
    if not is_worker():
        yield
        return
    _end_with_the_launcher()
    store = _join()
    try:
        yield
    except BaseException as error:
        _wait_unless_telling(store, error)
        raise
    wait_for_all()
    dist.destroy_process_group()


def _end_with_the_launcher() -> None:
    """Be asked to stop (SIGTERM) when the launcher is killed: nobody else ends this worker, and it holds the run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _join() -> "Store":
    """Form the process group, of a kind for each device there is, unless the launcher (Ray Train) has formed it."""
    from torch.distributed.distributed_c10d import _get_default_store

    if not dist.is_initialized():
        here = int(os.environ.get("LOCAL_RANK", "0"))
        gpus = torch.cuda.device_count()
        if here < gpus:
            torch.cuda.set_device(here)
        dist.init_process_group(backend(gpus), timeout=TIMEOUT)
    if not is_first():
        for package in ("recsys", "torchrec"):
            logging.getLogger(package).setLevel(logging.ERROR)
    found: Store = _get_default_store()
    return found


def backend(gpus: int) -> str:
    """What workers talk through: gloo, and NCCL for what lies on a GPU where there is one."""
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def _wait_unless_telling(store: "Store", error: BaseException) -> None:
    """Return on the rank that is the first with an error of its own. The others wait to be ended, or end."""
    if isinstance(error, TrainingStopped):
        _leave_after_the_first()
        return
    lost = _is_lost_contact(error)
    if not (lost or isinstance(error, OtherRankFailed)) and _is_first_to_tell(store):
        return
    try:
        if not isinstance(error, KeyboardInterrupt):
            time.sleep(_PATIENCE_SECONDS)
    except KeyboardInterrupt:
        os._exit(130)
    if lost:
        raise WorkerLost(
            "another worker has ended without a word; see its machine's log, then go on with --resume"
        ) from error
    os._exit(1)


def _leave_after_the_first() -> None:
    """Return on the first rank, which tells that all have stopped; end the others once it has gone."""
    if is_first():
        return
    with suppress(RuntimeError):
        wait_for_all()
    os._exit(TrainingStopped.EXIT_CODE)


def _is_first_to_tell(store: "Store") -> bool:
    try:
        told: int = store.add(_TOLD, 1)
    except RuntimeError:
        # The store has gone with another worker.
        return False
    return told == 1


def _is_lost_contact(error: BaseException) -> bool:
    """Whether an error says that another rank is gone."""
    if isinstance(error, dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "onnection" in str(error)
