"""A model over days: outcomes for metrics, and the published report with its predictions.

Axes: **B** rows, **T** tasks.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.day_names import day_names
from recsys.days import Days, open_days
from recsys.diagnosis import Diagnosis
from recsys.errors import ConfigError
from recsys.evaluation.checkup import Checkup
from recsys.evaluation.metrics import evaluate_tasks
from recsys.evaluation.outcomes import OutcomeAccumulator, Outcomes, in_turns
from recsys.experiment import Experiment
from recsys.feed import EncodedBatch, in_order
from recsys.layout import kept_column
from recsys.models import RankingModel
from recsys.predictions import PredictionWriter
from recsys.publish import Published, publication
from recsys.ranks import rank, to_first, world_size
from recsys.report import (
    KIND,
    PREDICTIONS,
    EvaluatedDay,
    EvaluatedModel,
    Report,
    render_table,
    write_report,
)
from recsys.run import BEST, TrainedRun, choose_device, choose_threads, load_run, open_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A published report."""

    published: Published
    report: Report

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.published.path)} | self.report.model_dump(mode="json")

    def render(self) -> str:
        return f"{render_table(self.report)}\n\nreport: {self.published.path}"


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """A batch of stored rows and the model's logits for them, float32 on the CPU."""

    rows: EncodedBatch
    logits_BT: NDArray[np.float32]


def evaluate(
    run: Path, report_root: Path, *, days: str | Sequence[str] | None = None, checkpoint: str = BEST
) -> Evaluation:
    """A run's checkpoint measured on days, and the report and predictions published under `report_root`.

    `days` are names, one name, or a range `2026-10-01:2026-10-03`; without them the experiment's test days. Predictions
    are written batch by batch; what stays in memory is a few numbers a row. Raises ArtifactError for a damaged run or
    day, ConfigError when no days are named, and DataError for rows that cannot be measured.
    """
    experiment = open_run(run).experiment
    torch.set_num_threads(choose_threads(experiment.train.threads))
    trained = load_run(run, checkpoint=checkpoint, device=choose_device(experiment.train.device))
    names = day_names(days) if days is not None else experiment.data.test
    if names is None:
        raise ConfigError(
            f"{run}: the experiment names no test days; name days to evaluate (--days)"
        )
    opened = open_days(
        experiment.data.directory,
        names,
        encoder=trained.encoder,
        labels_digest=trained.labels_digest,
    ).with_id_maps(trained.id_maps)
    metadata = trained.directory.digests | {
        "checkpoint": trained.checkpoint.version,
        "days": [build.day for build in opened.builds],
    }
    with publication(report_root, kind=KIND, metadata=metadata) as draft:
        checkup = Checkup(trained, opened, batch_size=experiment.evaluation.batch_size)
        outcomes = _write_predictions(trained, opened, draft.path / PREDICTIONS, checkup)
        report = _report(trained, opened, outcomes, checkup.diagnosis())
        write_report(draft.path, report)
    assert draft.published is not None
    logger.info("report path=%s rows=%d", draft.published.path, report.rows)
    return Evaluation(draft.published, report)


def outcomes_of(
    model: RankingModel,
    days: Days,
    *,
    batch_size: int,
    references: Mapping[str, str] | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> Outcomes:
    """The model's logits and the labels of all rows, and per task the kept column that `references` names.

    Of several ranks, the first gets all rows, in the order in which they are stored, and the others their own. All call
    `between_batches` as often; what it raises ends the scoring.
    """
    gathered = OutcomeAccumulator(days.schema.task_names)
    with closing(score_days(model, days, batch_size=batch_size)) as batches:
        for scored in batches:
            _add(gathered, scored, references or {})
            between_batches()
    ranks = to_first(gathered.parts()) or [gathered.parts()]
    return Outcomes.concatenate(in_turns(ranks))


def score_days(
    model: RankingModel, days: Days, *, batch_size: int
) -> Generator[ScoredBatch, None, None]:
    """Every stored row with its logits, in evaluation mode and float32; the model's mode is put back at the end.

    Ranks take turns by batch; some may get a last one without rows, for they look rows of tables up together.
    """
    device = next(model.program.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with closing(_turns(days, batch_size)) as batches:
            for rows in batches:
                # Not inference_mode: fbgemm's CPU lookup exists as an autograd kernel alone.
                with torch.no_grad():
                    logits_BT = model(rows.batch.to(device)).float().cpu().numpy()
                yield ScoredBatch(rows, logits_BT)
    finally:
        model.train(was_training)


def _turns(days: Days, batch_size: int) -> Generator[EncodedBatch, None, None]:
    return in_order(days, batch_size=batch_size, rank=rank(), world_size=world_size())


def _write_predictions(
    trained: TrainedRun, days: Days, directory: Path, checkup: Checkup
) -> Outcomes:
    experiment = trained.experiment
    gathered = OutcomeAccumulator(trained.schema.task_names)
    with PredictionWriter(directory, trained.schema) as writer, checkup.attached():
        for scored in score_days(trained.model, days, batch_size=experiment.evaluation.batch_size):
            writer.write(scored.rows.encoded, scored.logits_BT)
            _add(gathered, scored, experiment.evaluation.reference)
            checkup.see(scored.rows)
    return gathered.outcomes()


def _add(gathered: OutcomeAccumulator, scored: ScoredBatch, references: Mapping[str, str]) -> None:
    batch, encoded = scored.rows.batch, scored.rows.encoded
    gathered.add(
        logits_BT=scored.logits_BT,
        labels_BT=batch.labels_BT.numpy(),
        observed_BT=batch.observed_BT.numpy(),
        weights_B=batch.weights_B.numpy(),
        groups_B=batch.groups_B.numpy(),
        # A null becomes NaN, which the metrics refuse by name.
        references={
            task: encoded.column(kept_column(column)).to_numpy()
            for task, column in references.items()
        },
    )


def _report(trained: TrainedRun, days: Days, outcomes: Outcomes, diagnosis: Diagnosis) -> Report:
    experiment = trained.experiment
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=_evaluated_model(trained, experiment),
        data_digest=trained.schema.data_digest,
        model_digest=trained.schema.model_digest,
        encoder_digest=trained.encoder.digest,
        days=tuple(
            EvaluatedDay(day=item.day, build=item.version, rows=item.rows) for item in days.builds
        ),
        rows=days.rows,
        references=experiment.evaluation.reference,
        entries=evaluate_tasks(outcomes, trained.schema.tasks),
        experts=diagnosis,
    )


def _evaluated_model(trained: TrainedRun, experiment: Experiment) -> EvaluatedModel:
    tables = trained.model.embeddings.table_weights().values()
    dense = sum(parameter.numel() for parameter in trained.model.program.parameters())
    return EvaluatedModel(
        run=trained.directory.path.resolve().name,
        checkpoint=trained.checkpoint.version,
        step=trained.step,
        bottom=experiment.model.bottom.kind,
        mixing=experiment.model.mixing.kind,
        parameters=dense + sum(weights.numel() for weights in tables),
    )
