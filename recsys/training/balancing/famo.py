"""FAMO: weights under which all losses fall by the same share, learned from what a step did to them.

Axes: **T** tasks.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from recsys.balancing import FAMOConfig
from recsys.training.balancing.method import Learned, taking_part
from recsys.training.balancing.shared import SharedGradients, SharedPart
from recsys.training.objective import Loss

_EPSILON = 1e-8


class FAMO:
    """The gradient of sum_t z_t log L_t on shared parameters, z a softmax of learned logits (Liu et al., NeurIPS 2023).

    After each step the same batch's losses are computed again, and a task whose log-loss fell more than the others'
    loses weight. The weights on the gradients, proportional to z / L, sum to the number of tasks that take part, for
    all that is not shared gets the gradient of the sum; the experiment's weights multiply on top.
    """

    def __init__(
        self, config: FAMOConfig, *, parts: Sequence[SharedPart], task_weights_T: Tensor
    ) -> None:
        self._parts = parts
        self._task_weights_T = task_weights_T
        self.logits = Learned(torch.zeros_like(task_weights_T), lr=config.lr, decay=config.decay)
        self.weights_T = task_weights_T

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        # The losses are asked for first: with z / L known, one walk serves all tasks.
        self.weights_T = self._task_weights_T * self.factors(whole())
        gradients = SharedGradients(self._parts, losses=1)
        for share in shares:
            gradients.add((self.weights_T * share.by_task_T).sum(dim=0, keepdim=True))
            share.total.backward()  # type: ignore[no-untyped-call]
        gradients.put(torch.ones_like(self.weights_T[:1]))

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        before_T, after_T = (item.by_task_T.detach() + _EPSILON for item in (loss, repeat()))
        fallen_T = torch.log(before_T) - torch.log(after_T)
        z_T = self.mixture(loss)
        # The derivative of z . fallen by the logits of z.
        self.logits.step(z_T * (fallen_T - (z_T * fallen_T).sum()))

    def mixture(self, loss: Loss) -> Tensor:
        """z: on the simplex of the tasks that take part, 0 for the others; all 0 when none does."""
        part_T = taking_part(loss, self._task_weights_T)
        z_T = torch.softmax(self.logits.value_T, dim=0) * part_T
        return z_T / z_T.sum().clamp(min=_EPSILON)

    def factors(self, loss: Loss) -> Tensor:
        """The weights on the tasks' gradients without the experiment's own."""
        share_T = self.mixture(loss) / (loss.by_task_T.detach() + _EPSILON)
        part = taking_part(loss, self._task_weights_T).sum()
        return part * share_T / share_T.sum().clamp(min=_EPSILON)

    def state(self) -> dict[str, Tensor]:
        return self.logits.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.logits.load_state(state)
