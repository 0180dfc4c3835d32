"""What a training needs to go on as if it had never stopped, in one publication.

```
checkpoints/<version>/
  program.safetensors tables.safetensors id_maps/              the model (recsys.run)
  table_optimizer.safetensors dense_optimizer.safetensors      such as Adagrad's sums; AdamW's moments and counts
  random.safetensors                                           torch's generators, of every rank
  balance.safetensors                                          what the balancing method learned, if it learns
  trained_program.safetensors                                  with train.ema: the weights that training goes on with
  state.json                                                   step, position in the feed, builds of the days
```

With `train.ema` the program's own file holds the averages (`recsys.training.averages`), so that whoever reads a model
reads these. The learning rates need no state: the schedule is a function of the step. Which checkpoint is best is not
in here either: it is read from the recorded metrics.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.days import Build
from recsys.errors import ArtifactError
from recsys.feed import Position
from recsys.models import RankingModel
from recsys.models.embeddings.stored import read_table_optimizer, write_table_optimizer
from recsys.publish import CURRENT, Published, point, prune, publication, read_version, versions
from recsys.ranks import is_first, on_first, rank, to_first, wait_for_all
from recsys.run import (
    BEST,
    CHECKPOINT_KIND,
    PROGRAM,
    TABLES,
    RunDirectory,
    read_weights,
    resolve_checkpoint,
    write_weights,
)
from recsys.tensor_files import StoredTensor, read_tensors, stored_tensors, write_tensors
from recsys.training.averages import Averages
from recsys.training.balancing.method import Balance
from recsys.training.optim import DenseOptimizer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_TABLE_OPTIMIZER = "table_optimizer.safetensors"
_DENSE_OPTIMIZER = "dense_optimizer.safetensors"
_RANDOM = "random.safetensors"
_BALANCE = "balance.safetensors"
_TRAINED = "trained_program.safetensors"
_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """How far a training is: steps done, the feed's next batch, and which builds of the days it reads."""

    step: int
    position: Position
    train: tuple[Build, ...]
    validation: tuple[Build, ...]


def save_checkpoint(
    run: RunDirectory,
    model: RankingModel,
    optimizer: DenseOptimizer,
    balance: Balance,
    averages: Averages,
    progress: Progress,
) -> None:
    """Publish a checkpoint and move CURRENT to it. Ranks write it together: its format knows nothing of them."""
    metadata = run.digests | {
        "step": progress.step,
        "labels_digest": progress.train[0].labels_digest,
    }
    with _publication(run.checkpoints, metadata) as path:
        with averages.in_place():
            write_weights(path, model)
        write_table_optimizer(path / _TABLE_OPTIMIZER, model.embeddings)
        random = to_first(random_state())
        if is_first():
            write_tensors(path / _DENSE_OPTIMIZER, optimizer.state())
            write_tensors(path / _RANDOM, _by_rank(random))
            if balance_state := balance.state():
                write_tensors(path / _BALANCE, balance_state)
            if averages.present:
                write_tensors(path / _TRAINED, averages.present)
            state = {"format_version": FORMAT_VERSION} | asdict(progress)
            (path / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_progress(run: RunDirectory) -> tuple[Published, Progress] | None:
    """The newest checkpoint and its progress; None when the run was stopped before its first."""
    if not (run.checkpoints / CURRENT).is_file():
        return None
    published = resolve_checkpoint(run, CURRENT)
    return published, _read_state(published.path / _STATE)


@dataclass(frozen=True, eq=False)
class StoredTraining:
    """A checkpoint's tensors by name: what another run may take of it."""

    program: Mapping[str, Tensor]
    tables: Mapping[str, StoredTensor]
    dense_optimizer: Mapping[str, Tensor]
    table_optimizer: Mapping[str, StoredTensor]


def stored_training(published: Published) -> StoredTraining:
    """What a checkpoint holds of a training. Raises ArtifactError when a file cannot be read."""
    return StoredTraining(
        read_tensors(published.path / PROGRAM),
        stored_tensors(published.path / TABLES),
        read_tensors(published.path / _DENSE_OPTIMIZER),
        stored_tensors(published.path / _TABLE_OPTIMIZER),
    )


def restore(
    published: Published,
    model: RankingModel,
    optimizer: DenseOptimizer,
    balance: Balance,
    averages: Averages,
) -> None:
    """Fill model, optimizers, balancing method, averages and torch's generators from a checkpoint."""
    read_weights(published.path, model)
    if averages.present:
        averages.take(read_tensors(published.path / _TRAINED))
    read_table_optimizer(published.path / _TABLE_OPTIMIZER, model.embeddings)
    optimizer.load_state(read_tensors(published.path / _DENSE_OPTIMIZER))
    if balance.state():
        balance.load_state(read_tensors(published.path / _BALANCE))
    random = _of_rank(read_tensors(published.path / _RANDOM))
    # A rank that the checkpoint does not know of, for fewer wrote it, keeps what its seed gave it.
    if random:
        set_random_state(random)


def mark_best(run: RunDirectory, step: int, *, keep: int) -> str | None:
    """Point BEST to the newest checkpoint of a step and remove all but `keep` checkpoints; returns its version.

    None, and BEST stays, when no checkpoint of that step is left.
    """
    found: str | None = None
    for version in versions(run.checkpoints):
        try:
            published = read_version(run.checkpoints / version, kind=CHECKPOINT_KIND)
        except ArtifactError as error:
            logger.warning("checkpoint.damaged version=%s because=%s", version, error)
            continue
        if published.metadata["step"] == step:
            found = version
    if found is not None:
        point(run.checkpoints, found, pointer=BEST)
    prune(run.checkpoints, keep=keep, pointers=(CURRENT, BEST))
    return found


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators, by device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def _publication(root: Path, metadata: Mapping[str, Any]) -> Iterator[Path]:
    """Where all ranks write a checkpoint, which the first one publishes when the block ends well."""
    with ExitStack() as stack:
        draft = on_first(
            lambda: stack.enter_context(publication(root, kind=CHECKPOINT_KIND, metadata=metadata))
        )
        yield draft.path
        wait_for_all()
    if is_first():
        logger.info("checkpoint step=%d version=%s", metadata["step"], draft.path.name)


def _by_rank(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The generators' states of all ranks: those of the first one under their names alone, as one process has them."""
    return {
        name if number == 0 else f"{name}/{number}": state
        for number, states_of_rank in enumerate(states)
        for name, state in states_of_rank.items()
    }


def _of_rank(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = "" if is_first() else f"/{rank()}"
    return {name: states[name + own] for name in ("cpu", "cuda") if name + own in states}


def _read_state(file: Path) -> Progress:
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if state["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{file}: checkpoint format {state['format_version']}, this release reads {FORMAT_VERSION}; train again"
            )
        return Progress(
            int(state["step"]),
            Position(**state["position"]),
            tuple(Build(**item) for item in state["train"]),
            tuple(Build(**item) for item in state["validation"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: damaged ({error}); use another checkpoint") from error
