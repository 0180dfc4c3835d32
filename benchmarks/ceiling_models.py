"""What the ceiling is measured on: every mixing stage at about the work of MMoE 8 x [256, 128], as it trains.

Axes: **B** rows, **L** events, **I** width of a block, **K** width of an event, **T** tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.experiment import OptimizerConfig
from recsys.models import Blocks, InputLayout, ModelConfig, Program, build_program, mixings
from recsys.schema import Schema
from recsys.training.optim import DenseOptimizer

FIELDS, WIDTH = 26, 16
TASKS = ("click", "buy")
EVENTS = 20
PRECISIONS = ("float32", "bf16")

Step = Callable[[], None]

# Eight experts [256, 128] where a stage has experts to count, else widths that give 1.1 million multiply-adds a row.
# HoME's feature gates take nearly half of its share. A stage that is not listed is measured at its defaults.
_TWO_LEVELS: dict[str, Any] = {"levels": [[256], [128]]}
_OPTIONS: dict[str, dict[str, Any]] = {
    "single_task": {"hidden": [768, 320]},
    "shared_bottom": {"hidden": [1024, 640]},
    "omoe": {"experts": 8, "expert_hidden": [256, 128]},
    "mmoe": {"experts": 8, "expert_hidden": [256, 128]},
    "ml_mmoe": {"experts": 8} | _TWO_LEVELS,
    "cross_stitch": {"hidden": [768, 320]},
    "cgc": {"task_experts": 3, "shared_experts": 2, "expert_hidden": [256, 128]},
    "ple": {"task_experts": 3, "shared_experts": 2} | _TWO_LEVELS,
    "adatt": {"task_experts": 4} | _TWO_LEVELS,
    "home": {"experts": 2, "meta_hidden": [256], "task_hidden": [128]},
}


@dataclass(frozen=True)
class Architecture:
    """A model to measure: its name in the record, its sections, and the schema of its blocks."""

    name: str
    sections: dict[str, dict[str, Any]]
    schema: Schema


@dataclass(frozen=True)
class Trained:
    """A program with a training step for each precision, all on the same parameters."""

    program: Program
    steps: dict[str, Step]


def architectures() -> list[Architecture]:
    """Every registered mixing behind a flat bottom, then MMoE behind DTRN; all read an input of 416."""
    towers = {"kind": "towers", "hidden": [64]}
    flat = [
        Architecture(
            kind,
            {"mixing": {"kind": kind} | _OPTIONS.get(kind, {}), "heads": towers},
            _schema(fields=FIELDS, sequences=0),
        )
        for kind in mixings
    ]
    sections = flat[list(mixings).index("mmoe")].sections | {"bottom": {"kind": "dtrn"}}
    return [*flat, Architecture("dtrn + mmoe", sections, _schema(fields=FIELDS - 2, sequences=2))]


def trained(architecture: Architecture, *, rows: int) -> Trained:
    """A freshly initialised program and its steps on random blocks and labels."""
    config = ModelConfig.parse(architecture.sections, where=architecture.name)
    program = build_program(architecture.schema, config, seed=0).train()
    # An optimizer for each precision: which of them moves the parameters changes no timing.
    return Trained(
        program, {item: _step(program, rows, bf16=item == "bf16") for item in PRECISIONS}
    )


def _step(program: Program, rows: int, *, bf16: bool) -> Step:
    """Forward, gradients of parameters and of the blocks, as the embeddings want them, clipping and AdamW."""
    config = OptimizerConfig()
    optimizer = DenseOptimizer(program.named_parameters(), config)
    generator = torch.Generator().manual_seed(0)
    blocks = _blocks(program.layout, rows, generator)
    labels_BT = (torch.rand(rows, len(TASKS), generator=generator) < 0.3).float()
    inputs = [blocks.user_UI, blocks.candidate_NI, *blocks.tokens.values()]

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits_BT = program(blocks)
        loss = F.binary_cross_entropy_with_logits(logits_BT.float(), labels_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(config.dense_lr)
        for item in inputs:
            item.grad = None

    return run


def _blocks(layout: InputLayout, rows: int, generator: torch.Generator) -> Blocks:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    # The table's lookup gives zeros behind the last event; full sequences are the most work.
    return Blocks(
        user_UI=drawn(rows, layout.user_width).requires_grad_(),
        candidate_NI=drawn(rows, layout.candidate_width).requires_grad_(),
        tokens={
            name: drawn(rows, EVENTS, item.width).requires_grad_()
            for name, item in layout.sequences.items()
        },
        valid={name: torch.ones(rows, EVENTS, dtype=torch.bool) for name in layout.sequences},
    )


def _schema(*, fields: int, sequences: int) -> Schema:
    """Ids of width 16, half of them the user's, and sequences of one token that two candidate fields match."""
    sides = {f"id_{n}": "candidate" if n < fields // 2 else "user" for n in range(fields)}
    names = [f"events_{n}" for n in range(sequences)]
    columns = dict.fromkeys(sides, "int64") | dict.fromkeys(TASKS, "bool")
    tree: dict[str, Any] = {
        "columns": columns | dict.fromkeys(names, "list<int64>"),
        "tables": {name: {"rows": 1_000, "dim": WIDTH, "ids": "hash"} for name in sides},
        "features": {
            name: {"kind": "categorical", "table": name, "side": side}
            for name, side in sides.items()
        },
        "tasks": {name: {"label": name} for name in TASKS},
    }
    if names:
        tree["sequences"] = {
            name: {
                "max_length": EVENTS,
                "tokens": {"id": {"column": name, "table": f"id_{n}"}},
                "target": {"id": f"id_{n}"},
            }
            for n, name in enumerate(names)
        }
    return Schema.parse(tree, where="benchmark")
