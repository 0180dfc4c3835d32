"""A run in progress: everything a step, an evaluation and a checkpoint need.

It is the same in one process as in many ranks (`recsys.ranks`): each rank takes its rows of a batch from the feed, and
losses and gradients are added up over ranks where they are made.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.day_names import DayRange
from recsys.days import Build, Days, open_days
from recsys.errors import TrainingError
from recsys.evaluation.checkup import watch_over
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.evaluation.experts import headlines
from recsys.evaluation.metrics import evaluate_tasks
from recsys.evaluation.outcomes import Outcomes
from recsys.feed import START
from recsys.models import RankingModel
from recsys.models.embeddings.lookup import choose_backend, table_specs
from recsys.models.experts import require_batch_rows
from recsys.ranks import on_first, rank, to_first, world_size
from recsys.run import RunDirectory, choose_device, new_model
from recsys.training.accumulation import build_backward
from recsys.training.averages import Averages
from recsys.training.balancing import build_balance
from recsys.training.checkpoint import Progress, read_progress, restore, save_checkpoint
from recsys.training.distributed.workers import check_backend, check_device
from recsys.training.feeds import open_training_days, training_feed
from recsys.training.forward import Forward
from recsys.training.funnel_labels import warn_of_funnel_breaks
from recsys.training.ids import id_maps_of
from recsys.training.journal import Record
from recsys.training.objective import Loss, build_objective
from recsys.training.optim import Optimizer
from recsys.training.selection import criterion_for, numbers_of
from recsys.training.warm_start import warm_start

_SHOWN_ROW_KEYS = 5
# To watch a row costs about what it costs to train on it: one in so many keeps that under 1 %.
_WATCHED_OF = 200


class Training:
    """A run in progress: model, optimizers, feed, and how far it is."""

    def __init__(self, run: RunDirectory) -> None:
        experiment = run.experiment
        settings = experiment.train
        self.run = run
        self.device = choose_device(settings.device)
        self.criterion = criterion_for(run.schema, settings.metric)
        found = on_first(lambda: read_progress(run))
        pinned = found[1] if found is not None else None
        train, validation = on_first(lambda: self._days(pinned))
        checkpoint = found[0] if found is not None else None
        id_maps, self.taken = on_first(lambda: id_maps_of(train, checkpoint))
        self.train_days = train.with_id_maps(id_maps)
        self.validation_days = validation.with_id_maps(id_maps)
        self.feed = training_feed(self.train_days, experiment)
        steps = settings.epochs * self.feed.batches_per_epoch
        self.total_steps = steps if settings.steps is None else min(steps, settings.steps)
        self.model = _model(run, self.device)
        self.model.embeddings.id_maps = id_maps
        require_batch_rows(
            self.model.program, experiment.data.batch_size, parts=settings.accumulate
        )
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
        self.backward = build_backward(self.forward, self.balance, parts=settings.accumulate)
        self.optimizer = Optimizer(
            self.model.program.named_parameters(),
            self.model.embeddings,
            config=experiment.optimizer,
            total_steps=self.total_steps,
        )
        self.step, self.position = 0, START
        # Each rank's own rows need their own dropout.
        torch.manual_seed(settings.seed + rank())
        if found is None:
            on_first(lambda: warn_of_funnel_breaks(self.train_days))
            self.model.program.initialize_output_bias(on_first(self.train_days.label_means))
            warm_start(run, self.model, self.optimizer.dense)
        self.averages = Averages(self.model.program, decay=settings.ema)
        if found is not None:
            published, progress = found
            restore(published, self.model, self.optimizer.dense, self.balance, self.averages)
            self.step, self.position = progress.step, progress.position
        self.model.train()

    def advance(self, batch: Batch) -> Loss:
        """One step: forward, loss, backward with the tables' update in it, dense update. Raises TrainingError."""
        on_device = batch.to(self.device)
        self.optimizer.before_backward(self.step)
        repeat = self.forward.repeat(on_device)
        loss = self.backward(on_device, self.step)
        norm = self.optimizer.after_backward(self.step)
        # One look at the device a step: a sum is finite only if both terms are.
        if not torch.isfinite(loss.total.detach() + norm):
            row_keys = _first_row_keys(batch)
            raise TrainingError(on_first(lambda: self._diverged(loss, norm, row_keys)))
        self.balance.after_step(loss, self.step, repeat)
        self.averages.after_step(self.step)
        self.step += 1
        self.position = self.feed.after(self.position)
        return loss

    def evaluate(self) -> Record:
        """The validation record of the present model, the same on every rank."""
        watch = watch_over(
            self.model,
            self.validation_days,
            about_rows=self._rows_between_evaluations // _WATCHED_OF,
        )
        with self.averages.in_place(), watch.attached():
            outcomes = outcomes_of(
                self.model,
                self.validation_days,
                batch_size=self.run.experiment.evaluation.batch_size,
            )
        watch.add_up_ranks()
        return on_first(lambda: self._record(outcomes, watch))

    def _record(self, outcomes: Outcomes, watch: ExpertWatch) -> Record:
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
        save_checkpoint(
            self.run, self.model, self.optimizer.dense, self.balance, self.averages, progress
        )

    @property
    def _rows_between_evaluations(self) -> int:
        steps = self.run.experiment.train.evaluate_every or self.feed.batches_per_epoch
        return steps * self.feed.batch_size

    def _days(self, pinned: Progress | None) -> tuple[Days, Days]:
        """The days to train on and those to validate on: the pinned builds, or the present ones."""
        data = self.run.experiment.data
        names, versions = _asked(data.train, pinned.train if pinned else None)
        train = open_training_days(self.run, names, versions)
        names, versions = _asked(data.validation, pinned.validation if pinned else None)
        return train, open_days(
            data.directory,
            names,
            encoder=self.run.encoder,
            versions=versions,
            labels_digest=train.labels_digest,
        )

    def _diverged(self, loss: Loss, norm: Tensor, row_keys: Sequence[int]) -> str:
        values = zip(self.run.schema.task_names, loss.by_task_T.tolist(), strict=True)
        by_task = ", ".join(f"{task} {value:.4g}" for task, value in values)
        rows, keys = self.feed.rows(self.position), ", ".join(map(str, row_keys))
        return (
            f"step {self.step}: the loss or its gradient is not finite (loss by task: {by_task}; gradient norm "
            f"{float(norm):.4g}; {rows} rows, the first with row keys {keys}); lower the learning rates, clip "
            f"gradients, or check these rows; checkpoints under {self.run.checkpoints} are from before"
        )


def _asked(
    days: DayRange | Sequence[str], builds: Sequence[Build] | None
) -> tuple[DayRange | Sequence[str], dict[str, str] | None]:
    """Days and their versions: a range means the days that were there when the run began."""
    if builds is None:
        return days, None
    versions = {build.day: build.version for build in builds}
    return tuple(versions), versions


def _model(run: RunDirectory, device: torch.device) -> RankingModel:
    optimizer = run.experiment.optimizer.embeddings
    if world_size() == 1:
        return new_model(run, device, optimizer=optimizer)
    check_device(device)
    specs = table_specs(run.schema)
    check_backend(choose_backend(run.experiment.model.embeddings, specs, optimizer))
    # Importing TorchRec takes seconds: only who shards tables pays.
    from recsys.training.distributed.sharding import sharded_model

    return sharded_model(run, device)


def _first_row_keys(batch: Batch) -> list[int]:
    """Keys of a batch's first rows, on the first rank, in the order in which ranks took the rows in turns."""
    turns = zip_longest(*to_first(batch.row_key_B[:_SHOWN_ROW_KEYS].tolist()))
    return [key for turn in turns for key in turn if key is not None][:_SHOWN_ROW_KEYS]
