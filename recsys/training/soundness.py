"""Whether a step's loss and gradients are finite, and what keeps a step that is not from leaving a trace.

Tables update themselves inside the backward pass, before the norm of the dense gradients is known. So all gradients
that are on their way to tables pass one gate, behind which every table lies: it looks at them together, over all
ranks, and lets zeros through in their place unless all are finite. An update by zeros changes no row and no sum, except
by Adam. Dense parameters wait for the verdict anyway. What is left is a step whose loss or dense gradients alone are
not finite, and Adam: its tables have been updated, and the training goes back to its last checkpoint.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recsys.errors import TrainingError
from recsys.models import RankingModel
from recsys.models.embeddings.updates import TableOptimizer
from recsys.models.inputs import Blocks
from recsys.ranks import add_up, on_first, to_first
from recsys.run import RunDirectory
from recsys.training.checkpoint import random_state, set_random_state

# Rows of a table that are looked at together: bounds memory.
_ROWS = 1_000_000


class Soundness:
    """Watches the steps of a model. A step begins with `begin` and is judged, once, after its backward pass."""

    def __init__(self, model: RankingModel, optimizer: TableOptimizer) -> None:
        """`optimizer` is the tables'."""
        stored = model.program.state_dict().keys()
        buffers = dict(model.program.named_buffers())
        self._buffers = [buffer for name, buffer in buffers.items() if name in stored]
        self._gate = _Gate()
        # Adam's moments of earlier steps move rows whose gradient is zero.
        self._zeros_leave_no_trace = optimizer != "adam"
        # Not in the model: an evaluation and an export know nothing of steps.
        model.embeddings.register_forward_hook(self._gate.put_before)
        self._begun: tuple[dict[str, Tensor], list[Tensor]] = ({}, [])

    def begin(self) -> None:
        """Remember what a forward pass changes: generators and running statistics."""
        self._gate.norms.clear()
        self._begun = random_state(), [buffer.clone() for buffer in self._buffers]

    def is_sound(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the loss, the dense gradients of that norm and all that reached tables are finite."""
        # One look at the device a step: a sum is finite only if its terms are.
        terms = torch.stack([loss.detach().float(), norm.float(), *self._gate.norms])
        return bool(torch.isfinite(terms.sum()))

    def tables_are_touched(self) -> bool:
        """Whether a step that is not sound has updated tables."""
        let_through = [norm for norm in self._gate.norms if bool(torch.isfinite(norm))]
        return bool(let_through if self._zeros_leave_no_trace else self._gate.norms)

    def undo(self) -> None:
        """Leave generators and running statistics as if the step's batch had not been there."""
        state, values = self._begun
        set_random_state(state)
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


def require_finite(
    run: RunDirectory,
    model: RankingModel,
    optimizer: Mapping[str, Tensor],
    balance: Mapping[str, Tensor],
    *,
    step: int,
) -> None:
    """Raise TrainingError, on all ranks, where a number that a checkpoint would hold is not finite on one."""
    found = to_first(_not_finite(model, optimizer, balance))
    name = on_first(lambda: next((name for name in found if name), ""))
    if name:
        raise TrainingError(
            f"step {step}: {name} is not finite in places, so no checkpoint is written; lower the learning rates, then "
            f"train again; checkpoints under {run.checkpoints} are from before"
        )


def _not_finite(
    model: RankingModel, optimizer: Mapping[str, Tensor], balance: Mapping[str, Tensor]
) -> str:
    """The first tensor that is not; an empty text when all are."""
    named = {f"parameter {name!r}": item for name, item in model.program.state_dict().items()}
    named |= {f"AdamW's {name!r}": item for name, item in optimizer.items()}
    named |= {f"the balancing method's {name!r}": item for name, item in balance.items()}
    for part in model.embeddings.tables.parts():
        named[f"table {part.table!r}"] = part.weight_RK
        named |= {f"the {name} of table {part.table!r}": item for name, item in part.state.items()}
    for name, tensor in named.items():
        for piece in torch.split(tensor, _ROWS) if tensor.ndim else (tensor,):
            if not bool(torch.isfinite(piece).all()):
                return name
    return ""


class _Gate:
    """The gradients' way from the program to the tables. `norms` are those of the passes of this step."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []

    def put_before(self, module: nn.Module, arguments: Any, blocks: Blocks) -> Blocks:
        """The same blocks, which the gradients reach through the gate; a forward hook of the embeddings."""
        learned = {name: block for name, block in _named(blocks).items() if block.requires_grad}
        if not learned:
            return blocks
        passed = _Pass.apply(self, *learned.values())  # type: ignore[no-untyped-call]
        named = _named(blocks) | dict(zip(learned, passed, strict=True))
        tokens = {name: named[f"tokens.{name}"] for name in blocks.tokens}
        return replace(
            blocks, user_UI=named["user_UI"], candidate_NI=named["candidate_NI"], tokens=tokens
        )


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: _Gate, *blocks: Tensor) -> Any:
        ctx.gate = gate
        ctx.set_materialize_grads(False)
        return tuple(block.view_as(block) for block in blocks)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # The norm of what overflows when it is squared, as Adagrad does, is not finite either.
        norm = add_up(
            torch.nn.utils.get_total_norm([item for item in gradients if item is not None])
        )
        ctx.gate.norms.append(norm)
        finite = torch.isfinite(norm)
        if not finite.is_cuda and bool(finite):
            return None, *gradients
        return None, *(
            None if item is None else torch.where(finite, item, torch.zeros_like(item))
            for item in gradients
        )


def _named(blocks: Blocks) -> dict[str, Tensor]:
    tokens = {f"tokens.{name}": item for name, item in blocks.tokens.items()}
    return {"user_UI": blocks.user_UI, "candidate_NI": blocks.candidate_NI} | tokens
