"""Boosted trees trained and measured on an experiment's days, published as a report.

For a funnel step (`given`) trees learn the conditional probability, on the rows whose parent happened, and the joint
one is the product with the parent's, as the model's is. Axes: **B** rows, **I** inputs, **T** tasks.
"""

import importlib.metadata
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from recsys.baseline.inputs import read_tree_rows, tree_rows
from recsys.baseline.tasks import FEWEST_OF_A_CLASS, TaskTrees, learn_task
from recsys.baseline.trees import load_lightgbm
from recsys.day_names import day_names
from recsys.days import Days, open_days
from recsys.errors import ConfigError
from recsys.evaluation.metrics import evaluate_tasks
from recsys.evaluation.outcomes import OutcomeAccumulator, Outcomes
from recsys.experiment import Experiment
from recsys.id_days import take_in
from recsys.idmap import empty_id_maps
from recsys.layout import encoded_arrow, kept_column
from recsys.measures import AnyArray
from recsys.predictions import PredictionWriter
from recsys.publish import Published, publication
from recsys.report import (
    KIND,
    PREDICTIONS,
    EvaluatedDay,
    EvaluatedModel,
    Report,
    render_table,
    write_report,
)
from recsys.run import choose_threads, fitted_encoder
from recsys.schema import Schema

logger = logging.getLogger(__name__)

# About 2 GB of memory at 100 inputs.
MOST_ROWS = 2_000_000
_NAMED_INPUTS = 3


@dataclass(frozen=True)
class LearnedTask:
    """How one task was learned, and the inputs that gained most with their shares of the gain."""

    task: str
    rows: int
    positives: int | None
    trees: int
    seconds: float
    most_used: dict[str, float]


@dataclass(frozen=True)
class Baseline:
    """A published report of boosted trees, and how they were made."""

    published: Published
    report: Report
    rows: int
    rows_total: int
    learned: tuple[LearnedTask, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.published.path),
            "training_rows": self.rows,
            "training_rows_total": self.rows_total,
            "tasks": [asdict(item) for item in self.learned],
        } | self.report.model_dump(mode="json")

    def render(self) -> str:
        lines = [render_table(self.report), "", self._trained_on()]
        lines += [_learned_line(item) for item in self.learned]
        return "\n".join([*lines, "", f"report: {self.published.path}"])

    def _trained_on(self) -> str:
        if self.rows == self.rows_total:
            return f"trained on {self.rows:,} rows; most used inputs by share of gain:"
        return (
            f"trained on a sample of {self.rows:,} of {self.rows_total:,} rows; "
            "most used inputs by share of gain:"
        )


def baseline(
    experiment: Experiment,
    report_root: Path,
    *,
    days: str | None = None,
    up_to_rows: int = MOST_ROWS,
) -> Baseline:
    """Boosted trees of an experiment's tasks, measured on days, with report and predictions under `report_root`.

    Trees learn from the training days, or a sample of `up_to_rows` of their rows, and stop by the validation days.
    `days` are a name or a range; without them the experiment's test days. Raises ConfigError when LightGBM is missing
    or no days are named, ArtifactError for days that are missing or damaged, DataError for rows that teach nothing.
    """
    load_lightgbm()
    names = day_names(days) if days is not None else experiment.data.test
    if names is None:
        raise ConfigError(
            "the experiment names no test days; add data.test, or name days to evaluate (--days)"
        )
    encoder = fitted_encoder(experiment)
    directory = experiment.data.directory
    train = open_days(directory, experiment.data.train, encoder=encoder)
    # As a training has them: ids that are too rare or evicted there are unknown here too.
    id_maps, _ = take_in(train, empty_id_maps(train.schema))
    train = train.with_id_maps(id_maps)
    validation, test = (
        open_days(
            directory, named, encoder=encoder, labels_digest=train.labels_digest
        ).with_id_maps(id_maps)
        for named in (experiment.data.validation, names)
    )
    models, learned, rows = _learn(experiment, train, validation, up_to_rows)
    metadata = {
        "data_digest": encoder.schema.data_digest,
        "model_digest": encoder.schema.model_digest,
        "encoder_digest": encoder.digest,
        "days": [build.day for build in test.builds],
    }
    with publication(report_root, kind=KIND, metadata=metadata) as draft:
        outcomes = _write_predictions(experiment, models, test, draft.path / PREDICTIONS)
        report = Report(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=_evaluated(models),
            **{
                key: str(metadata[key]) for key in ("data_digest", "model_digest", "encoder_digest")
            },
            days=tuple(
                EvaluatedDay(day=item.day, build=item.version, rows=item.rows)
                for item in test.builds
            ),
            rows=test.rows,
            references=experiment.evaluation.reference,
            entries=evaluate_tasks(outcomes, test.schema.tasks),
        )
        write_report(draft.path, report)
    assert draft.published is not None
    return Baseline(draft.published, report, rows, train.rows, learned)


