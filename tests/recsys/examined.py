"""Mixing stages with healthy gates or planted ones, the doctor's numbers about them, and what it finds."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recsys.diagnosis import Finding, LevelNumbers
from recsys.evaluation.expert_statistics import ExpertWatch
from recsys.evaluation.experts import level_numbers
from recsys.evaluation.verdicts import findings
from recsys.models import mixings

WIDTH = 12
ROWS = 4_000


def built(kind: str, tasks: Sequence[str] = ("a", "b", "c"), **options: object):  # type: ignore[no-untyped-def]
    stage = mixings[kind]
    torch.manual_seed(0)
    config = stage.Config.parse({"kind": kind, **options}, where="test")
    return stage(config, width=WIDTH, tasks=tuple(tasks)).eval()


def inputs(rows: int = ROWS) -> Tensor:
    """Rows whose first column is 1, so that the first column of a gate's kernel is its bias."""
    x_BI = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
    x_BI[:, 0] = 1
    return x_BI


def numbers(stage, labels: dict[str, int] | None = None, parts: int = 3) -> list[LevelNumbers]:  # type: ignore[no-untyped-def]
    watch = ExpertWatch(stage, rows=ROWS)
    with watch.attached(), torch.no_grad():
        for part in inputs().chunk(parts):
            stage(part)
    by_half = {name: (count // 2, count - count // 2) for name, count in (labels or {}).items()}
    return [
        level_numbers(statistics, level=level, labels=by_half)
        for level, statistics in enumerate(watch.levels, start=1)
    ]


def found(levels: Sequence[LevelNumbers]) -> list[Finding]:
    return list(findings(levels, (), (), None))


def checks(levels: Sequence[LevelNumbers]) -> set[str]:
    return {item.check for item in found(levels)}


def mmoe(experts: int = 4):  # type: ignore[no-untyped-def]
    return built("mmoe", experts=experts, expert_hidden=[16, 32])


@torch.no_grad()
def set_gates(stage, logits: Callable[[int, int], float]) -> None:  # type: ignore[no-untyped-def]
    """Constant gates of a CGC: `logits` of gate and choice, own experts first, then shared ones."""
    gates = stage.level.gates[0]
    row = 0
    for gate, size in enumerate(gates.sizes):
        for choice in range(size):
            gates.weight[row] = 0
            gates.weight[row, 0] = logits(gate, choice)
            row += 1
