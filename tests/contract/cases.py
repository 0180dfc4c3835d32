"""Every registered architecture as a small model with data to run on. Registering one is what subscribes it.

The data has every kind of feature, sequences, and three tasks: a funnel of two and a regression.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.batch import Batch, from_encoded
from recsys.models import ModelConfig, RankingModel, build_model, registries
from recsys.models.inputs import Blocks, InputLayout
from recsys.schema import Schema
from tests import kinds


@dataclass(frozen=True)
class Case:
    """One entry of a registry, by default with its own defaults and the default of every other stage."""

    stage: str
    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.stage, self.kind, *(f"{key}={value}" for key, value in self.options)])

    @property
    def config(self) -> ModelConfig:
        tree = {
            "embeddings": {"backend": "plain"},
            self.stage: {"kind": self.kind, **dict(self.options)},
        }
        return ModelConfig.parse(tree, where=str(self))

    def model(self, seed: int = 0) -> RankingModel:
        return build_model(kinds.schema(), self.config, seed=seed)


DEFAULTS = [Case(stage, kind) for stage, registry in registries.items() for kind in registry]
# Options that lead through other code than the defaults.
VARIANTS = [
    Case("bottom", "flat", (("sequence", "mean"),)),
    Case("bottom", "flat", (("sequence", "target_attention"),)),
    Case("mixing", "mmoe", (("gate_hidden", (6,)), ("gate_bias", True), ("shared_hidden", (12,)))),
    Case("mixing", "ple", (("task_experts", 2), ("shared_experts", 0))),
    Case("mixing", "adatt", (("shared_experts", 1), ("task_experts", 1))),
    Case(
        "mixing",
        "home",
        (("experts", 2), ("groups", {"funnel": ["click", "purchase"], "rest": ["watch"]})),
    ),
    Case("heads", "towers", (("hidden", ()),)),
    Case("heads", "towers", (("hidden", (8, 4)),)),
    Case("bottom", "dtrn", (("condition", False), ("refine", False))),
    Case("heads", "aitm", (("hidden", (8, 4)),)),
]


def different(cases: list[Case]) -> list[Case]:
    """The cases whose models differ: the defaults of every stage build one and the same."""
    return list({case.config.model_dump_json(): case for case in reversed(cases)}.values())[::-1]


@cache
def encoded_rows(count: int, seed: int = 0) -> pa.Table:
    return kinds.encoder().encode(kinds.rows(count, seed=seed))


def batch(count: int, seed: int = 0) -> Batch:
    return from_encoded(encoded_rows(count, seed), kinds.schema())


def blocks(layout: InputLayout, *, users: int, rows: int, events: int, seed: int = 0) -> Blocks:
    """Random blocks as a request has them: several rows a user, users with no event at all."""
    generator = torch.Generator().manual_seed(seed)
    tokens: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    for name, sequence in layout.sequences.items():
        lengths = torch.randint(0, events + 1, (users, 1), generator=generator)
        valid[name] = torch.arange(events) < lengths
        drawn = torch.randn(users, events, sequence.width, generator=generator)
        tokens[name] = drawn * valid[name][:, :, None]
    return Blocks(
        user_UI=torch.randn(users, layout.user_width, generator=generator),
        candidate_NI=torch.randn(rows, layout.candidate_width, generator=generator),
        user_of_row_N=torch.randint(0, users, (rows,), generator=generator),
        tokens=tokens,
        valid=valid,
    )


def loss(logits_BT: Tensor, found: Batch, schema: Schema) -> Tensor:
    """Mean over observed rows a task, as training has it, without weights."""
    total = logits_BT.new_zeros(())
    for t, task in enumerate(schema.tasks.values()):
        observed = found.observed_BT[:, t]
        logits, labels = logits_BT[observed, t], found.labels_BT[observed, t]
        if task.kind == "binary":
            total = total + F.binary_cross_entropy_with_logits(logits, labels)
        else:
            total = total + F.mse_loss(logits, labels)
    return total
