"""Ranking models, and the registries of what they are made of.

A model is embeddings -> bottom -> mixing -> heads. A new architecture is one file with a module and its `Config`, and
one line here; the contract suite in `tests/contract/` then runs over it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

import torch

from recsys.config import Config
from recsys.models.bottoms.dtrn import DTRN
from recsys.models.bottoms.flat import Flat
from recsys.models.embeddings.lookup import Embeddings
from recsys.models.embeddings.tables import EmbeddingsConfig
from recsys.models.embeddings.updates import TableOptimizer
from recsys.models.heads.aitm import AITM
from recsys.models.heads.towers import Towers
from recsys.models.inputs import Blocks, InputLayout, input_layout
from recsys.models.mixing.adatt import AdaTT
from recsys.models.mixing.cross_stitch import CrossStitch
from recsys.models.mixing.home import HoME
from recsys.models.mixing.ml_mmoe import MultiLevelMMoE
from recsys.models.mixing.mmoe import MMoE
from recsys.models.mixing.omoe import OMoE
from recsys.models.mixing.ple import CGC, PLE
from recsys.models.mixing.shared_bottom import SharedBottom
from recsys.models.mixing.single_task import SingleTask
from recsys.models.ranker import NamedProgram, Program, RankingModel
from recsys.models.stages import OneOf, StageConfig
from recsys.schema import Schema

__all__ = [
    "Architecture",
    "Blocks",
    "EmbeddingsConfig",
    "InputLayout",
    "ModelConfig",
    "NamedProgram",
    "Program",
    "RankingModel",
    "bottoms",
    "build_model",
    "build_program",
    "describe",
    "heads",
    "input_layout",
    "mixings",
    "registries",
]

bottoms: dict[str, Any] = {
    "flat": Flat,
    "dtrn": DTRN,
}
mixings: dict[str, Any] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "omoe": OMoE,
    "mmoe": MMoE,
    "ml_mmoe": MultiLevelMMoE,
    "cross_stitch": CrossStitch,
    "cgc": CGC,
    "ple": PLE,
    "adatt": AdaTT,
    "home": HoME,
}
heads: dict[str, Any] = {
    "towers": Towers,
    "aitm": AITM,
}

registries: dict[str, dict[str, Any]] = {"bottom": bottoms, "mixing": mixings, "heads": heads}

if TYPE_CHECKING:
    BottomConfig: TypeAlias = StageConfig
    MixingConfig: TypeAlias = StageConfig
    HeadsConfig: TypeAlias = StageConfig
else:

    def _section(registry):
        # The union is where messages find the nearest key; OneOf is what chooses.
        return Annotated[Union[tuple(stage.Config for stage in registry.values())], OneOf(registry)]  # noqa: UP007

    BottomConfig, MixingConfig, HeadsConfig = map(_section, (bottoms, mixings, heads))


class ModelConfig(Config):
    """`[model]` of an experiment: one section a stage."""

    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    bottom: BottomConfig = Flat.Config()
    mixing: MixingConfig = MMoE.Config()
    heads: HeadsConfig = Towers.Config()


@dataclass(frozen=True)
class Architecture:
    """One entry of a registry. `summary` is the first line of its docstring, `source` the module that defines it."""

    stage: str
    kind: str
    summary: str
    source: str


def describe() -> list[Architecture]:
    """Every registered architecture, by stage, in the registry's order."""
    return [
        Architecture(stage, kind, str(item.__doc__).strip().splitlines()[0], item.__module__)
        for stage, registry in registries.items()
        for kind, item in registry.items()
    ]


def build_model(
    schema: Schema,
    config: ModelConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    tables_device: torch.device | str | None = None,
    optimizer: TableOptimizer = "rowwise_adagrad",
) -> RankingModel:
    """A freshly initialised model on a device: a function of schema, configuration and seed alone.

    `tables_device` is "meta" for tables that are sharded next; `optimizer` is what trains the tables. Raises
    ConfigError when the embedding backend cannot hold or train the schema's tables.
    """
    device = torch.device(device)
    embeddings = Embeddings(
        schema,
        config.embeddings,
        seed=seed,
        device=device,
        tables_device=torch.device(tables_device or device),
        optimizer=optimizer,
    )
    return RankingModel(embeddings, build_program(schema, config, seed=seed).to(device))


def build_program(schema: Schema, config: ModelConfig, *, seed: int) -> Program:
    """The part of a model behind the embeddings, freshly initialised. The global random state stays as it was."""
    layout, tasks = input_layout(schema), schema.tasks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bottom = bottoms[config.bottom.kind](config.bottom, layout=layout, tasks=len(tasks))
        mixing = mixings[config.mixing.kind](
            config.mixing, width=bottom.width, tasks=schema.task_names
        )
        towers = heads[config.heads.kind](config.heads, width=mixing.width, tasks=tasks)
    return Program(
        layout=layout, task_names=schema.task_names, bottom=bottom, mixing=mixing, heads=towers
    )
