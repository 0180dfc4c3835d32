"""The one training loop.

Everything a step needs is in `Training`; `train` opens a new run or goes on with one, and loops. The loop knows neither
ranks nor process groups: a sharded training wraps the feed and the model that it is given.

Bit-equal resumption rests on four things: the feed's order is a function of (seed, epoch), the learning rates are a
function of the step, a checkpoint holds every state that a step changes, and evaluations fall on fixed steps.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.day_names import DayRange
from recsys.days import Build, Days, open_days
from recsys.errors import ConfigError, TrainingError, UserError
from recsys.evaluation.checkup import watch_over
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.experts import headlines
from recsys.evaluation.metrics import evaluate_tasks
from recsys.experiment import Experiment, load_experiment
from recsys.feed import START, Feed
from recsys.memory import keep_freed_memory
from recsys.models.experts import require_batch_rows
from recsys.models.precision import use_fast_float32
from recsys.run import (
    RunDirectory,
    choose_device,
    choose_threads,
    create_run,
    new_model,
    open_run,
    remove_unless_begun,
)
from recsys.training.balancing import build_balance
from recsys.training.checkpoint import Progress, mark_best, read_progress, restore, save_checkpoint
from recsys.training.forward import Forward
from recsys.training.funnel_labels import warn_of_funnel_breaks
from recsys.training.journal import Journal, Record, progress_to
from recsys.training.objective import Loss, build_objective, mean_by_task
from recsys.training.optim import Optimizer
from recsys.training.selection import best_record, criterion_for, evaluations_since_best, numbers_of

logger = logging.getLogger(__name__)

_SHOWN_ROW_KEYS = 5
# To watch a row costs about what it costs to train on it: one in so many keeps that under 1 %.
_WATCHED_OF = 200


@dataclass(frozen=True)
class FinishedRun:
    """What a training came to. `score` is the best checkpoint's, on the validation days; higher is better."""

    path: Path
    steps: int
    best_step: int
    best_version: str
    metric: str
    score: float
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
        return "\n".join([*lines, f"run: {self.path}"])


def train(experiment: Experiment | Path, run: Path, *, resume: bool = False) -> FinishedRun:
    """Train a new run, or with `resume` go on with the one that lies there, from its newest checkpoint.

    A run that was stopped before its first checkpoint starts again; a finished one is reported as it is. Raises
    ArtifactError when there is a run already and `resume` was not asked for (or none, and it was), when the run's
    schema, days or encoder do not fit, ConfigError when a resumed run was started with another experiment, and
    TrainingError when the loss stops being a number.
    """
    asked = load_experiment(experiment) if isinstance(experiment, Path) else experiment
    if not resume:
        new = create_run(run, asked)
        try:
            return _fit(new)
        except UserError:
            remove_unless_begun(new)
            raise
    directory = open_run(run)
    _require_same(directory, asked)
    return _fit(directory)


