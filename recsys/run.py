"""A run directory: what training writes into it, and the trained model as evaluation and export read it.

```
run/
  experiment.json   the resolved experiment, paths relative to this directory
  schema.json       the schema it was trained for
  encoder/          a copy of the encoder, so that a run outlives the encoder's next fit
  parent.json       the checkpoint that a warm start began from, and warm_start.json, what it kept of it
  metrics.jsonl     one JSON object a line: training and validation records
  skipped_steps.jsonl  steps whose loss or gradient was not finite, if there are any, with their rows' keys
  checkpoints/      publications of kind "checkpoint", with pointers CURRENT (newest) and BEST
  tensorboard/
  training.lock     held by the process that trains it (`recsys.hold`)
```

A checkpoint holds the model in `program.safetensors`, `tables.safetensors` and `id_maps/`; what else it holds is for
training alone (`recsys.training.checkpoint`). No file of a run is a pickle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from recsys.cores import available_cores
from recsys.encode import Encoder, load_encoder, read_encoder
from recsys.errors import ArtifactError, ConfigError
from recsys.experiment import Experiment, load_experiment
from recsys.idmap import ID_MAPS, IdMap, read_id_maps, write_id_maps
from recsys.models import RankingModel, build_model
from recsys.models.embeddings.stored import read_tables, write_tables
from recsys.models.embeddings.tables import EmbeddingsConfig
from recsys.models.embeddings.updates import TableOptimizer
from recsys.parent import Parent, read_parent
from recsys.publish import CURRENT, Published, resolve, versions
from recsys.ranks import is_first, ranks_here
from recsys.schema import Schema, parse_schema
from recsys.tensor_files import read_tensors, stored_tensors, write_tensors

BEST = "BEST"
CHECKPOINT_KIND = "checkpoint"
EXPERIMENT = "experiment.json"
SCHEMA = "schema.json"
ENCODER = "encoder"
METRICS = "metrics.jsonl"
_SKIPPED = "skipped_steps.jsonl"
PROGRAM = "program.safetensors"
TABLES = "tables.safetensors"


@dataclass(frozen=True)
class RunDirectory:
    """An opened run directory: what was asked for. The encoder carries the run's schema."""

    path: Path
    experiment: Experiment
    schema: Schema
    encoder: Encoder

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def parent(self) -> Parent | None:
        """The checkpoint of another run that this one began from."""
        return read_parent(self.path)

    @property
    def skipped_steps(self) -> Path:
        return self.path / _SKIPPED

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def digests(self) -> dict[str, str]:
        """What a checkpoint is stamped with, and what a reader compares."""
        return {
            "data_digest": self.schema.data_digest,
            "model_digest": self.schema.model_digest,
            "encoder_digest": self.encoder.digest,
        }


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run's model at one checkpoint, in evaluation mode."""

    directory: RunDirectory
    checkpoint: Published
    step: int
    model: RankingModel

    @property
    def labels_digest(self) -> str:
        """Digest of the label rules of the days trained on."""
        return str(self.checkpoint.metadata["labels_digest"])

    @property
    def id_maps(self) -> Mapping[str, IdMap]:
        """The id maps of unbounded tables, as they were when the checkpoint was written."""
        return self.model.embeddings.id_maps

    @property
    def experiment(self) -> Experiment:
        return self.directory.experiment

    @property
    def schema(self) -> Schema:
        return self.directory.schema

    @property
    def encoder(self) -> Encoder:
        return self.directory.encoder


def fitted_encoder(experiment: Experiment) -> Encoder:
    """The encoder that an experiment names, with the experiment's schema.

    Raises ConfigError for a wrong schema, ArtifactError for an encoder that is missing or fitted for another schema.
    """
    return _encoder_for(load_encoder(experiment.data.encoder), experiment.load_schema(), experiment)


def holds_run(path: Path) -> bool:
    """Whether a run lies in a directory."""
    return (path / EXPERIMENT).is_file()


def open_run(path: Path) -> RunDirectory:
    """The run directory at a path. Raises ArtifactError when there is none or its files do not fit each other."""
    if not holds_run(path):
        raise ArtifactError(
            f"{path}: holds no run (no {EXPERIMENT}); check the path, or train first"
        )
    experiment = load_experiment(path / EXPERIMENT)
    try:
        schema = parse_schema((path / SCHEMA).read_text(encoding="utf-8"), where=str(path / SCHEMA))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path / SCHEMA}: cannot be read ({error}); train again") from error
    return RunDirectory(
        path, experiment, schema, _encoder_for(read_encoder(path / ENCODER), schema, experiment)
    )


def load_run(
    path: Path, *, checkpoint: str = BEST, device: torch.device | str = "cpu"
) -> TrainedRun:
    """The trained model of a run at BEST, at CURRENT, or at a checkpoint's version name, on a device.

    Raises ArtifactError when the run or checkpoint is missing, damaged or of another schema or encoder.
    """
    directory = open_run(path)
    model = new_model(directory, device)
    published = resolve_checkpoint(directory, checkpoint)
    read_weights(published.path, model)
    model.eval()
    return TrainedRun(directory, published, int(published.metadata["step"]), model)


