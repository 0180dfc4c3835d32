"""What the diagnosis of experts sees: their outputs and gates, collected by hooks, never through return values."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recsys.models.experts import ExpertBank
from recsys.models.gates import Gates, SelectiveGates


@dataclass(frozen=True)
class Watched:
    """One level of experts in a mixing stage. `groups` names each expert: `shared`, `group NAME`, or whose it is.

    `readers` names each gate in the same words, or says who else reads it. Where `native`, a task's own experts reach
    it past the gate as well, so that a small weight does not mean that they are unused: through `self_gates`, one for
    each gate, or by weights that no input changes. `feature_gates` is called once for each of `gated` with the gate's
    values on that group's input.
    """

    bank: ExpertBank
    gates: Gates | SelectiveGates | None
    groups: tuple[str, ...]
    readers: tuple[str, ...] = ()
    native: bool = False
    self_gates: SelectiveGates | None = None
    feature_gates: nn.Module | None = None
    gated: tuple[str, ...] = ()


class Watchable(Protocol):
    """A mixing stage that tells a probe where its levels are, first level first."""

    def watched(self) -> tuple[Watched, ...]: ...


@dataclass
class Level:
    """What one forward pass did at one level. Tensors are detached.

    `out_BEH` expert outputs after the last activation, `pre_BEH` before it, `gate_BTE` normalised weights or None
    where the level has no gates. `self_gate_BGE` is added to these; `feature_gates_BI` has one tensor a gated group.
    """

    groups: tuple[str, ...]
    out_BEH: Tensor | None = None
    pre_BEH: Tensor | None = None
    gate_BTE: Tensor | None = None
    self_gate_BGE: Tensor | None = None
    feature_gates_BI: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        """Let go of all tensors."""
        self.out_BEH = self.pre_BEH = self.gate_BTE = self.self_gate_BGE = None
        self.feature_gates_BI = []


class Probe:
    """Levels of the latest forward pass inside `with probe.attached(mixing):`, every n-th row of it."""

    def __init__(self, *, every: int = 1) -> None:
        self.levels: list[Level] = []
        self._every = every

    @contextmanager
    def attached(self, mixing: Watchable) -> Iterator["Probe"]:
        """Collect from a mixing stage until the block ends. Costs nothing outside of it."""
        watched = mixing.watched()
        self.levels = [Level(groups=item.groups) for item in watched]
        handles = []
        for level, item in zip(self.levels, watched, strict=True):
            handles += _hooks(level, item, every=self._every)
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def without_experts(removed: list[tuple[Watched, tuple[int, ...]]]) -> Iterator[None]:
    """Some experts of some levels give zeros until the block ends, and gates share their weight among the others.

    A gate that is left without any expert gives nothing.
    """
    handles = []
    for item, experts in removed:
        kept_E = torch.ones(item.bank.experts)
        kept_E[list(experts)] = 0
        handles.append(item.bank.activation.register_forward_hook(_silencing(kept_E)))
        if item.gates is not None:
            handles.append(item.gates.register_forward_hook(_renormalising(kept_E)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choices(gates: Gates | SelectiveGates) -> Tensor:
    """Which experts each gate may choose, bool [G, E] on the CPU."""
    if isinstance(gates, SelectiveGates):
        chosen_GE = gates.choices_index.view(gates.gates, gates.experts) < sum(gates.sizes)
        return chosen_GE.cpu()
    return torch.ones(gates.weight.shape[:2], dtype=torch.bool)


def _hooks(level: Level, item: Watched, *, every: int) -> list[RemovableHandle]:
    """Hooks that fill a level."""
    places = (
        (item.bank.activation, _experts_into),
        (item.gates, _gates_into),
        (item.self_gates, _self_gates_into),
        (item.feature_gates, _feature_gate_into),
    )
    return [
        module.register_forward_hook(hook(level, every))
        for module, hook in places
        if module is not None
    ]


def _experts_into(level: Level, every: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        level.pre_BEH, level.out_BEH = _rows(inputs[0], every), _rows(output, every)

    return hook


def _gates_into(level: Level, every: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        level.gate_BTE = _rows(output, every)

    return hook


def _self_gates_into(level: Level, every: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        level.self_gate_BGE = _rows(output, every)

    return hook


def _feature_gate_into(level: Level, every: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        level.feature_gates_BI.append(_rows(output, every))

    return hook


def _rows(output: Tensor, every: int) -> Tensor:
    """Every n-th row; a copy of these, so that the whole is not kept alive for them."""
    return output.detach() if every == 1 else output.detach()[::every].clone()


def _silencing(kept_E: Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * kept_E.to(output)[:, None]

    return hook


def _renormalising(kept_E: Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        left_BGE = output * kept_E.to(output)
        total_BG1 = left_BGE.sum(dim=-1, keepdim=True)
        return left_BGE / torch.where(total_BG1 > 0, total_BG1, 1.0)

    return hook
