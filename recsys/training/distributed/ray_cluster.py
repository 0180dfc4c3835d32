"""A Ray cluster to train on: the one at an address, or one on this machine alone; and whether it has room."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from recsys.cores import available_cores
from recsys.errors import ConfigError
from recsys.experiment import Experiment, TrainConfig

LOCAL = "local"
_OBJECT_STORE_BYTES = 512 << 20
_CONNECT_SECONDS = 5


@contextmanager
def cluster(address: str, *, cpus: int) -> Iterator[None]:
    """Be connected to the cluster at an address until the block ends; `local` is one of this machine, for the block.

    A local one counts as many CPUs as asked for, if that is more than the machine has. A process that is connected
    already stays so. Raises ConfigError when nobody answers there.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        ray.init(
            "local",
            num_cpus=max(available_cores(), cpus),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    else:
        _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def resources(experiment: Experiment, workers: int) -> dict[str, float]:
    """What a training by so many workers takes of the cluster."""
    per_worker = resources_per_worker(experiment.train)
    needed = {kind: amount * workers for kind, amount in per_worker.items()}
    # Who encodes waits for a core that no worker holds.
    needed["CPU"] += 0 if experiment.data.stream is None else 1
    return needed


def resources_per_worker(settings: TrainConfig) -> dict[str, float]:
    """What a worker takes of the cluster: a core a thread and, unless it trains on the CPU, a GPU."""
    uses_gpu = settings.device == "cuda" or (settings.device == "auto" and _found("GPU") > 0)
    needed: dict[str, float] = {"CPU": settings.threads or 1}
    return needed | ({"GPU": 1} if uses_gpu else {})


def check_room(needed: Mapping[str, float], *, address: str) -> None:
    """Raise ConfigError when the cluster has not got what a training needs."""
    for kind, amount in needed.items():
        has = _found(kind)
        if has < amount:
            raise ConfigError(
                f"--ray-address {address}: the training takes {amount:g} {kind}s, and the cluster has {has:g}; "
                "start fewer workers (--workers, --min-workers), or add machines"
            )


def _found(kind: str) -> float:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found.get(kind, 0.0)


def _connect(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address {address}: a client cannot start workers; run the command on a machine of the cluster "
            "(ray job submit -- recsys train ...) with --ray-address auto"
        )
    try:
        # Ray itself would try for two minutes, and then end this process.
        if address != "auto":
            _require_open(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray-address {address}: no Ray cluster answers ({_first_line(error)}); start one (ray start --head), "
            "correct the address, or say local"
        ) from error


def _require_open(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT, auto or local")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