def map_run(path: Path, *, checkpoint: str = BEST) -> TrainedRun:
    """As `load_run`, on the CPU, but tables stay in the checkpoint's file: rows are read as they are looked up."""
    directory = open_run(path)
    config = directory.experiment.model.model_copy(
        update={"embeddings": EmbeddingsConfig(backend="plain")}
    )
    model = build_model(directory.schema, config, seed=0, tables_device="meta")
    published = resolve_checkpoint(directory, checkpoint)
    _read_program(published.path, model)
    model.embeddings.read_from(stored_tensors(published.path / TABLES))
    model.embeddings.id_maps = read_id_maps(published.path / ID_MAPS, directory.schema)
    model.eval()
    return TrainedRun(directory, published, int(published.metadata["step"]), model)


def new_model(
    directory: RunDirectory,
    device: torch.device | str,
    *,
    optimizer: TableOptimizer = "rowwise_adagrad",
) -> RankingModel:
    """The run's model as it is before the first step, and what is to train its tables; who but reads needs none."""
    experiment = directory.experiment
    return build_model(
        directory.schema,
        experiment.model,
        seed=experiment.train.seed,
        device=device,
        optimizer=optimizer,
    )


def resolve_checkpoint(directory: RunDirectory, checkpoint: str) -> Published:
    """A checkpoint by pointer (BEST, CURRENT) or version, its digests verified against its files and the run."""
    root = directory.checkpoints
    if checkpoint in (BEST, CURRENT):
        published = resolve(root, kind=CHECKPOINT_KIND, pointer=checkpoint, verify="digests")
    else:
        if not (root / checkpoint).is_dir():
            raise ArtifactError(
                f"{root}: no checkpoint {checkpoint!r}; name BEST, CURRENT or one of {', '.join(versions(root))}"
            )
        published = resolve(root / checkpoint, kind=CHECKPOINT_KIND, verify="digests")
    for name, expected in directory.digests.items():
        found = published.metadata[name]
        if found != expected:
            raise ArtifactError(
                f"{published.path}: stamped with {name.replace('_', ' ')} {found[:12]}, the run has {expected[:12]}; "
                "it belongs to another run"
            )
    return published


def write_weights(directory: Path, model: RankingModel) -> None:
    """Write a model's parameters, buffers, tables and id maps into a directory; of several ranks each its part."""
    if is_first():
        write_tensors(directory / PROGRAM, model.program.state_dict())
        write_id_maps(directory / ID_MAPS, model.embeddings.id_maps)
    write_tables(directory / TABLES, model.embeddings)


def read_weights(directory: Path, model: RankingModel) -> None:
    """Fill a model from what `write_weights` wrote. Raises ArtifactError when names or shapes differ."""
    _read_program(directory, model)
    read_tables(directory / TABLES, model.embeddings)
    model.embeddings.id_maps = read_id_maps(directory / ID_MAPS, model.embeddings.schema)


def _read_program(directory: Path, model: RankingModel) -> None:
    program = read_tensors(directory / PROGRAM)
    try:
        model.program.load_state_dict(program)
    except RuntimeError as error:
        raise ArtifactError(
            f"{directory / PROGRAM}: does not fit this run's model ({str(error).splitlines()[0]}); "
            "it was made by another release or another experiment"
        ) from error


def choose_device(name: str) -> torch.device:
    """The device that `train.device` names; `auto` is the GPU where torch can use one. Raises ConfigError."""
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise ConfigError(
            'train.device is "cuda", but torch can use no GPU here; say "auto" or "cpu"'
        )
    return torch.device("cuda" if usable and name != "cpu" else "cpu")


def choose_threads(asked: int | None) -> int:
    """Threads of one operator: as asked, else half of the cores that this process may use, shared with other ranks.

    The feed and the system get the rest: operators wait for their slowest thread, so one core that is busy elsewhere
    costs more than a second thread gains. Torch's own choice, which heeds OMP_NUM_THREADS, is the limit.
    """
    return asked or max(1, min(torch.get_num_threads(), available_cores() // 2 // ranks_here()))


def _encoder_for(encoder: Encoder, schema: Schema, experiment: Experiment) -> Encoder:
    """The encoder with the run's schema: both must mean the same data; widths and sides are the schema's to say."""
    if encoder.schema.data_digest != schema.data_digest:
        raise ArtifactError(
            f"{experiment.data.encoder}: fitted for another schema (data digest {encoder.schema.data_digest[:12]}, "
            f"{experiment.schema_file} has {schema.data_digest[:12]}); fit it again and build the days again"
        )
    return replace(encoder, schema=schema)
