"""Starts workers on a Ray cluster, by Ray Train: the same loop in each as under torch's agent.

Ray Train places the workers, forms their process group, notices one that is lost and ends the others. Checkpoints are
ours, in the run's folder, which all machines see.
"""

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recsys.errors import ArtifactError, ConfigError, TrainingError, UserError
from recsys.experiment import Experiment
from recsys.hold import wait_until_unheld
from recsys.ranks import is_first, largest, ranks_here
from recsys.training.distributed.ray_cluster import (
    check_room,
    cluster,
    resources,
    resources_per_worker,
)
from recsys.training.distributed.restarts import WorkerLost, with_restarts
from recsys.training.distributed.workers import TIMEOUT, backend, joined
from recsys.training.trainer import FinishedRun, train

# How long a worker of a lost attempt may take to end, whose machine Ray may not reach any more.
_ENDING_SECONDS = 120


@dataclass(frozen=True)
class Fleet:
    """Workers of a Ray cluster: at an address, as many as `workers`, or after a loss no fewer than `least`."""

    address: str
    workers: int
    least: int
    max_restarts: int


@dataclass(frozen=True)
class _Job:
    """What each worker is told. `mark` is a file beside the run, there while they work; `log` takes log records.

    `restarts` counts the attempts before this one.
    """

    experiment: Experiment
    run: Path
    mark: Path
    log: Any
    resume: bool
    warm_start: Path | None
    restarts: int


def train_on_ray(
    experiment: Experiment,
    run: Path,
    fleet: Fleet,
    *,
    resume: bool = False,
    warm_start: Path | None = None,
) -> FinishedRun:
    """Train as `recsys.training.trainer.train` does, by workers of a Ray cluster; a lost one starts all again.

    Raises what a worker raises, ConfigError when there is no such cluster or it is too small, and TrainingError when
    workers are lost too often.
    """
    if fleet.least > fleet.workers:
        raise ConfigError(
            f"--min-workers: {fleet.least} is more than --workers {fleet.workers}; lower it"
        )
    path = run.absolute()
    cpus = fleet.workers * (experiment.train.threads or 1) + 1
    with cluster(fleet.address, cpus=cpus):
        parent = None if warm_start is None else warm_start.absolute()
        attempts = count()

        def attempt(again: bool) -> FinishedRun:
            begin = None if again and not resume else parent
            check_room(resources(experiment, fleet.least), address=fleet.address)
            with _mark_beside(path) as mark, _listening() as log:
                return _fit(_Job(experiment, path, mark, log, again, begin, next(attempts)), fleet)

        check_room(resources(experiment, fleet.workers), address=fleet.address)
        return with_restarts(attempt, path, resume=resume, max_restarts=fleet.max_restarts)


def _fit(job: _Job, fleet: Fleet) -> FinishedRun:
    """One set of workers, from their start to their end. Raises WorkerLost when one was killed."""
    needed = resources_per_worker(job.experiment.train)
    elastic = fleet.least < fleet.workers
    with tempfile.TemporaryDirectory(prefix="recsys-ray-") as storage:
        trainer = TorchTrainer(
            _train,
            train_loop_config={"job": job},
            torch_config=TorchConfig(
                backend("GPU" in needed), timeout_s=int(TIMEOUT.total_seconds())
            ),
            scaling_config=ScalingConfig(
                num_workers=(fleet.least, fleet.workers) if elastic else fleet.workers,
                use_gpu="GPU" in needed,
                resources_per_worker=needed,
                # To grow would cost the steps since the last checkpoint.
                elastic_resize_monitor_interval_s=float("inf"),
            ),
            run_config=RunConfig(
                storage_path=storage,
                # Ray would start again after a mistake too.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
                logging_config=LoggingConfig("CRITICAL"),
            ),
        )
        try:
            result: Any = trainer.fit()
        except TrainingFailedError as error:
            raise _reason(error) from error
        except SystemExit as stop:
            # Ray takes Ctrl-C, ends its workers and then this process.
            raise KeyboardInterrupt from stop
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.default_int_handler)
    finished: FinishedRun = result.return_value
    return finished


def _train(config: dict[str, _Job]) -> FinishedRun:
    """What each worker does."""
    job = config["job"]
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[QueueHandler(job.log)],
        force=True,
    )
    logging.getLogger("recsys").setLevel(logging.INFO)
    with joined():
        require_shared(job.mark, job.run)
        _even_out()
        if job.restarts and is_first():
            wait_until_unheld(job.run, seconds=_ENDING_SECONDS)
        return train(job.experiment, job.run, resume=job.resume, warm_start=job.warm_start)


def _even_out() -> None:
    """Where machines run unequal numbers of workers, let each worker count as a machine, as TorchRec wants them equal.

    A plan for CPUs then takes a machine's memory for one worker's.
    """
    most, least = largest([ranks_here(), -ranks_here()])
    if most != -least:
        os.environ["LOCAL_WORLD_SIZE"] = "1"


def require_shared(mark: Path, run: Path) -> None:
    """Raise ConfigError on a machine that does not see the folder of the run."""
    if not mark.exists():
        raise ConfigError(
            f"{run}: another machine of the Ray cluster does not see this folder; put the run, its days and its "
            "encoder on storage that all machines have under the same path"
        )


def _reason(error: TrainingFailedError) -> Exception:
    """What ended the workers: the error that one of them tells, else that one was lost."""
    if isinstance(error, PreemptionError):
        return WorkerLost("a machine was taken back from the Ray cluster")
    if not isinstance(error, WorkerGroupError):
        return TrainingError(f"Ray Train has failed: {_last_line(error)}")
    failures = sorted(error.worker_failures.items())
    told = [failure for _, failure in failures if not _is_loss(failure)]
    for failure in told:
        if isinstance(failure, UserError):
            return failure
    if told:
        return TrainingError(f"a worker has failed: {type(told[0]).__name__}: {told[0]}")
    ranks = ", ".join(str(rank) for rank, failure in failures)
    return WorkerLost(
        f"the Ray cluster has lost worker {ranks}, and the others ended with it; where memory ran out, take a "
        "smaller data.batch_size or smaller tables; a run with a checkpoint goes on with --resume"
    )


def _is_loss(failure: Exception) -> bool:
    return isinstance(failure, WorkerLost | WorkerHealthCheckFailedError)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


@contextmanager
def _listening() -> Iterator[Any]:
    """Where workers put log records; they come out here, and nothing else that Ray and libraries say there."""
    # On this machine: another may be the one that is lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    log = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    listener = QueueListener(log, *logging.getLogger().handlers)
    listener.start()
    try:
        yield log
    finally:
        listener.stop()
        log.shutdown()


@contextmanager
def _mark_beside(run: Path) -> Iterator[Path]:
    mark = run.parent / f".seen-{run.name}-{secrets.token_hex(4)}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise ArtifactError(
            f"{run}: cannot be written ({error.strerror}); choose another place"
        ) from error
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
