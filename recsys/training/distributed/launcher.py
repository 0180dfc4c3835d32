"""Starts workers on this machine: as `torchrun` does, by torch's own agent."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recsys.errors import ConfigError
from recsys.training.distributed.restarts import WorkerLost, with_restarts
from recsys.training.distributed.workers import is_worker

_RUN_ID = "recsys-workers-"
# How long workers that were asked to stop may take for a step and a checkpoint.
_GRACE_SECONDS = 600
# What the agent would say of a worker's end is told here.
_AGENT_LOGGERS = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api")


def launch(
    arguments: Sequence[str],
    run: Path,
    *,
    begin: Sequence[str] = (),
    workers: int,
    resume: bool,
    max_restarts: int,
) -> None:
    """Run `python -m recsys` with these arguments in several workers, and return when all have ended well.

    What stands in `begin` they are told only where they begin the run. A worker that is killed ends all of them, and
    they start again (`with_restarts`). Raises SystemExit with the code of a worker that has told why it failed,
    TrainingError when one was killed once too often.
    """
    if is_worker():
        raise ConfigError(
            "--workers: this process is one of several workers already, as torchrun starts them; leave the option out"
        )

    def attempt(resume: bool) -> None:
        _run([*arguments, *(["--resume"] if resume else begin)], workers)

    with_restarts(attempt, run, resume=resume, max_restarts=max_restarts)


def workers_option() -> list[str]:
    """What a command line needs for as many workers, where `launch` started this process."""
    launched = os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(_RUN_ID)
    return ["--workers", os.environ["WORLD_SIZE"]] if launched else []


def _run(arguments: Sequence[str], workers: int) -> None:
    """One set of workers, from their start to their end. Raises SystemExit, or WorkerLost when one was killed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in _AGENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix=_RUN_ID) as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=f"{_RUN_ID}{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=_GRACE_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "recsys", *arguments)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            if failure.exitcode > 0:
                raise SystemExit(failure.exitcode) from None
            raise WorkerLost(_killed(failure.local_rank, -failure.exitcode)) from None
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None


def _killed(worker: int, number: int) -> str:
    name = signal.Signals(number).name
    return (
        f"worker {worker} was ended by {name}, and the others with it; where memory ran out, take fewer workers, a "
        "smaller data.batch_size or smaller tables; a run with a checkpoint goes on with --resume"
    )
