"""What a worker does for tests: trains one case after the other, and notes what it saw, one file a case and rank.

    torchrun --nproc-per-node 2 -m tests.recsys.two_workers FOLDER

FOLDER holds `experiment.toml` and `cases.json`: overrides by case, and the `form` of ragged tables if it is not that of
CPUs. A case `name` becomes the run `FOLDER/name`, but `tables` the steps of `tests.recsys.replicated_tables`.
"""

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from recsys.batch import Batch
from recsys.experiment import load_experiment
from recsys.models.embeddings.fused import RAGGED
from recsys.models.embeddings.tables import Tables
from recsys.ranks import rank
from recsys.training.distributed.pipeline import spread_tables
from recsys.training.distributed.workers import joined
from recsys.training.trainer import train
from recsys.training.training import Training
from tests.recsys.replicated_tables import train_share

_advance = Training.advance


class Notes:
    """The rows of each step and whether the next one's ids were sent meanwhile; collections, parts, dense digests."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.sent: list[bool] = []
        self.training: Training | None = None

    def watch(self) -> None:
        def advance(training: Training, batch: Batch) -> Any:
            self.training = training
            self.rows.append(batch.row_key_B.tolist())
            loss = _advance(training, batch)
            self.sent.append(_next_is_sent(training))
            return loss

        Training.advance = advance  # type: ignore[method-assign]

    def to_json(self) -> dict[str, Any]:
        assert self.training is not None
        model = self.training.model
        tables = model.embeddings.tables
        dense = _digest(model.program.state_dict())
        with self.training.averages.in_place():
            averages = _digest(model.program.state_dict())
        parts = [
            (part.table, part.rows.start, part.rows.stop, part.columns.start, part.columns.stop)
            for part in tables.parts()
        ]
        copies = {
            f"{part.table}/{name}": tensor
            for part in tables.parts()
            for name, tensor in [("weight", part.weight_RK), *part.state.items()]
            if part.on_every_rank
        }
        return {
            "rows": self.rows,
            "sent": self.sent,
            "collections": [type(item).__name__ for item in _collections(tables)],
            "parts": parts,
            "dense": dense,
            "averages": averages,
            "copied": sorted({name.partition("/")[0] for name in copies}),
            "copies": _digest(copies),
        }


def _collections(tables: Tables) -> list[Any]:
    spread = spread_tables(tables)
    return [] if spread is None else list(spread.collections)


def _next_is_sent(training: Training) -> bool:
    """Whether all collections have sent what the next batch asks of them."""
    tables: Any = spread_tables(training.model.embeddings.tables)
    if tables is None or tables.ahead is None:
        return False
    on_their_way = list(tables.ahead.contexts)[1:2]
    return any(
        len(context.input_dist_tensors_requests) == len(tables.collections)
        for context in on_their_way
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        if name == "tables":
            train_share(folder)
            continue
        notes = Notes()
        notes.watch()
        experiment = load_experiment(folder / "experiment.toml", overrides=case["overrides"])
        parent = folder / case["warm_start"] if "warm_start" in case else None
        with patch.dict(RAGGED, {"cpu": case["form"]} if "form" in case else {}):
            train(experiment, folder / name, resume=case.get("resume", False), warm_start=parent)
        (folder / f"{name}-{rank()}.json").write_text(json.dumps(notes.to_json()))


if __name__ == "__main__":
    with joined():
        main(Path(sys.argv[1]))
    os._exit(0)
