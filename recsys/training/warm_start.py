"""A new run that begins with what another one has learned.

Kept are rows of tables by id and dense parameters by name, a task's parts of these by the task's name, all with their
optimizer's state, where they mean the same in both runs. Everything else begins anew: steps, learning rates' schedule,
records, best score and patience, what a balancing method has learned, the order of rows and the random numbers.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from recsys.errors import ArtifactError, ConfigError
from recsys.experiment import Experiment
from recsys.idmap import ID_MAPS, IdMap, read_id_maps
from recsys.models import RankingModel
from recsys.models.embeddings.lookup import table_specs
from recsys.models.embeddings.tables import Part
from recsys.models.embeddings.updates import Quantity
from recsys.parent import Parent
from recsys.publish import fsync
from recsys.ranks import is_first, on_first
from recsys.run import BEST, RunDirectory, holds_run, open_run, resolve_checkpoint
from recsys.tensor_files import StoredTensor, row_blocks
from recsys.training.checkpoint import StoredTraining, stored_training
from recsys.training.kept_parameters import Asked, kept_parameters
from recsys.training.moved_parts import move_moments, move_parameters
from recsys.training.optim import DenseOptimizer
from recsys.training.row_origins import NONE, Fresh, Origin, hash_alike, row_origins
from recsys.training.warm_start_report import WarmStart

logger = logging.getLogger(__name__)

REPORT = "warm_start.json"
_CHECKPOINTS = "checkpoints"


def choose_parent(path: Path) -> Parent:
    """The checkpoint that a path stands for: the best of a run, or `RUN/checkpoints/CURRENT` or another name there.

    Raises ArtifactError when there is none or it is damaged.
    """
    run, checkpoint = path, BEST
    if path.parent.name == _CHECKPOINTS and holds_run(path.parent.parent):
        run, checkpoint = path.parent.parent, path.name
    elif not holds_run(path):
        raise ArtifactError(
            f"{path}: is neither a run nor a checkpoint of one; name a run, or RUN/{_CHECKPOINTS}/CURRENT"
        )
    published = resolve_checkpoint(open_run(run), checkpoint)
    return Parent(run, published.version, published.digest, int(published.metadata["step"]))


def parent_id_maps(run: RunDirectory) -> dict[str, IdMap]:
    """The id maps of the run's parent, if it has one, that it can go on with: same hashes, and no fewer rows.

    Raises ArtifactError when the parent is gone or damaged.
    """
    if run.parent is None or not run.schema.unbounded:
        return {}
    old = open_run(run.parent.run)
    found = read_id_maps(resolve_checkpoint(old, run.parent.checkpoint).path / ID_MAPS, old.schema)
    return {
        name: item
        for name, item in found.items()
        if hash_alike(name, old.encoder, run.encoder)
        and old.schema.tables[name].rows <= run.schema.tables[name].rows
    }


def warm_start(run: RunDirectory, model: RankingModel, optimizer: DenseOptimizer) -> None:
    """Fill a fresh model and optimizer with what they keep of the run's parent, if it has one; write what that was.

    Ranks do it together, each for its parts of tables. Raises ConfigError when nothing can be kept, ArtifactError when
    the parent is gone or damaged.
    """
    parent = run.parent
    if parent is None:
        return
    old = open_run(parent.run)
    published = on_first(lambda: resolve_checkpoint(old, parent.checkpoint))
    stored = stored_training(published)
    asked = [Asked(item.experiment.model, item.schema) for item in (old, run)]
    report = WarmStart(
        parent,
        row_origins(
            old.encoder,
            run.encoder,
            old_maps=read_id_maps(published.path / ID_MAPS, old.schema),
            new_maps=model.embeddings.id_maps,
        ),
        state_anew=_state_anew(old.experiment, run.experiment),
        dense=kept_parameters(model.program, stored.program, old=asked[0], new=asked[1]),
        old_tables=tuple(spec.name for spec in table_specs(old.schema)),
    )
    if report.keeps_nothing:
        raise ConfigError(
            f"{parent.run}: no table and no parameter of it fits this run; train without --warm-start"
        )
    moved = report.dense.moved
    move_parameters(moved, stored.program, model.program)
    move_moments(moved, stored.dense_optimizer, model.program, optimizer)
    quantities = () if report.state_anew else model.embeddings.quantities
    for part in model.embeddings.tables.parts():
        take_rows(part, stored, report.origins, quantities=quantities)
    if is_first():
        _write(run.path / REPORT, report)
        logger.info("%s", report.render())


def _state_anew(old: Experiment, new: Experiment) -> str | None:
    """Why the state of the tables' optimizer begins anew, if it does."""
    was, now = old.optimizer.embeddings, new.optimizer.embeddings
    return None if was == now else f"{now}, was {was}"


@torch.no_grad()
def take_rows(
    part: Part,
    stored: StoredTraining,
    origins: Mapping[str, Origin | Fresh],
    *,
    quantities: Sequence[Quantity],
) -> None:
    """Fill those rows of a part that have an origin, and these quantities of the optimizer's state of them."""
    origin = origins.get(part.table, Fresh(""))
    if isinstance(origin, Fresh):
        return
    device = part.weight_RK.device
    state = {item: stored.table_optimizer[item.key(part.table)] for item in quantities}
    for rows in row_blocks(part.rows, part.weight_RK.shape[1]):
        old_R = torch.from_numpy(origin.of(rows))
        own_R = (old_R != NONE).nonzero().flatten()
        old_R, here_R = old_R[own_R], (own_R + (rows.start - part.first_row)).to(device)
        weights_RK = _rows(stored.tables[part.table], old_R)
        part.weight_RK[here_R] = weights_RK[:, part.columns].to(device)
        for item, found in state.items():
            if item.of != "table":
                own = (slice(None), *part.place(item)[1:])
                part.state[item.name][here_R] = _rows(found, old_R)[own].to(device)
    for item, found in state.items():
        if item.of == "table":
            part.state[item.name].copy_(found[:])


def _rows(stored: StoredTensor, rows_R: torch.Tensor) -> torch.Tensor:
    """Rows of a stored tensor; those that lie side by side are read at once."""
    if not len(rows_R):
        return stored[0:0]
    first, last = int(rows_R[0]), int(rows_R[-1])
    if np.array_equal(rows_R.numpy(), np.arange(first, last + 1)):
        return stored[first : last + 1]
    return stored.take(rows_R)


def _write(file: Path, report: WarmStart) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    fsync(temporary)
    os.replace(temporary, file)
