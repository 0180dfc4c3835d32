"""What the comparison of towers compares: suites of data, rows of architectures, and widths that make them equal.

A row is an architecture at a width w: an MLP, an expert of one level, is [w, w / 2]; of two levels, [w] and then
[w / 2]. In the table `equal_parameters` each row's w is the one that brings its dense parameters (bottom, mixing and
heads; embedding tables are the same for all) nearest to those of the suite's MMoE at w = 64. In `equal_experts` every
row has the same w and as many experts a level as its form allows. `papers` is census-income as the papers run it.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import many_tasks
import planted_behaviours

from recsys.experiment import Experiment
from recsys.models import ModelConfig, build_program
from recsys.schema import Schema

SUITES_FOLDER = Path(__file__).resolve().parent / "suites"
TOML_FILES = ("schema.toml", "pipeline.toml", "experiment.toml")
WIDTH = 64
HOME_RANK = 8
# How far a row's dense parameters may be from the suite's budget.
TOLERANCE = 0.05
REFERENCES = ("single_task", "shared_bottom")

Tree = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """Rows of data, and what its tasks ask of an architecture.

    A level has as many experts as tasks and `shared` more; `groups` are HoME's categories. `make` writes simulated rows
    into a folder.
    """

    name: str
    tasks: int
    shared: int
    groups: Mapping[str, tuple[str, ...]]
    rows: tuple[str, ...]
    make: Callable[..., None] | None = None
    tables: tuple[str, ...] = ("equal_parameters",)

    @property
    def folder(self) -> Path:
        return SUITES_FOLDER / self.name

    @property
    def digest(self) -> str:
        """Of what the TOML files say, comments left out."""
        trees = [tomllib.loads((self.folder / name).read_text("utf-8")) for name in TOML_FILES]
        return hashlib.sha256(json.dumps(trees, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One architecture. `mixing` is its section at a width; `bottom` and `heads` stand in for the suite's own."""

    name: str
    mixing: Callable[[int, Suite], Tree]
    bottom: Tree | None = None
    heads: str | None = None

    def model(self, base: Tree, width: int, suite: Suite) -> Tree:
        """`[model]` of an experiment."""
        found = base | {"mixing": self.mixing(width, suite)}
        if self.bottom is not None:
            found["bottom"] = self.bottom
        if self.heads is not None:
            found["heads"] = base["heads"] | {"kind": self.heads}
        return found


