"""What a balancing method is to the training loop, and the method that balances nothing.

Axes: **T** tasks.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from recsys.training.objective import Loss


class Balance(Protocol):
    """How tasks' losses become gradients. Its state is all that a checkpoint needs to go on bit for bit.

    `weights_T` is what the latest step multiplied each task's loss, or its gradient of shared parameters, with.
    """

    weights_T: Tensor

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        """Fill the gradients of all dense parameters; exactly one backward pass of each share reaches its blocks.

        Shares are a batch's parts, or the batch, and add up to its loss. Each is computed when it is asked for, so one
        is gone back through before the next. `whole`, which is asked before the first, computes the batch's loss: a
        second forward pass where there are parts. Of several ranks each fills in its rows' part of the gradients;
        `whole` is of the rows of all.
        """

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        """Learn from the step. `repeat` computes the same batch's loss with the parameters it led to."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Plain:
    """The weighted sum's own gradient."""

    def __init__(self, task_weights_T: Tensor) -> None:
        self.weights_T = task_weights_T

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        for share in shares:
            share.total.backward()  # type: ignore[no-untyped-call]

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        return

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        assert not state


class Learned:
    """One number a task, learned by an Adam of its own: the model's rates, decay and clipping do not touch it.

    `value_T` is a view: changing it in place changes the numbers.
    """

    def __init__(self, initial_T: Tensor, *, lr: float, decay: float = 0.0) -> None:
        self._parameter = nn.Parameter(initial_T.clone())
        self.value_T = self._parameter.detach()
        self._adam = torch.optim.Adam([self._parameter], lr=lr, weight_decay=decay)

    def step(self, gradient_T: Tensor) -> None:
        self._parameter.grad = gradient_T
        self._adam.step()
        self._parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The numbers and, from the first step on, Adam's moments and count."""
        moments: dict[str, Tensor] = self._adam.state.get(self._parameter, {})
        return {"value": self.value_T} | moments

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        moments = dict(state)
        self.value_T.copy_(moments.pop("value"))
        # The count stays on the CPU, where an Adam that is not fused keeps it.
        device = self._parameter.device
        self._adam.state[self._parameter] = {
            name: value if name == "step" else value.to(device) for name, value in moments.items()
        }


def taking_part(loss: Loss, task_weights_T: Tensor) -> Tensor:
    """Which tasks a step is about: those with a weight and with observed rows in the batch, [T] bool."""
    return (loss.weight_T > 0) & (task_weights_T > 0)
