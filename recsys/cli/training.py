"""How `recsys train` trains: in this process, in several of this machine, or in workers of a Ray cluster."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.cli.show import show
from recsys.errors import ConfigError, TrainingStopped

if TYPE_CHECKING:
    from recsys.experiment import Experiment


@dataclass(frozen=True)
class Asked:
    """The command line of a training, `root` being the run's directory."""

    experiment: Path
    root: Path
    overrides: tuple[str, ...]
    resume: bool
    warm_start: Path | None
    workers: int
    ray_address: str | None
    min_workers: int | None
    max_restarts: int
    as_json: bool

    @property
    def command(self) -> list[str]:
        """What starts the same training in one process."""
        command = ["train", str(self.experiment), str(self.root)]
        return command + [part for override in self.overrides for part in ("--set", override)]

    @property
    def begin(self) -> list[str]:
        """What else the command line says of how a new run begins."""
        return [] if self.warm_start is None else ["--warm-start", str(self.warm_start)]

    def load(self) -> "Experiment":
        from recsys.experiment import load_experiment

        return load_experiment(self.experiment, overrides=self.overrides)


def start(asked: Asked) -> None:
    """Train as asked, and print what came of it."""
    if asked.ray_address is not None:
        _on_ray(asked, asked.ray_address)
    elif asked.min_workers is not None:
        raise ConfigError(
            "--min-workers: only a Ray cluster goes on with fewer workers; add --ray-address, or leave it out"
        )
    elif asked.workers > 1:
        _in_processes(asked)
    else:
        _here(asked)


def _here(asked: Asked) -> None:
    """In this process, which torchrun or `_in_processes` may have started as one of several."""
    from recsys.ranks import is_first
    from recsys.training.distributed.launcher import workers_option
    from recsys.training.distributed.workers import joined
    from recsys.training.trainer import train

    with joined():
        tree = asked.load()
        try:
            result = train(tree, asked.root, resume=asked.resume, warm_start=asked.warm_start)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(_kept(asked, workers_option())) from stop
        except TrainingStopped as stop:
            kept = _kept(asked, workers_option())
            raise TrainingStopped(f"stopped by SIGTERM; {kept}") from stop
        if is_first():
            show(result.to_json(), result.render(), asked.as_json)


def _in_processes(asked: Asked) -> None:
    from recsys.training.distributed.launcher import launch
    from recsys.training.distributed.workers import check_backend, check_stream

    # A mistake in the file is told before processes start.
    tree = asked.load()
    check_backend(tree.model.embeddings.backend)
    check_stream(tree.data.stream)
    launch(
        # Both at once are a mistake that the workers tell.
        [*asked.command, *(asked.begin if asked.resume else []), *["--json"] * asked.as_json],
        asked.root,
        begin=asked.begin,
        workers=asked.workers,
        resume=asked.resume,
        max_restarts=asked.max_restarts,
    )


def _on_ray(asked: Asked, address: str) -> None:
    from recsys.training.distributed.workers import check_backend

    tree = asked.load()
    if asked.workers > 1:
        check_backend(tree.model.embeddings.backend)
    # Ray takes seconds to import: only who asks for it pays.
    from recsys.training.distributed.ray_launcher import Fleet, train_on_ray

    least = asked.workers if asked.min_workers is None else asked.min_workers
    fleet = Fleet(address, asked.workers, least, asked.max_restarts)
    try:
        result = train_on_ray(
            tree, asked.root, fleet, resume=asked.resume, warm_start=asked.warm_start
        )
    except KeyboardInterrupt as stop:
        options = ["--workers", str(asked.workers), "--ray-address", address]
        options += [] if asked.min_workers is None else ["--min-workers", str(asked.min_workers)]
        raise KeyboardInterrupt(_kept(asked, options)) from stop
    show(result.to_json(), result.render(), asked.as_json)


def _kept(asked: Asked, options: list[str]) -> str:
    """What an interrupted training leaves, and how to go on with it."""
    command = ["recsys", *asked.command, *options]
    if not (asked.root / "experiment.json").is_file():
        again = shlex.join([*command, *asked.begin])
        return f"nothing was written yet; start again with: {again}"
    reached = (asked.root / "checkpoints" / "CURRENT").is_file()
    kept = "its newest checkpoint" if reached else "no checkpoint of it yet"
    return f"{asked.root} holds {kept}; go on with: {shlex.join([*command, '--resume'])}"
