"""The frozen tree behind `experiment.toml`: which data, which model, how it is trained and how it is judged.

Paths in the file are relative to the file, and absolute once loaded. `Experiment.to_json(directory)` writes the
resolved tree with paths relative to a directory; `load_experiment` reads that JSON back to an equal experiment, so a
run directory that moves together with its data stays readable.
"""

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recsys.balancing import BalanceConfig, NoBalance
from recsys.config import Config, read_toml
from recsys.day_names import DayNames, names_in
from recsys.errors import ConfigError, nearest
from recsys.models import ModelConfig, heads
from recsys.models.embeddings.updates import TableOptimizer
from recsys.schema import BagFeature, Schema, load_schema, parse_schema
from recsys.sharding import ShardingConfig


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


FilePath = Annotated[Path, BeforeValidator(_path)]


class DataConfig(Config):
    """Published days under `directory`, encoded by the encoder under `encoder`.

    Days are `{ from = "2026-10-01", to = "2026-10-31" }`, both included, which means the published ones, or names of
    days or splits. `batch_size` and `window_rows` count rows; a window is what is shuffled at once and bounds the
    memory of the feed. With `stream` the days to train on are raw ones under that directory, encoded meanwhile.
    """

    directory: FilePath = Path("data")
    encoder: FilePath = Path("encoder")
    train: DayNames
    validation: DayNames
    test: DayNames | None = None
    batch_size: int = Field(default=4096, ge=1)
    window_rows: int = Field(default=1_000_000, ge=1)
    stream: FilePath | None = None

    @model_validator(mode="after")
    def _held_out(self) -> "DataConfig":
        for section, days in (("validation", self.validation), ("test", self.test or ())):
            shared = sorted(set(names_in(self.train)) & set(names_in(days)))
            if shared:
                raise ValueError(
                    f"{section} and train both name {shared[0]!r}, so the metric would be of rows trained on; "
                    "take it out of one"
                )
        return self


class ObjectiveConfig(Config):
    """Weight of each task's loss in the sum, 1 for a task that is not named, and what balances tasks beyond that.

    `order_penalty` is the factor on how far a task with `given` is likelier than its parent.
    """

    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    balance: BalanceConfig = NoBalance()
    order_penalty: float = Field(default=0.0, ge=0)


class OptimizerConfig(Config):
    """`embeddings` for the tables, AdamW for everything else, one schedule for both.

    The rates rise linearly over `warmup_steps`, then fall by `decay` to `final_fraction` of themselves at the last
    step. `clip_norm` bounds the global norm of the dense gradients; without it they are not clipped.
    """

    embeddings: TableOptimizer = "rowwise_adagrad"
    embedding_lr: float = Field(default=0.02, gt=0)
    dense_lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float | None = Field(default=1.0, gt=0)


class TrainConfig(Config):
    """How long and how.

    Training ends after `epochs`, or after `steps` if that comes first, or when `metric` has not improved for
    `patience` evaluations. It is evaluated and checkpointed every `evaluate_every` steps (without it, at the end of
    each epoch), and checkpointed every `checkpoint_every` steps in between. What lies behind the tables sees a step's
    rows in `accumulate` parts, one after the other. With `ema`, what is validated and kept is an average of the dense
    weights over steps, whose decay it is. A step whose loss or gradient is not finite is skipped; more than
    `max_skipped_steps` of them end the training.
    """

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    accumulate: int = Field(default=1, ge=1)
    ema: float | None = Field(default=None, gt=0, lt=1)
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1)
    log_every: int = Field(default=50, ge=1)
    metric: str | None = None
    patience: int | None = Field(default=3, ge=1)
    max_skipped_steps: int = Field(default=3, ge=0)


class EvaluationConfig(Config):
    """`reference` names, for a task, a kept column that holds another model's or the oracle's probability."""

    reference: dict[str, str] = {}
    batch_size: int = Field(default=16_384, ge=1)


