"""A run in progress: everything a step, an evaluation and a checkpoint need.

It is the same in one process as in many ranks (`recsys.ranks`): each rank takes its rows of a batch from the feed, and
losses and gradients are added up over ranks where they are made.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.day_names import DayRange
from recsys.days import Build, Days, open_days, version_to_read
from recsys.evaluation.checkup import watch_over
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.evaluation.experts import headlines
from recsys.evaluation.metrics import evaluate_tasks
from recsys.evaluation.outcomes import Outcomes
from recsys.feed import START, PlacedBatch
from recsys.idmap import IdMap
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
from recsys.training.managed_ids import ManagedIds, check_managed
from recsys.training.objective import Loss, build_objective
from recsys.training.optim import Optimizer
from recsys.training.selection import criterion_for, numbers_of
from recsys.training.skipped import SkippedSteps, UnsoundStep
from recsys.training.soundness import Soundness, require_finite
from recsys.training.warm_start import warm_start

# To watch a row costs about what it costs to train on it: one in so many keeps that under 1 %.
_WATCHED_OF = 200


class RolledBack(Exception):  # noqa: N818 - no error: the training goes on from its last checkpoint
    """A skipped step has updated tables: what is in memory is not to be gone on with."""


class Training:
    """A run in progress: model, optimizers, feed, and how far it is."""

    def __init__(
        self, run: RunDirectory, *, between_batches: Callable[[], None] = lambda: None
    ) -> None:
        """An exception of `between_batches`, which all ranks call as often, ends an evaluation."""
        experiment = run.experiment
        settings = experiment.train
        self.run = run
        self._between_batches = between_batches
        check_managed(run.schema, experiment)
        self.device = choose_device(settings.device)
        self.criterion = criterion_for(run.schema, settings.metric)
        found = on_first(lambda: read_progress(run))
        pinned = found[1] if found is not None else None
        train, validation = on_first(lambda: self._days(pinned))
        checkpoint = found[0] if found is not None else None
        id_maps, self.taken = on_first(lambda: id_maps_of(run, train, checkpoint))
        by_days = {name: id_maps[name] for name in id_maps if name not in run.schema.managed}
        self.train_days = train.with_id_maps(by_days)
        self.validation_days = validation
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
        self.soundness = Soundness(self.model, experiment.optimizer.embeddings)
        self.skipped = SkippedSteps(run.skipped_steps, budget=settings.max_skipped_steps)
        self.step, self.position, self._saved_step = 0, START, 0
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
            self._saved_step = self.step
        self.managed_ids = ManagedIds(
            self.model.embeddings,
            experiment.model.embeddings,
            seed=settings.seed,
            device=self.device,
        )
        self.model.train()

    def batches(self) -> Generator[PlacedBatch, None, None]:
        """This rank's batches from the present position on, at least those of the steps left; close the iterator."""
        batches, asked = self.feed.batches(self.position), self.run.experiment.sharding.pipeline
        # Ids have no row yet when they would travel, where each step changes which one they have.
        possible = self.device.type == "cuda" and not self.run.schema.managed
        ahead = possible if asked is None else asked
        if not ahead or world_size() == 1 or not self.model.embeddings.specs:
            return batches
        # Importing TorchRec takes seconds: only who shards tables pays.
        from recsys.training.distributed.pipeline import read_ahead

        left = self.total_steps - self.step
        return read_ahead(batches, self.model.embeddings, self.device, steps=left)

    def advance(self, batch: Batch) -> Loss | None:
        """One step: forward, loss, backward with the tables' update in it, dense update; None if it was skipped.

        A step is skipped, without a trace, when its loss or its gradient is not finite. Raises RolledBack when it has
        left one, and TrainingError when too many were skipped.
        """
        loss = None if self.step in self.skipped.steps else self._learn(batch)
        self.averages.after_step(self.step)
        self.step += 1
        self.position = self.feed.after(self.position)
        return loss

    def _learn(self, batch: Batch) -> Loss | None:
        hashed = batch.to(self.device)
        on_device = self.managed_ids.in_rows(hashed)
        self.soundness.begin()
        self.optimizer.before_backward(self.step)
        repeat = self.backward.repeat(on_device)
        loss = self.backward(on_device, self.step)
        norm = self.optimizer.dense.gradient_norm()
        if not self.soundness.is_sound(loss.total, norm):
            self._skip(loss, norm, batch)
            return None
        self.optimizer.after_backward(self.step, norm)
        self.balance.after_step(loss, self.step, repeat)
        self.managed_ids.after_step(hashed)
        return loss

    def _skip(self, loss: Loss, norm: Tensor, batch: Batch) -> None:
        """Note a step that is not sound, and undo it. Raises RolledBack when that needs a checkpoint."""
        losses = zip(self.run.schema.task_names, loss.by_task_T.tolist(), strict=True)
        found = UnsoundStep(
            self.step, self.position, dict(losses), float(norm), _row_keys_of_all(batch)
        )
        self.skipped.add(found)
        if self.soundness.tables_are_touched():
            raise RolledBack
        self.optimizer.dense.drop_gradients()
        self.soundness.undo()

    def evaluate(self) -> Record:
        """The validation record of the present model, the same on every rank."""
        days = self.validation_days.with_id_maps(self._present_id_maps())
        watch = watch_over(
            self.model,
            days,
            about_rows=self._rows_between_evaluations // _WATCHED_OF,
        )
        with self.averages.in_place(), watch.attached():
            outcomes = outcomes_of(
                self.model,
                days,
                batch_size=self.run.experiment.evaluation.batch_size,
                between_batches=self._between_batches,
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
        """Write a checkpoint. Raises TrainingError where a number in it would not be finite."""
        self._present_id_maps()
        require_finite(
            self.run,
            self.model,
            self.optimizer.dense.state(),
            self.balance.state(),
            step=self.step,
        )
        progress = Progress(
            self.step, self.position, self.train_days.builds, self.validation_days.builds
        )
        save_checkpoint(
            self.run, self.model, self.optimizer.dense, self.balance, self.averages, progress
        )
        self._saved_step = self.step

    def id_records(self) -> list[Record]:
        """What the steps since the last call did to the id maps that they change."""
        return self.managed_ids.records(step=self.step)

    def save_unless_saved(self) -> None:
        """Write a checkpoint of the present step if there is none; a run begins without."""
        if self.step != self._saved_step:
            self.save()

    def _present_id_maps(self) -> Mapping[str, IdMap]:
        """The model's id maps, brought to the present step."""
        embeddings = self.model.embeddings
        embeddings.id_maps = {**embeddings.id_maps, **self.managed_ids.id_maps()}
        return embeddings.id_maps

    @property
    def _rows_between_evaluations(self) -> int:
        steps = self.run.experiment.train.evaluate_every or self.feed.batches_per_epoch
        return steps * self.feed.batch_size

    def _days(self, pinned: Progress | None) -> tuple[Days, Days]:
        """The days to train on and those to validate on: the pinned builds, or the present ones."""
        data = self.run.experiment.data
        source = data.stream or data.directory
        names, versions = _asked(source, data.train, pinned.train if pinned else None)
        train = open_training_days(self.run, names, versions)
        names, versions = _asked(
            data.directory, data.validation, pinned.validation if pinned else None
        )
        return train, open_days(
            data.directory,
            names,
            encoder=self.run.encoder,
            versions=versions,
            labels_digest=train.labels_digest,
        )


def _asked(
    directory: Path, days: DayRange | Sequence[str], builds: Sequence[Build] | None
) -> tuple[DayRange | Sequence[str], dict[str, str] | None]:
    """Days and their versions: a range means the days that were there when the run began."""
    if builds is None:
        return days, None
    versions = {build.day: version_to_read(directory, build) for build in builds}
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


def _row_keys_of_all(batch: Batch) -> tuple[int, ...]:
    """The keys of a step's rows, of all ranks on each, in the order in which they took them in turns."""
    turns = zip_longest(*to_first(batch.row_key_B.tolist()))
    return on_first(lambda: tuple(key for turn in turns for key in turn if key is not None))