def _learn(
    experiment: Experiment, train_days: Days, validation_days: Days, up_to_rows: int
) -> tuple[dict[str, TaskTrees], tuple[LearnedTask, ...], int]:
    seed, threads = experiment.train.seed, choose_threads(experiment.train.threads)
    train = read_tree_rows(train_days, up_to_rows=up_to_rows, seed=seed)
    validation = read_tree_rows(validation_days, up_to_rows=up_to_rows, seed=seed)
    if len(train) < train_days.rows:
        logger.info("baseline.sample rows=%d of=%d", len(train), train_days.rows)
    models: dict[str, TaskTrees] = {}
    learned: list[LearnedTask] = []
    schema = train_days.schema
    for name in schema.task_names:
        start = time.perf_counter()
        model = learn_task(name, schema, train, validation, seed=seed, threads=threads)
        models[name] = model
        learned.append(
            LearnedTask(
                name,
                model.rows,
                model.positives,
                model.trees.count if model.trees else 0,
                round(time.perf_counter() - start, 1),
                dict(model.most_used(_NAMED_INPUTS)),
            )
        )
        _log(learned[-1], number=len(learned), of=len(schema.tasks))
    return models, tuple(learned), len(train)


def _log(learned: LearnedTask, *, number: int, of: int) -> None:
    if not learned.trees:
        logger.warning(
            "baseline.average task=%s rows=%d positives=%s hint='fewer than %d rows of a class: "
            "its average is predicted'",
            learned.task,
            learned.rows,
            learned.positives,
            FEWEST_OF_A_CLASS,
        )
    logger.info(
        "baseline.task task=%s number=%d/%d rows=%d trees=%d seconds=%.1f",
        learned.task,
        number,
        of,
        learned.rows,
        learned.trees,
        learned.seconds,
    )


def _write_predictions(
    experiment: Experiment, models: Mapping[str, TaskTrees], days: Days, directory: Path
) -> Outcomes:
    schema = days.schema
    gathered = OutcomeAccumulator(schema.task_names)
    columns = encoded_arrow(schema).names
    with PredictionWriter(directory, schema) as writer:
        for group in days.groups:
            encoded = days.read((group,), columns)
            rows = tree_rows(encoded, schema)
            logits_BT = joint_scores(
                {name: model.scores(rows) for name, model in models.items()}, schema
            )
            writer.write(encoded, logits_BT)
            gathered.add(
                logits_BT=logits_BT,
                labels_BT=rows.labels_BT,
                observed_BT=rows.observed_BT,
                weights_B=rows.weights_B,
                groups_B=encoded.column("group").to_numpy(),
                references={
                    task: encoded.column(kept_column(column)).to_numpy()
                    for task, column in experiment.evaluation.reference.items()
                },
            )
    return gathered.outcomes()


def joint_scores(scores: Mapping[str, AnyArray], schema: Schema) -> AnyArray:
    """Scores of tasks side by side in the schema's order, float32 [B, T]; a funnel step's times its parent's."""

    def joint(name: str) -> AnyArray:
        parent = schema.tasks[name].given
        if parent is None:
            return scores[name]
        # As the model's heads do it (`joint_logit`): a sum of positive terms, so that nothing cancels.
        a_B, b_B = joint(parent), scores[name]
        found_B: AnyArray = -np.logaddexp(np.logaddexp(-a_B, -b_B), -a_B - b_B)
        return found_B

    return np.stack([joint(name) for name in schema.task_names], axis=1).astype(np.float32)


def _evaluated(models: Mapping[str, TaskTrees]) -> EvaluatedModel:
    trees = [model.trees for model in models.values() if model.trees is not None]
    return EvaluatedModel(
        run="baseline",
        checkpoint=f"lightgbm-{importlib.metadata.version('lightgbm')}",
        step=sum(item.count for item in trees),
        bottom="boosted trees",
        mixing="one model a task",
        parameters=sum(item.leaves for item in trees),
    )


def _learned_line(learned: LearnedTask) -> str:
    if not learned.trees:
        return f"  {learned.task}: predicts its average, for want of rows of both classes"
    used = ", ".join(f"{name} {share:.0%}" for name, share in learned.most_used.items())
    return f"  {learned.task}: {learned.trees} trees from {learned.rows:,} rows; {used}"