class Training:
    """A run in progress: model, optimizers, feed, and how far it is."""

    def __init__(self, run: RunDirectory) -> None:
        experiment = run.experiment
        settings = experiment.train
        self.run = run
        self.device = choose_device(settings.device)
        self.criterion = criterion_for(run.schema, settings.metric)
        found = read_progress(run)
        pinned = found[1] if found is not None else None
        self.train_days = self._days(experiment.data.train, pinned.train if pinned else None)
        self.validation_days = self._days(
            experiment.data.validation,
            pinned.validation if pinned else None,
            labels_digest=self.train_days.labels_digest,
        )
        self.feed = Feed(
            self.train_days,
            batch_size=experiment.data.batch_size,
            seed=settings.seed,
            window_rows=experiment.data.window_rows,
        )
        steps = settings.epochs * self.feed.batches_per_epoch
        self.total_steps = steps if settings.steps is None else min(steps, settings.steps)
        self.model = new_model(run, self.device)
        require_batch_rows(self.model.program, experiment.data.batch_size)
        objective = build_objective(run.schema, experiment.objective).to(self.device)
        self.forward = Forward(self.model, objective, precision=settings.precision)
        self.balance = build_balance(
            experiment.objective.balance,
            self.model.program,
            task_weights_T=objective.task_weights_T,
            steps_per_epoch=self.feed.batches_per_epoch,
            total_steps=self.total_steps,
            seed=settings.seed,
        )
        self.optimizer = Optimizer(
            self.model.program.named_parameters(),
            self.model.embeddings,
            config=experiment.optimizer,
            total_steps=self.total_steps,
        )
        self.step, self.position = 0, START
        if found is None:
            warn_of_funnel_breaks(self.train_days)
            torch.manual_seed(settings.seed)
            self.model.program.initialize_output_bias(self.train_days.label_means())
        else:
            published, progress = found
            restore(published, self.model, self.optimizer.dense, self.balance)
            self.step, self.position = progress.step, progress.position
        self.model.train()

    def advance(self, batch: Batch) -> Loss:
        """One step: forward, loss, backward with the tables' update in it, dense update. Raises TrainingError."""
        on_device = batch.to(self.device)
        self.optimizer.before_backward(self.step)
        repeat = self.forward.repeat(on_device)
        loss = self.forward.loss(on_device)
        self.balance.backward(loss, self.step)
        norm = self.optimizer.after_backward(self.step)
        # One look at the device a step: a sum is finite only if both terms are.
        if not torch.isfinite(loss.total.detach() + norm):
            raise TrainingError(self._diverged(batch, loss, norm))
        self.balance.after_step(loss, self.step, repeat)
        self.step += 1
        self.position = self.feed.after(self.position)
        return loss

    def evaluate(self) -> Record:
        """The validation record of the present model."""
        watch = watch_over(
            self.model,
            self.validation_days,
            about_rows=self._rows_between_evaluations // _WATCHED_OF,
        )
        with watch.attached():
            outcomes = outcomes_of(
                self.model,
                self.validation_days,
                batch_size=self.run.experiment.evaluation.batch_size,
            )
        entries = evaluate_tasks(outcomes, self.run.schema.tasks)
        return {
            "kind": "validation",
            "step": self.step,
            "epoch": self.step / self.feed.batches_per_epoch,
            "metric": self.criterion.metric,
            "score": self.criterion.score(entries),
            "entries": {entry.name: numbers_of(entry) for entry in entries},
            "experts": headlines(watch),
        }

    def save(self) -> None:
        progress = Progress(
            self.step, self.position, self.train_days.builds, self.validation_days.builds
        )
        save_checkpoint(self.run, self.model, self.optimizer.dense, self.balance, progress)

    @property
    def _rows_between_evaluations(self) -> int:
        steps = self.run.experiment.train.evaluate_every or self.feed.batches_per_epoch
        return steps * self.feed.batch_size

    def _days(
        self,
        days: DayRange | Sequence[str],
        builds: Sequence[Build] | None,
        *,
        labels_digest: str | None = None,
    ) -> Days:
        versions = None if builds is None else {build.day: build.version for build in builds}
        # A range means the days that were there when the run began.
        directory = self.run.experiment.data.directory
        return open_days(
            directory,
            days if versions is None else tuple(versions),
            encoder=self.run.encoder,
            versions=versions,
            labels_digest=labels_digest,
        )

    def _diverged(self, batch: Batch, loss: Loss, norm: Tensor) -> str:
        values = zip(self.run.schema.task_names, loss.by_task_T.tolist(), strict=True)
        by_task = ", ".join(f"{task} {value:.4g}" for task, value in values)
        keys = ", ".join(str(key) for key in batch.row_key_B[:_SHOWN_ROW_KEYS].tolist())
        return (
            f"step {self.step}: the loss or its gradient is not finite (loss by task: {by_task}; gradient norm "
            f"{float(norm):.4g}; {batch.rows} rows, the first with row keys {keys}); lower the learning rates, clip "
            f"gradients, or check these rows; checkpoints under {self.run.checkpoints} are from before"
        )


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
    began = time.perf_counter()
    settings = run.experiment.train
    torch.set_num_threads(choose_threads(settings.threads))
    use_fast_float32(choose_device(settings.device))
    keep_freed_memory()
    training = Training(run)
    logger.info(
        "train start step=%d/%d rows=%d batches_per_epoch=%d threads=%d device=%s",
        training.step,
        training.total_steps,
        training.train_days.rows,
        training.feed.batches_per_epoch,
        torch.get_num_threads(),
        training.device.type,
    )
    if training.step == 0:
        # Validation rows that leave the metric undefined are told now, not when an epoch has been spent.
        training.evaluate()
    with Journal(run.metrics, run.tensorboard, start=training.step) as journal:
        _loop(training, journal)
        return _finished(training, journal, seconds=time.perf_counter() - began)


def _loop(training: Training, journal: Journal) -> None:
    """Steps, records, evaluations and checkpoints until the last step or until patience ends."""
    settings = training.run.experiment.train
    records = journal.validations()
    window = _Window()
    progress = progress_to(training.total_steps, start=training.step)
    with closing(training.feed.batches(training.position)) as batches, closing(progress):
        while training.step < training.total_steps and not _out_of_patience(
            records, settings.patience
        ):
            batch = next(batches).batch
            window.add(training.advance(batch), batch.rows)
            evaluates = _evaluation_is_due(training)
            saves = evaluates or _is_multiple(training.step, settings.checkpoint_every)
            if saves or training.step % settings.log_every == 0:
                record = window.record(training)
                journal.append(record)
                progress.update(training.step, record["loss"], record["rows_per_second"])
                window = _Window()
            if evaluates:
                records = _evaluate(training, journal)
            if saves:
                training.save()
                _mark_best(training, records)
                window = _Window()
    if training.step < training.total_steps:
        logger.info(
            "train stopped step=%d/%d evaluations_without_a_better=%d (train.patience)",
            training.step,
            training.total_steps,
            settings.patience,
        )


def _evaluate(training: Training, journal: Journal) -> list[Record]:
    record = training.evaluate()
    # The record comes before its checkpoint: a run killed in between evaluates that step again.
    journal.append(record)
    logger.info("validation step=%d %s=%.5f", training.step, record["metric"], record["score"])
    return journal.validations()


def _mark_best(training: Training, records: Sequence[Record]) -> None:
    best = best_record(records)
    keep = training.run.experiment.train.keep_checkpoints
    if best is not None:
        mark_best(training.run, best["step"], keep=keep)


def _finished(training: Training, journal: Journal, *, seconds: float) -> FinishedRun:
    records = journal.validations()
    best = best_record(records)
    assert best is not None, "a finished training has been evaluated"
    version = mark_best(
        training.run, best["step"], keep=training.run.experiment.train.keep_checkpoints
    )
    assert version is not None, f"the best checkpoint, of step {best['step']}, is gone"
    return FinishedRun(
        training.run.path,
        training.step,
        best["step"],
        version,
        best["metric"],
        best["score"],
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
