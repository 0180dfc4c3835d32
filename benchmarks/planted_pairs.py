"""Whether a model trained on planted behaviours found which behaviour informs which task, by what it does and is.

Four rankings of all (task, behaviour) pairs, each a matrix [T, S], and the AUC of each as a ranker of the planted
pairs: 1 where every planted pair stands before any other, .5 for chance.

- `auc_lost`: what the task's AUC loses on test rows where that behaviour's sequence is emptied. The only one that says
  what a pair is worth, and the only one that every bottom has.
- `modulation`: how far DTRN's scales and shifts of the pair lie from their mean over the behaviour's tasks (TIM). What
  tasks have in common belongs to the behaviour and says nothing of the pair. A task may also depart from the others in
  order to silence a behaviour, so that a pair may be unlike the rest for either reason.
- `passed`: the root mean square of the scale of the pair's last norm, less its mean over the behaviour's tasks. What
  the task's interest says of the events goes through this scale; only its constant, the shift, does not.
- `weight`: the task's mean weight of the behaviour's interest (TRM), from 0 to 2.

    python benchmarks/planted_pairs.py RUN [--rows 20000]

Axes: **B** rows, **T** tasks, **S** behaviours, **J** LayerNorms, **K** width of an event, **I** input width.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from planted_behaviours import BEHAVIOURS, INFORMATIVE, TASKS
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.days import open_days
from recsys.feed import in_order
from recsys.measures import auc, scored_rows
from recsys.models import RankingModel
from recsys.models.bottoms.dtrn import DTRN
from recsys.models.inputs import Blocks
from recsys.run import TrainedRun, load_run

Matrix = NDArray[np.float64]


def found_pairs(run: Path, *, rows: int = 20_000) -> dict[str, Any]:
    """The rankings of a run's best checkpoint on its first test rows, as JSON: `by_pair` [T][S] and `auc` of each."""
    trained = load_run(run)
    assert trained.schema.task_names == TASKS
    assert tuple(trained.schema.sequences) == BEHAVIOURS
    batches = list(_test_batches(trained, rows))
    whole_T, lost_TS = auc_lost(trained.model, batches)
    matrices = {"auc_lost": lost_TS}
    bottom = trained.model.program.bottom
    if isinstance(bottom, DTRN):
        matrices |= conditioning(bottom)
        if bottom.refinement is not None:
            matrices["weight"] = interest_weights(trained.model, bottom.refinement, batches)
    return {
        "rows": sum(batch.rows for batch in batches),
        "tasks": list(TASKS),
        "behaviours": list(BEHAVIOURS),
        "auc": dict(zip(TASKS, whole_T.round(6).tolist(), strict=True)),
        "rankings": {
            name: {"by_pair": matrix_TS.round(6).tolist(), "auc": round(ranked(matrix_TS), 6)}
            for name, matrix_TS in matrices.items()
        },
    }


def ranked(matrix_TS: Matrix) -> float:
    """AUC of the pairs' values as scores of whether a pair is planted."""
    found = auc(scored_rows(matrix_TS.ravel(), np.array(INFORMATIVE).ravel()))
    assert found is not None
    return found


def auc_lost(model: RankingModel, batches: list[Batch]) -> tuple[Matrix, Matrix]:
    """Each task's AUC [T], and what it loses when a behaviour's sequence is emptied, [T, S]."""
    labels_BT = torch.cat([batch.labels_BT for batch in batches]).numpy()
    states = (None, *BEHAVIOURS)
    logits: list[list[Tensor]] = [[] for _ in states]
    with torch.no_grad():
        for batch in batches:
            blocks = model.embeddings(batch)
            for state, found in zip(states, logits, strict=True):
                found.append(model.program(_without(blocks, state)).float())
    whole_T, *emptied = (_aucs(torch.cat(found).numpy(), labels_BT) for found in logits)
    return whole_T, whole_T[:, None] - np.stack(emptied, axis=1)


def conditioning(bottom: DTRN) -> dict[str, Matrix]:
    """`modulation` and `passed` [T, S]. All 0 where tasks share their norms."""
    with torch.no_grad():
        norms_TSJ2K = bottom.interests.norms()
    norms_TSJ2K = norms_TSJ2K.expand(len(TASKS), *norms_TSJ2K.shape[1:])
    apart_TSJ2K = norms_TSJ2K - norms_TSJ2K.mean(dim=0)
    scale_TS = norms_TSJ2K[:, :, -1, 0].square().mean(dim=-1).sqrt()
    return {
        "modulation": apart_TSJ2K.square().sum(dim=(2, 3, 4)).sqrt().double().numpy(),
        "passed": (scale_TS - scale_TS.mean(dim=0)).double().numpy(),
    }


def interest_weights(model: RankingModel, refinement: nn.Module, batches: list[Batch]) -> Matrix:
    """`weight` [T, S]: the refinement's mean weight over rows of each interest."""
    total_TI = torch.zeros(())

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], weights_NTI: Tensor) -> None:
        nonlocal total_TI
        total_TI = total_TI + weights_NTI.sum(dim=0)

    handle = refinement.register_forward_hook(keep)
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        handle.remove()
    mean_TI = total_TI / sum(batch.rows for batch in batches)
    # Interests are the last columns, one behind the other, and all columns of one weigh alike.
    bottom = model.program.bottom
    assert isinstance(bottom, DTRN)
    width = bottom.interests.position_embedding.shape[1]
    return mean_TI[:, -width * len(BEHAVIOURS) :: width].double().numpy()


def _without(blocks: Blocks, behaviour: str | None) -> Blocks:
    """The blocks as of users that never did this; None leaves all."""
    if behaviour is None:
        return blocks
    tokens, valid = blocks.tokens[behaviour], blocks.valid[behaviour]
    return replace(
        blocks,
        tokens=blocks.tokens | {behaviour: torch.zeros_like(tokens)},
        valid=blocks.valid | {behaviour: torch.zeros_like(valid)},
    )


def _aucs(logits_BT: NDArray[np.float32], labels_BT: NDArray[np.float32]) -> Matrix:
    found = [auc(scored_rows(logits_BT[:, t], labels_BT[:, t])) for t in range(len(TASKS))]
    return np.array(found, dtype=np.float64)


def _test_batches(trained: TrainedRun, rows: int) -> Iterator[Batch]:
    """The first test rows, at least `rows` of them where there are as many."""
    data = trained.experiment.data
    assert data.test is not None
    days = open_days(
        data.directory, data.test, encoder=trained.encoder, labels_digest=trained.labels_digest
    )
    taken = 0
    batch_size = min(rows, trained.experiment.evaluation.batch_size)
    with closing(in_order(days, batch_size=batch_size)) as batches:
        for item in batches:
            yield item.batch
            taken += item.batch.rows
            if taken >= rows:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(found_pairs(options.run, rows=options.rows), indent=1))


if __name__ == "__main__":
    main()