class Experiment(Config):
    """The whole of `experiment.toml`."""

    schema_file: FilePath = Path("schema.toml")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def load_schema(self) -> Schema:
        """The schema of `schema_file`, after a check that what this experiment names is in it. Raises ConfigError."""
        if not self.schema_file.exists():
            raise ConfigError(
                f"{self.schema_file}: no such file; the experiment names it as schema_file"
            )
        if self.schema_file.suffix == ".json":
            schema = parse_schema(_read_text(self.schema_file), where=str(self.schema_file))
        else:
            schema = load_schema(self.schema_file)
        self.check_against(schema)
        return schema

    def check_against(self, schema: Schema) -> None:
        """Raise ConfigError when a task, column, table or metric named here does not fit the schema."""
        named: dict[str, Iterable[str]] = {
            "objective.weights": self.objective.weights,
            "evaluation.reference": self.evaluation.reference,
        }
        for section, tasks in named.items():
            for task in tasks:
                if task not in schema.tasks:
                    raise ConfigError(
                        f"{section}: no task {task!r} in {self.schema_file}{nearest(task, schema.tasks)}; "
                        f"its tasks: {', '.join(schema.tasks)}"
                    )
        if all(self.objective.weights.get(task, 1.0) == 0 for task in schema.tasks):
            raise ConfigError(
                "objective.weights: every task weighs 0, so nothing would be learned; raise one"
            )
        self._check_order_penalty(schema)
        self._check_references(schema)
        bags = [name for name, item in schema.features.items() if isinstance(item, BagFeature)]
        self.sharding.check_names(
            tables=schema.all_tables, listed=[*bags, *schema.sequences], where=self.schema_file
        )

    def resolved(self, directory: Path) -> "Experiment":
        """This experiment with paths made absolute, relative ones counted from a directory."""
        return self._with_paths(lambda path: Path(os.path.abspath(directory / path)))

    def to_json(self, directory: Path) -> str:
        """The experiment as JSON, its paths relative to a directory."""
        start = os.path.abspath(directory)
        portable = self._with_paths(
            lambda path: Path(Path(os.path.relpath(path, start)).as_posix())
        )
        return json.dumps(portable.model_dump(mode="json"), indent=1, ensure_ascii=False)

    def differences(self, other: "Experiment") -> tuple[str, ...]:
        """What differs, one text `train.seed: 0, not 1` a key; empty when both say the same."""
        mine, theirs = (_leaves(item.model_dump(mode="json")) for item in (self, other))
        return tuple(
            f"{key}: {mine.get(key)}, not {theirs.get(key)}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        )

    def _check_order_penalty(self, schema: Schema) -> None:
        if self.objective.order_penalty == 0:
            return
        if all(task.given is None for task in schema.tasks.values()):
            raise ConfigError(
                "objective.order_penalty: no task has given, so there is no order to keep; "
                "name each step's parent under [tasks], or take order_penalty out"
            )
        kind = self.model.heads.kind
        if heads[kind].keeps_order:
            raise ConfigError(
                f'objective.order_penalty: with model.heads of kind = "{kind}" no task can be likelier than the one it '
                'is given, so there is nothing to penalise; take order_penalty out, or take kind = "aitm"'
            )

    def _check_references(self, schema: Schema) -> None:
        for task, column in self.evaluation.reference.items():
            where = f"evaluation.reference.{task}"
            if column not in schema.keys.kept:
                raise ConfigError(
                    f"{where}: column {column!r} is not kept{nearest(column, schema.keys.kept)}; "
                    f"add it to keys.keep in {self.schema_file}"
                )
            if schema.columns[column] not in ("float32", "float64"):
                raise ConfigError(
                    f"{where}: column {column!r} is {schema.columns[column]}, a probability is float32 or float64"
                )
            if schema.tasks[task].kind != "binary":
                raise ConfigError(
                    f"{where}: task {task!r} is a regression; only a binary task has a reference"
                )

    def _with_paths(self, change: Callable[[Path], Path]) -> "Experiment":
        stream = None if self.data.stream is None else change(self.data.stream)
        data = self.data.model_copy(
            update={
                "directory": change(self.data.directory),
                "encoder": change(self.data.encoder),
                "stream": stream,
            }
        )
        return self.model_copy(update={"schema_file": change(self.schema_file), "data": data})


def load_experiment(path: Path, *, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a TOML file, or of the JSON that a run keeps, with `train.steps=200` overrides applied.

    An override's value is read as TOML and, where it is none, taken as text. Raises ConfigError naming the file and
    the key.
    """
    tree = _read_json(path) if path.suffix == ".json" else read_toml(path)
    for override in overrides:
        _apply(tree, override)
    return Experiment.parse(tree, where=str(path)).resolved(path.parent)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not separator or not all(path):
        raise ConfigError(
            f"--set {override!r}: expected section.key=value, such as train.steps=200"
        )
    section = tree
    for part in path[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    section[path[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A text with a line break could state more keys than the one.
    return tree["value"] if len(tree) == 1 else text


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no sections; give the experiment.json of a run")
    return tree


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the path") from error


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
