"""The one training loop.

Everything a step needs is in `Training`; `train` opens a new run or goes on with one, and loops. The loop is that of
one process as of many ranks, of which the first alone writes records.

Bit-equal resumption rests on four things: the feed's order is a function of (seed, epoch), the learning rates are a
function of the step, a checkpoint holds every state that a step changes, and evaluations fall on fixed steps.
"""

import gc
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recsys.errors import ConfigError, TrainingStopped
from recsys.experiment import Experiment, load_experiment
from recsys.hold import held
from recsys.memory import keep_freed_memory
from recsys.models.precision import use_fast_float32, warn_of_slow_bf16
from recsys.new_run import new_run
from recsys.publish import writing
from recsys.ranks import is_first, on_first
from recsys.run import (
    RunDirectory,
    choose_device,
    choose_threads,
    open_run,
)
from recsys.training.checkpoint import mark_best
from recsys.training.ids import id_records
from recsys.training.journal import Journal, Record, Silence, open_journal, progress_to
from recsys.training.objective import Loss, mean_by_task
from recsys.training.selection import best_record, evaluations_since_best
from recsys.training.stopping import StopAskedFor, StopRequest, stop_requests
from recsys.training.training import RolledBack, Training
from recsys.training.warm_start import choose_parent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """What a training came to. `score` is the best checkpoint's, on the validation days; higher is better."""

    path: Path
    steps: int
    best_step: int
    best_version: str
    metric: str
    score: float
    skipped_steps: int
    validation: dict[str, dict[str, float | None]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            name: str(item) if isinstance(item, Path) else item for name, item in vars(self).items()
        }

    def render(self) -> str:
        lines = [
            f"trained {self.steps:,} steps in {self.seconds:.1f} s; best is step {self.best_step:,} "
            f"({self.metric} {self.score:.5f} on validation)"
        ]
        for name, numbers in self.validation.items():
            shown = ", ".join(
                f"{key} {value:.4f}" for key, value in numbers.items() if value is not None
            )
            lines.append(f"  {name}: {shown}")
        if self.skipped_steps:
            lines.append(
                f"  skipped {self.skipped_steps} steps whose loss or gradient was not finite: skipped_steps.jsonl"
            )
        return "\n".join([*lines, f"run: {self.path}"])


def train(
    experiment: Experiment | Path,
    run: Path,
    *,
    resume: bool = False,
    warm_start: Path | None = None,
) -> FinishedRun:
    """Train a new run, or with `resume` go on with the one that lies there, from its newest checkpoint.

    With `warm_start`, a run or a checkpoint of one, a new run begins with what that one has learned. A run that was
    stopped before its first checkpoint starts again; a finished one is reported as it is. Raises ArtifactError when
    there is a run already and `resume` was not asked for (or none, and it was), when another process trains it, when
    the run's schema, days or encoder do not fit, ConfigError when a resumed run was started with another experiment,
    TrainingError when the loss stops being a number, and TrainingStopped when SIGTERM asked to stop: then the newest
    checkpoint is of the last step.
    """
    asked = load_experiment(experiment) if isinstance(experiment, Path) else experiment
    with ExitStack() as hold:
        if resume:
            if warm_start is not None:
                raise ConfigError(
                    "--resume goes on with a run, --warm-start begins a new one from another; leave one of them out"
                )
            directory = open_run(run)
            _require_same(directory, asked)
            on_first(lambda: _go_on_with(run, hold))
        else:
            on_first(lambda: _begin(run, asked, warm_start, hold))
            directory = open_run(run)
        return _fit(directory)


def _go_on_with(run: Path, hold: ExitStack) -> None:
    with writing(run):
        hold.enter_context(held(run))


def _begin(run: Path, asked: Experiment, warm_start: Path | None, hold: ExitStack) -> None:
    parent = None if warm_start is None else choose_parent(warm_start)
    hold.enter_context(new_run(run, asked, parent=parent))


@dataclass
class _Window:
    """Losses since the last training record."""

    losses: list[Loss] = field(default_factory=list)
    rows: int = 0
    began: float = field(default_factory=time.perf_counter)

    def add(self, loss: Loss, rows: int) -> None:
        self.losses.append(
            Loss(loss.total.detach(), loss.by_task_T.detach(), loss.weight_T.detach())
        )
        self.rows += rows

    def record(self, training: Training) -> Record:
        seconds = time.perf_counter() - self.began
        means = mean_by_task(self.losses).tolist()
        last = training.step - 1
        tasks, weights_T = training.run.schema.task_names, training.balance.weights_T
        return {
            "kind": "training",
            "step": training.step,
            "epoch": training.step / training.feed.batches_per_epoch,
            "loss": float(torch.stack([loss.total for loss in self.losses]).mean()),
            "loss_by_task": dict(zip(tasks, means, strict=True)),
            "weight_by_task": dict(zip(tasks, weights_T.tolist(), strict=True)),
            "dense_lr": training.optimizer.dense_lr(last),
            "embedding_lr": training.optimizer.embedding_lr(last),
            "rows_per_second": self.rows / seconds,
        }


def _fit(run: RunDirectory) -> FinishedRun:
    """Train to the end, from the last checkpoint again as often as a skipped step asks for that."""
    began = time.perf_counter()
    with stop_requests() as stop, writing(run.path):
        while (finished := _attempt(run, stop, began)) is None:
            # What is in memory may be as large as what is loaded next.
            gc.collect()
    return finished


