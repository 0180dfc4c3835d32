"""Logits to probabilities: the funnel's arithmetic and each task's calibrator. Training and serving share it.

`calibrators.json`, the only form so far the identity:

    {"format_version": 1, "tasks": {"click": {"kind": "identity"}, "purchase": {"kind": "identity"}}}

A task with `given` is a joint probability. Calibrators act on such observable marginals; a child is then held at or
below its parent, and the conditional entry `child|parent` is their quotient, so that `ctcvr = ctr * cvr` holds before
and after calibration.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys.errors import ArtifactError
from recsys.layout import entry_name
from recsys.measures import Float64Array, probability
from recsys.schema import Schema

FORMAT_VERSION = 1
CalibratorKind = Literal["identity"]


@dataclass(frozen=True)
class Calibrators:
    """How each binary task's probability is corrected."""

    kinds: Mapping[str, CalibratorKind]

    @classmethod
    def identity(cls, schema: Schema) -> "Calibrators":
        """Calibrators that change nothing."""
        return cls(
            {name: "identity" for name, task in schema.tasks.items() if task.kind == "binary"}
        )

    def calibrated(self, task: str, raw_N: Float64Array) -> Float64Array:
        """Calibrated marginal probabilities of one binary task."""
        assert self.kinds[task] == "identity"
        return raw_N

    def write(self, file: Path) -> None:
        tasks = {task: {"kind": kind} for task, kind in self.kinds.items()}
        tree = {"format_version": FORMAT_VERSION, "tasks": tasks}
        file.write_text(json.dumps(tree, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class TaskScores:
    """What the logits of N rows mean, by entry: `click`, `purchase`, `purchase|click`; regression tasks in `value`.

    `raw` is the sigmoid of the logits, `p` the calibrated probability. All arrays are [N], float64.
    """

    raw: Mapping[str, Float64Array]
    p: Mapping[str, Float64Array]
    value: Mapping[str, Float64Array]

    def __getitem__(self, entry: str) -> Float64Array:
        """The number an entry is ranked by: its calibrated probability, or its value."""
        return self.value[entry] if entry in self.value else self.p[entry]


def task_scores(
    logits_NT: NDArray[np.float32], schema: Schema, *, calibrators: Calibrators
) -> TaskScores:
    """Raw and calibrated probabilities of every entry, and the values of regression tasks."""
    logits: dict[str, Float64Array] = {
        task: logits_NT[:, index].astype(np.float64) for index, task in enumerate(schema.task_names)
    }
    binary = [name for name, task in schema.tasks.items() if task.kind == "binary"]
    raw = {name: probability(logits[name]) for name in binary}
    p = {name: calibrators.calibrated(name, raw[name]) for name in binary}
    value = {name: logits[name] for name in schema.tasks if name not in raw}
    return TaskScores(_with_conditionals(schema, raw), _with_conditionals(schema, p), value)


def read_calibrators(file: Path, schema: Schema) -> Calibrators:
    """The calibrators of a bundle. Raises ArtifactError when they do not cover exactly the schema's binary tasks."""
    try:
        tree: dict[str, Any] = json.loads(file.read_bytes())
        version = tree["format_version"]
        kinds: dict[str, CalibratorKind] = {
            name: item["kind"] for name, item in tree["tasks"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file}: not readable calibrators ({error}); export again") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file}: format {version}, this release reads {FORMAT_VERSION}; export again"
        )
    expected = Calibrators.identity(schema)
    if kinds.keys() != expected.kinds.keys():
        raise ArtifactError(
            f"{file}: calibrates {sorted(kinds)}, the binary tasks are {sorted(expected.kinds)}"
        )
    for task, kind in kinds.items():
        if kind != "identity":
            raise ArtifactError(
                f"{file}: task {task!r} has calibrator {kind!r}, this release knows identity"
            )
    return Calibrators(kinds)


def _with_conditionals(
    schema: Schema, marginal: Mapping[str, Float64Array]
) -> dict[str, Float64Array]:
    """Marginals held at or below their parents, and the quotients. A parent at 0 has conditional 0."""
    found: dict[str, Float64Array] = {}

    def held(name: str) -> Float64Array:
        if name in found:
            return found[name]
        given = schema.tasks[name].given
        if given is None:
            found[name] = marginal[name]
        else:
            parent = held(given)
            found[name] = np.minimum(marginal[name], parent)
            quotient = np.zeros_like(parent)
            np.divide(found[name], parent, out=quotient, where=parent > 0)
            found[entry_name(name, given)] = quotient
        return found[name]

    for name in marginal:
        held(name)
    return found
