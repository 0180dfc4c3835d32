"""Programs as trainings leave them, and new ones of other tasks that begin with what they have learned."""

import tomllib
from typing import Any

import torch
from torch import Tensor

from recsys.models import ModelConfig, Program, build_program
from recsys.models.probe import Watched, without_experts
from recsys.schema import Schema
from recsys.training.kept_parameters import Asked, Kept, kept_parameters
from recsys.training.moved_parts import move_parameters
from tests.contract.cases import blocks
from tests.recsys import small_data

TASKS: dict[str, dict[str, str]] = {
    "a": {"label": "clicked"},
    "b": {"label": "purchased", "given": "a"},
    "c": {"label": "purchased", "given": "a"},
    "d": {"label": "seconds", "kind": "regression"},
}
# Small, and where a level can be told from the next, two of them.
SMALL: dict[str, dict[str, Any]] = {
    "single_task": {"hidden": (9, 8)},
    "shared_bottom": {"hidden": (9, 8)},
    "omoe": {"experts": 3, "expert_hidden": (9, 8)},
    "mmoe": {"experts": 3, "expert_hidden": (9, 8), "gate_hidden": (4,), "gate_bias": True},
    "ml_mmoe": {"experts": 3, "levels": ((9,), (8,))},
    "cross_stitch": {"hidden": (9, 8)},
    "cgc": {"expert_hidden": (9, 8)},
    "ple": {"levels": ((9,), (8,))},
    "adatt": {"shared_experts": 1, "levels": ((9,), (8,))},
    "home": {"experts": 2, "meta_hidden": (9,), "task_hidden": (8,)},
    "towers": {"hidden": (8, 7)},
    "aitm": {"hidden": (8,)},
}


def schema(*names: str, **others: dict[str, str]) -> Schema:
    """The small schema with some of the tasks, in this order."""
    tree = tomllib.loads(small_data.SCHEMA_TOML)
    tree["tasks"] = {name: (TASKS | others)[name] for name in names}
    return Schema.parse(tree, where="schema.toml")


def config(mixing: str, heads: str = "towers", *, bottom: str = "flat", **more: Any) -> ModelConfig:
    """Small stages of these kinds; `more` is for the mixing."""
    tree = {
        "bottom": {"kind": bottom},
        "mixing": {"kind": mixing} | SMALL.get(mixing, {}) | more,
        "heads": {"kind": heads} | SMALL.get(heads, {}),
    }
    return ModelConfig.parse(tree, where="test")


def learned(asked: Asked) -> Program:
    """A program whose every parameter and running statistic is far from what it begins as."""
    program = build_program(asked.schema, asked.model, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, item in program.state_dict().items():
            drawn = torch.randn(item.shape, generator=generator)
            # Units that answer for some rows: variances and biases above zero.
            positive = name.endswith("running_var") or "bias" in name
            item.copy_(drawn.abs() + 0.5 if positive else item + 0.2 * drawn)
    return program


def begun(old: Program, before: Asked, after: Asked) -> tuple[Program, Kept]:
    """A new program that has begun with what another one has learned, and what that was."""
    program = build_program(after.schema, after.model, seed=5).eval()
    kept = kept_parameters(program, old.state_dict(), old=before, new=after)
    move_parameters(kept.moved, old.state_dict(), program)
    return program, kept


def logits(program: Program) -> dict[str, Tensor]:
    """Each task's logits of some rows, the same for all programs of these features."""
    found = _logits(program)
    # Logits that no row changes would be equal for no good reason.
    assert all(item.std() > 1e-3 for item in found.values())
    return found


def logits_without(program: Program, *tasks: str) -> dict[str, Tensor]:
    """The logits where no task hears of the experts of some tasks."""
    watched: tuple[Watched, ...] = program.mixing.watched()
    removed = [
        (item, tuple(e for e, group in enumerate(item.groups) if group in tasks))
        for item in watched
    ]
    with without_experts([(item, experts) for item, experts in removed if experts]):
        return _logits(program)


def equal(found: dict[str, Tensor], expected: dict[str, Tensor], *, of: tuple[str, ...]) -> bool:
    """Whether the logits of tasks are the same but for the order of their sums."""
    return all(torch.allclose(found[task], expected[task], rtol=1e-4, atol=1e-5) for task in of)


def _logits(program: Program) -> dict[str, Tensor]:
    found: Tensor = program(blocks(program.layout, users=4, rows=12, events=4))
    return dict(zip(program.task_names, found.detach().unbind(1), strict=True))