def _attempt(run: RunDirectory, stop: StopRequest, began: float) -> FinishedRun | None:
    settings = run.experiment.train
    torch.set_num_threads(choose_threads(settings.threads))
    device = choose_device(settings.device)
    use_fast_float32(device)
    if settings.precision == "bf16":
        warn_of_slow_bf16(device)
    keep_freed_memory()
    training = Training(run, between_batches=stop.check)
    logger.info(
        "train start step=%d/%d rows=%d batches_per_epoch=%d threads=%d device=%s",
        training.step,
        training.total_steps,
        training.train_days.rows,
        training.feed.batches_per_epoch,
        torch.get_num_threads(),
        training.device.type,
    )
    try:
        if training.step == 0:
            # Validation rows that leave the metric undefined are told now, not when an epoch has been spent.
            training.evaluate()
        with closing(open_journal(run.metrics, run.tensorboard, start=training.step)) as journal:
            for record in id_records(training.taken, step=training.step):
                journal.append(record)
            _loop(training, journal, stop)
            return _finished(training, journal, seconds=time.perf_counter() - began)
    except RolledBack:
        return None
    except StopAskedFor:
        training.save_unless_saved()
        raise TrainingStopped(
            f"{run.path}: stopped by SIGTERM after step {training.step}; go on with --resume"
        ) from None


def _loop(training: Training, journal: Journal | Silence, stop: StopRequest) -> None:
    """Steps, records, evaluations and checkpoints until the last step or until patience ends, or StopAskedFor."""
    settings = training.run.experiment.train
    records = _with_last_evaluation(training, journal)
    window = _Window()
    progress = progress_to(training.total_steps, start=training.step)
    with closing(training.batches()) as batches, closing(progress):
        while training.step < training.total_steps and not _out_of_patience(
            records, settings.patience
        ):
            rows = training.feed.rows(training.position)
            loss = training.advance(next(batches).batch)
            if loss is not None:
                window.add(loss, rows)
            evaluates = _evaluation_is_due(training)
            saves = evaluates or _is_multiple(training.step, settings.checkpoint_every)
            # Without a loss where every step since the last record was skipped.
            if window.losses and (saves or training.step % settings.log_every == 0):
                record = window.record(training)
                journal.append(record)
                progress.update(training.step, record["loss"], record["rows_per_second"])
                window = _Window()
            if evaluates:
                records = _evaluate(training, journal)
            if saves:
                for record in training.id_records():
                    journal.append(record)
                training.save()
                _mark_best(training, records)
                window = _Window()
            stop.check()
    if training.step < training.total_steps:
        logger.info(
            "train stopped step=%d/%d evaluations_without_a_better=%d (train.patience)",
            training.step,
            training.total_steps,
            settings.patience,
        )


def _with_last_evaluation(training: Training, journal: Journal | Silence) -> list[Record]:
    """The validation records, with that of the present step, whose evaluation may have been left for a stop."""
    records = on_first(journal.validations)
    evaluated = any(record["step"] == training.step for record in records)
    if evaluated or training.step == 0 or not _evaluation_is_due(training):
        return records
    records = _evaluate(training, journal)
    _mark_best(training, records)
    return records


def _evaluate(training: Training, journal: Journal | Silence) -> list[Record]:
    record = training.evaluate()
    # The record comes before its checkpoint: a run killed in between evaluates that step again.
    journal.append(record)
    logger.info("validation step=%d %s=%.5f", training.step, record["metric"], record["score"])
    return on_first(journal.validations)


def _mark_best(training: Training, records: Sequence[Record]) -> None:
    best = best_record(records)
    keep = training.run.experiment.train.keep_checkpoints
    if best is not None and is_first():
        mark_best(training.run, best["step"], keep=keep)


def _finished(training: Training, journal: Journal | Silence, *, seconds: float) -> FinishedRun:
    best = best_record(on_first(journal.validations))
    assert best is not None, "a finished training has been evaluated"
    keep = training.run.experiment.train.keep_checkpoints
    version = on_first(lambda: mark_best(training.run, best["step"], keep=keep))
    assert version is not None, f"the best checkpoint, of step {best['step']}, is gone"
    return FinishedRun(
        training.run.path,
        training.step,
        best["step"],
        version,
        best["metric"],
        best["score"],
        len(training.skipped.steps),
        best["entries"],
        seconds,
    )


def _evaluation_is_due(training: Training) -> bool:
    every = training.run.experiment.train.evaluate_every or training.feed.batches_per_epoch
    return training.step == training.total_steps or training.step % every == 0


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _out_of_patience(records: Sequence[Record], patience: int | None) -> bool:
    return patience is not None and evaluations_since_best(records) >= patience


def _require_same(run: RunDirectory, asked: Experiment) -> None:
    """Refuse to go on with a run under another schema or experiment than it was started with."""
    schema = asked.load_schema()
    if schema.model_digest != run.schema.model_digest:
        raise ConfigError(
            f"{asked.schema_file}: is not the schema that {run.path} was started with; "
            "restore it, or train a new run in another directory"
        )
    differences = run.experiment.differences(
        asked.model_copy(update={"schema_file": run.experiment.schema_file})
    )
    if differences:
        raise ConfigError(
            f"{run.path}: was started with another experiment ({'; '.join(differences[:3])}); "
            "restore it, or train a new run in another directory"
        )