def _mlp(kind: str) -> Callable[[int, Suite], Tree]:
    return lambda width, suite: {"kind": kind, "hidden": [width, width // 2]}


def _gated(kind: str) -> Callable[[int, Suite], Tree]:
    return lambda width, suite: {
        "kind": kind,
        "experts": suite.tasks + suite.shared,
        "expert_hidden": [width, width // 2],
    }


def _ml_mmoe(width: int, suite: Suite) -> Tree:
    levels = [[width], [width // 2]]
    return {"kind": "ml_mmoe", "experts": suite.tasks + suite.shared, "levels": levels}


def _cgc(width: int, suite: Suite) -> Tree:
    own = {"task_experts": 1, "shared_experts": suite.shared}
    return {"kind": "cgc", "expert_hidden": [width, width // 2]} | own


def _levels(kind: str, shared: Callable[[Suite], int]) -> Callable[[int, Suite], Tree]:
    return lambda width, suite: {
        "kind": kind,
        "task_experts": 1,
        "shared_experts": shared(suite),
        "levels": [[width], [width // 2]],
    }


def _home(width: int, suite: Suite) -> Tree:
    # Feature gates of full rank alone would be more than the budget: the paper's low-rank form, of a small rank.
    return {
        "kind": "home",
        "groups": {name: list(tasks) for name, tasks in suite.groups.items()},
        "meta_hidden": [width],
        "task_hidden": [width // 2],
        "feature_gate_rank": HOME_RANK,
    }


_MIXINGS: dict[str, Callable[[int, Suite], Tree]] = {
    "single_task": _mlp("single_task"),
    "shared_bottom": _mlp("shared_bottom"),
    "cross_stitch": _mlp("cross_stitch"),
    "omoe": _gated("omoe"),
    "mmoe": _gated("mmoe"),
    "ml_mmoe": _ml_mmoe,
    "cgc": _cgc,
    "ple": _levels("ple", lambda suite: suite.shared),
    "adatt_sp": _levels("adatt", lambda suite: 0),
    "adatt": _levels("adatt", lambda suite: suite.shared),
    "home": _home,
}
_DTRN_OVER = ("shared_bottom", "mmoe", "ple")
_FLAT = tuple(_MIXINGS)
_DTRN = tuple(f"dtrn_{name}" for name in _DTRN_OVER)
_PAPERS = ("single_task", "shared_bottom", "mmoe", "ple", "adatt_sp", "home")

ROWS: dict[str, Row] = (
    {name: Row(name, mixing) for name, mixing in _MIXINGS.items()}
    | {
        f"dtrn_{name}": Row(f"dtrn_{name}", _MIXINGS[name], bottom={"kind": "dtrn"})
        for name in _DTRN_OVER
    }
    | {"mmoe_aitm": Row("mmoe_aitm", _MIXINGS["mmoe"], heads="aitm")}
)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "census",
            tasks=3,
            shared=3,
            groups={"money": ("income",), "person": ("never_married", "degree")},
            rows=_FLAT,
            tables=("equal_parameters", "equal_experts"),
        ),
        Suite(
            "kuairand",
            tasks=4,
            shared=2,
            groups={"watch": ("click", "long_view"), "interaction": ("profile_enter", "comment")},
            rows=(*_FLAT, *_DTRN),
        ),
        Suite(
            "movielens_1m",
            tasks=2,
            shared=2,
            groups={"rating": ("like", "love")},
            rows=(*_FLAT, "mmoe_aitm", *_DTRN),
        ),
        Suite(
            "retailrocket",
            tasks=2,
            shared=2,
            groups={"shop": ("cart", "purchase")},
            rows=(*_FLAT, "mmoe_aitm"),
        ),
        Suite(
            "many_tasks",
            tasks=20,
            shared=4,
            groups=many_tasks.CATEGORIES,
            rows=_FLAT,
            make=many_tasks.write,
            tables=("equal_parameters", "equal_experts"),
        ),
        Suite(
            "planted_behaviours",
            tasks=len(planted_behaviours.TASKS),
            shared=2,
            groups={"all": planted_behaviours.TASKS},
            rows=(*_FLAT, *_DTRN),
            make=planted_behaviours.write,
        ),
        Suite(
            "census_papers",
            tasks=2,
            shared=2,
            groups={"all": ("income", "never_married")},
            rows=_PAPERS,
            tables=("papers",),
        ),
    )
}


@dataclass(frozen=True)
class Sized:
    """A row at the width it has in a table, and the dense parameters that come of it."""

    row: Row
    width: int
    parameters: int
    model: Tree = field(repr=False)


def dense_parameters(schema: Schema, model: Tree) -> int:
    """Parameters of bottom, mixing and heads."""
    program = build_program(schema, ModelConfig.parse(model, where="benchmark"), seed=0)
    return sum(parameter.numel() for parameter in program.parameters())


def sized(suite: Suite, table: str, row: Row, base: Experiment, schema: Schema) -> Sized:
    """A row at its width in a table. Raises ValueError where no width comes within `TOLERANCE` of the budget."""
    tree = base.model.model_dump(mode="json")

    def at(width: int, of: Row = row) -> Sized:
        model = of.model(tree, width, suite)
        return Sized(of, width, dense_parameters(schema, model), model)

    if table == "equal_experts":
        return at(WIDTH)
    budget = at(WIDTH, ROWS["mmoe"]).parameters
    low, high = 2, 4096
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).parameters <= budget else (low, middle)
    found = min((at(low), at(high)), key=lambda item: abs(item.parameters - budget))
    if abs(found.parameters - budget) > TOLERANCE * budget:
        raise ValueError(
            f"{suite.name}, {row.name}: {found.parameters:,} dense parameters at width {found.width}, and no width "
            f"comes within {TOLERANCE:.0%} of {budget:,}"
        )
    return found
