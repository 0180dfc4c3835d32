"""Mixing stages for tests: small ones with odd weights, their parameters counted, and what their outputs depend on."""

import torch
from torch import Tensor

from recsys.models import mixings

NAMES = ("a", "b", "c")
WIDTH = 10


def built(stage: type, width: int = WIDTH, tasks: tuple[str, ...] = NAMES, **options: object):  # type: ignore[no-untyped-def]
    """A stage in evaluation mode whose parameters are all far from their initial symmetry."""
    kind = next(name for name, item in mixings.items() if item is stage)
    config = stage.Config.parse({"kind": kind, **options}, where="test")  # type: ignore[attr-defined]
    torch.manual_seed(0)
    found = stage(config, width=width, tasks=tasks).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return found


def count(stage: type, **options: object) -> int:
    kind = next(name for name, item in mixings.items() if item is stage)
    config = stage.Config.parse({"kind": kind, **options}, where="test")  # type: ignore[attr-defined]
    found = stage(config, width=64, tasks=NAMES)
    parameters = sum(item.numel() for item in found.parameters())
    assert parameters == stage.parameter_count(config, width=64, tasks=NAMES)  # type: ignore[attr-defined]
    return parameters


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (7, WIDTH)), generator=torch.Generator().manual_seed(9))


def gradient(stage: torch.nn.Module, task: int, parameter: Tensor) -> Tensor:
    """Of a task's output by a parameter; zeros where it does not depend on it."""
    (found,) = torch.autograd.grad(
        stage(inputs())[:, task].square().sum(), [parameter], allow_unused=True
    )
    return torch.zeros_like(parameter) if found is None else found
