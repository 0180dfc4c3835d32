"""What the diagnosis of experts sees: their outputs and gates, collected by hooks, never through return values."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import Gates, SelectiveGates


@dataclass(frozen=True)
class Watched:
    """One level of experts in a mixing stage. `groups` names each expert: `shared`, or whose it is."""

    bank: ExpertBank
    gates: Gates | SelectiveGates | None
    groups: tuple[str, ...]


class Watchable(Protocol):
    """A mixing stage that tells a probe where its levels are, first level first."""

    def watched(self) -> tuple[Watched, ...]: ...


@dataclass
class Level:
    """What one forward pass did at one level. Tensors are detached.

    `out_BEH` expert outputs after the last activation, `pre_BEH` before it, `gate_BTE` normalised weights or None
    where the level has no gates.
    """

    groups: tuple[str, ...]
    out_BEH: Tensor | None = None
    pre_BEH: Tensor | None = None
    gate_BTE: Tensor | None = None


class Probe:
    """Levels of the latest forward pass inside `with probe.attached(mixing):`."""

    def __init__(self) -> None:
        self.levels: list[Level] = []

    @contextmanager
    def attached(self, mixing: Watchable) -> Iterator["Probe"]:
        """Collect from a mixing stage until the block ends. Costs nothing outside of it."""
        watched = mixing.watched()
        self.levels = [Level(groups=item.groups) for item in watched]
        handles = []
        for level, item in zip(self.levels, watched, strict=True):
            handles.append(item.bank.activation.register_forward_hook(_experts_into(level)))
            if item.gates is not None:
                handles.append(item.gates.register_forward_hook(_gates_into(level)))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


def _experts_into(level: Level) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        level.pre_BEH, level.out_BEH = inputs[0].detach(), output.detach()

    return hook


def _gates_into(level: Level) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        level.gate_BTE = output.detach()

    return hook
