"""Which dense parameters several tasks train, and the tasks' gradients of them.

Parameters are stacked: one tensor may hold a shared expert beside a task's own. So sharing is told row by row of the
first axis, by what a probe of the program finds: architectures declare nothing. Towers, tables and what belongs to a
single task are never shared: they keep the weighted sum's gradient.

Axes: **T** tasks, **B** rows, **R** rows of a parameter's first axis, **P** shared numbers.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.models import Blocks, InputLayout, Program
from recsys.ranks import add_up
from recsys.training.optim import is_decayed

_HEADS = "heads."
_PROBE_ROWS = 64
_PROBE_EVENTS = 4


@dataclass(frozen=True, eq=False)
class SharedPart:
    """A dense parameter, and which rows of it several tasks train; None for all."""

    name: str
    parameter: nn.Parameter
    index_R: Tensor | None

    @property
    def numbers(self) -> int:
        """How many numbers of the parameter are shared."""
        if self.index_R is None:
            return self.parameter.numel()
        return len(self.index_R) * self.parameter[0].numel()

    def rows_of(self, gradient: Tensor) -> Tensor:
        """The shared rows of a tensor of the parameter's shape."""
        return gradient if self.index_R is None else gradient.index_select(0, self.index_R)

    def replace_gradient(self, shared: Tensor) -> None:
        """Put a gradient in place of the shared rows' present one."""
        if self.index_R is None:
            self.parameter.grad = shared.view_as(self.parameter)
            return
        gradient = self.parameter.grad
        assert gradient is not None, f"{self.name} has no gradient"
        rows = shared.view(len(self.index_R), *self.parameter.shape[1:])
        gradient.index_copy_(0, self.index_R, rows)


def shared_parts(program: Program, *, kind: str) -> tuple[SharedPart, ...]:
    """What several tasks share in bottom and mixing, in the program's order. Raises ConfigError if nothing."""
    reached = _reached(program)
    found = []
    for name, parameter in program.named_parameters():
        if name not in reached:
            continue
        tasks_R = reached[name].sum(dim=0)
        if not bool((tasks_R > 1).any()):
            continue
        # A row that no task reached is a unit that stayed silent: it belongs to its neighbours.
        index_R = (tasks_R != 1).nonzero().squeeze(1).to(parameter.device)
        found.append(SharedPart(name, parameter, None if len(index_R) == len(tasks_R) else index_R))
    if not found:
        raise ConfigError(
            f'objective.balance: "{kind}" balances what tasks share behind the embeddings, and this model shares '
            'nothing there; choose another mixing, or balance = { kind = "uncertainty" }'
        )
    return tuple(found)


def last_layer(parts: Sequence[SharedPart]) -> SharedPart:
    """The shared weight matrix nearest the towers: the one that the program registers last."""
    layers = [part for part in parts if is_decayed(part.name, part.parameter)]
    return (layers or list(parts))[-1]


class SharedGradients:
    """Gradients of the shared parts, one for each of some losses, gathered from the parts of a batch in turn."""

    def __init__(self, parts: Sequence[SharedPart], *, losses: int) -> None:
        self._parts = parts
        self._stacks = [part.parameter.new_zeros(losses, part.numbers) for part in parts]

    def add(self, losses_T: Tensor) -> None:
        """Add what a part of the batch contributes to each loss's gradient; its graph stays."""
        parameters = [part.parameter for part in self._parts]
        for number, loss in enumerate(losses_T):
            # Only the way to these parameters is walked: the tables, which update themselves, lie beyond.
            found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            for part, stack_TP, gradient in zip(self._parts, self._stacks, found, strict=True):
                stack_TP[number] += part.rows_of(gradient).flatten()

    def gramian(self) -> Tensor:
        """Inner products of the gradients, [T, T], by the rows of all ranks."""
        sums = map(add_up, self._stacks)
        return torch.stack([stack_TP @ stack_TP.T for stack_TP in sums]).sum(dim=0)

    def norms(self) -> Tensor:
        """Lengths of the gradients, [T], by the rows of all ranks."""
        sums = map(add_up, self._stacks)
        return torch.stack([stack_TP.square().sum(dim=1) for stack_TP in sums]).sum(dim=0).sqrt()

    def put(self, weights_T: Tensor) -> None:
        """Make the weighted sum of the gradients that of the shared parts, by this rank's rows."""
        for part, stack_TP in zip(self._parts, self._stacks, strict=True):
            part.replace_gradient(weights_T @ stack_TP)


def _reached(program: Program) -> dict[str, Tensor]:
    """By parameter outside of the towers: whether each task's logit depends on each of its rows, [T, R].

    Found on a copy with random parameters, for a gate or a projection that starts at zero hides what lies behind it.
    """
    probed = copy.deepcopy(program).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: parameter
        for name, parameter in probed.named_parameters()
        if parameter.requires_grad and not name.startswith(_HEADS)
    }
    with torch.no_grad():
        for parameter in probed.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim else 1
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    logits_BT: Tensor = probed(_random_blocks(program.layout, generator))
    by_task = [
        torch.autograd.grad(
            logit, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        for logit in logits_BT.sum(dim=0)
    ]
    return {
        name: torch.stack([_rows_with_gradient(found[number]) for found in by_task])
        for number, name in enumerate(parameters)
    }


def _rows_with_gradient(gradient: Tensor) -> Tensor:
    rows = gradient.shape[0] if gradient.ndim else 1
    return gradient.reshape(rows, -1).ne(0).any(dim=1)


def _random_blocks(layout: InputLayout, generator: torch.Generator) -> Blocks:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lengths_B1 = torch.arange(_PROBE_ROWS)[:, None] % (_PROBE_EVENTS + 1)
    valid_BL = torch.arange(_PROBE_EVENTS) < lengths_B1
    return Blocks(
        user_UI=normal(_PROBE_ROWS, layout.user_width),
        candidate_NI=normal(_PROBE_ROWS, layout.candidate_width),
        tokens={
            name: normal(_PROBE_ROWS, _PROBE_EVENTS, sequence.width) * valid_BL[..., None]
            for name, sequence in layout.sequences.items()
        },
        valid=dict.fromkeys(layout.sequences, valid_BL),
    )
