"""The doctor: a checkup of a run on days, and what its tasks lose when experts are taken away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recsys.batch import from_encoded
from recsys.day_names import day_names
from recsys.days import Days, open_days
from recsys.diagnosis import Diagnosis
from recsys.evaluation.checkup import Checkup, device_of
from recsys.evaluation.diagnosis_text import render_diagnosis
from recsys.evaluation.evaluate import score_days
from recsys.evaluation.removal import Removals
from recsys.run import BEST, TrainedRun, choose_device, choose_threads, load_run, open_run

# Row groups beyond these rows are left out, evenly; of the rest, this many rows are scored without each expert.
_MOST_ROWS = 131_072
_REMOVAL_ROWS = 32_768


@dataclass(frozen=True)
class Examination:
    """What the doctor says of a run's checkpoint on days."""

    run: Path
    checkpoint: str
    step: int
    days: tuple[str, ...]
    diagnosis: Diagnosis

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "checkpoint": self.checkpoint,
            "step": self.step,
            "days": list(self.days),
        } | self.diagnosis.model_dump(mode="json")

    def render(self) -> str:
        """Tables of the numbers, then every finding with what to try."""
        heading = (
            f"{self.run}, step {self.step:,}, checkpoint {self.checkpoint}\n"
            f"{self.diagnosis.rows:,} rows of {', '.join(self.days)}"
        )
        return f"{heading}\n\n{render_diagnosis(self.diagnosis)}"


def examine(
    run: Path, *, days: str | Sequence[str] | None = None, checkpoint: str = BEST
) -> Examination:
    """The diagnosis of a run's checkpoint on days; without names the experiment's test days, else its validation days.

    Looks at up to about 131,000 rows, in row groups spread evenly over the days. Raises ArtifactError for a run or day
    that is missing, damaged, or of another schema.
    """
    experiment = open_run(run).experiment
    torch.set_num_threads(choose_threads(experiment.train.threads))
    trained = load_run(run, checkpoint=checkpoint, device=choose_device(experiment.train.device))
    names = day_names(days) if days is not None else experiment.data.test
    opened = open_days(
        experiment.data.directory,
        experiment.data.validation if names is None else names,
        encoder=trained.encoder,
        labels_digest=trained.labels_digest,
    ).with_id_maps(trained.id_maps)
    return Examination(
        run,
        trained.checkpoint.version,
        trained.step,
        tuple(build.day for build in opened.builds),
        diagnose(trained, _window(opened)),
    )


def diagnose(trained: TrainedRun, days: Days) -> Diagnosis:
    """The diagnosis of a trained model on all of these days, removals included."""
    batch_size = trained.experiment.evaluation.batch_size
    checkup = Checkup(trained, days, batch_size=batch_size)
    removals = Removals(trained.model, trained.schema)
    share = min(1.0, _REMOVAL_ROWS / days.rows)
    samples = []
    with checkup.attached():
        for scored in score_days(trained.model, days, batch_size=batch_size):
            checkup.see(scored.rows)
            samples.append(
                scored.rows.encoded.slice(0, max(1, int(scored.logits_BT.shape[0] * share)))
            )
    device = device_of(trained.model)
    for encoded in samples:
        removals.add(from_encoded(encoded, trained.schema).to(device))
    return checkup.diagnosis(removals.result())


def _window(days: Days) -> Days:
    """The same days with every n-th row group, so that about `_MOST_ROWS` rows are left."""
    every = max(1, round(days.rows / _MOST_ROWS))
    return days.only(days.groups[:: min(every, len(days.groups))])
