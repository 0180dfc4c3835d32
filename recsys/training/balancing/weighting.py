"""Methods that weigh the tasks' losses: one backward pass of one weighted sum, for every parameter and table.

The experiment's own weights multiply on top: they say what matters, the method evens out scales and speeds. From a
batch without observed rows of a task nothing is learned of that task.

Axes: **T** tasks.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recsys.balancing import DWAConfig, GradNormConfig, UncertaintyConfig
from recsys.training.balancing.method import Learned, taking_part
from recsys.training.balancing.shared import SharedGradients, SharedPart
from recsys.training.objective import Loss

# GradNorm moves weights by steps of either sign: one that passed 0 would unlearn its task.
_LEAST_WEIGHT = 0.01


class Uncertainty:
    """Sum of exp(-s)/2 * L + s/2 with a learned log-variance s a task (Kendall et al., CVPR 2018).

    Left alone, exp(s) follows L, and all tasks count alike whatever the scale of their losses. The loss of a rare task
    may be so small that s would fall for ever: it stays within the limit.
    """

    def __init__(self, config: UncertaintyConfig, *, task_weights_T: Tensor) -> None:
        self._limit = config.limit
        self._task_weights_T = task_weights_T
        self.log_variance = Learned(torch.zeros_like(task_weights_T), lr=config.lr)
        self.weights_T = self._weights()

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        self.weights_T = self._weights()
        for share in shares:
            _backward(share, self.weights_T)

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        s_T = self.log_variance.value_T
        slope_T = 0.5 * (1.0 - torch.exp(-s_T) * loss.by_task_T.detach())
        self.log_variance.step(
            torch.where(taking_part(loss, self._task_weights_T), slope_T, torch.zeros_like(slope_T))
        )
        s_T.clamp_(-self._limit, self._limit)

    def state(self) -> dict[str, Tensor]:
        return self.log_variance.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.log_variance.load_state(state)

    def _weights(self) -> Tensor:
        return self._task_weights_T * 0.5 * torch.exp(-self.log_variance.value_T)


class DWA:
    """Dynamic weight average: T * softmax of each task's latest loss ratio (Liu et al., CVPR 2019, eq. 7).

    The ratio is that of the mean losses of the two periods before; until there are two, all tasks weigh 1.
    """

    def __init__(self, config: DWAConfig, *, task_weights_T: Tensor, steps_per_epoch: int) -> None:
        self._temperature = config.temperature
        self._every = config.every or steps_per_epoch
        self._task_weights_T = task_weights_T
        zeros_T = torch.zeros_like(task_weights_T, dtype=torch.float64)
        # Of the present period: losses times the weight of their rows, and that weight. Of the two before it: means.
        self._sum_T, self._weight_T = zeros_T.clone(), zeros_T.clone()
        self._means_2T = torch.stack([zeros_T, zeros_T])
        self.weights_T = task_weights_T

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        self.weights_T = self._task_weights_T * self.factors(step)
        for share in shares:
            _backward(share, self.weights_T)

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        self._sum_T += loss.by_task_T.detach() * loss.weight_T.clamp(min=1.0)
        self._weight_T += loss.weight_T
        if (step + 1) % self._every:
            return
        mean_T = self._sum_T / self._weight_T.clamp(min=1.0)
        self._means_2T = torch.stack([self._means_2T[1], mean_T])
        self._sum_T.zero_()
        self._weight_T.zero_()

    def factors(self, step: int) -> Tensor:
        """The tasks' weights without the experiment's own, in a step; they sum to T."""
        if step < 2 * self._every:
            return torch.ones_like(self._task_weights_T)
        older_T, newer_T = self._means_2T
        known_T = (older_T > 0) & (newer_T > 0)
        ratio_T = torch.where(known_T, newer_T / older_T, torch.ones_like(newer_T))
        return len(ratio_T) * torch.softmax(ratio_T / self._temperature, dim=0).float()

    def state(self) -> dict[str, Tensor]:
        return {"sum": self._sum_T, "weight": self._weight_T, "means": self._means_2T}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._sum_T.copy_(state["sum"])
        self._weight_T.copy_(state["weight"])
        self._means_2T.copy_(state["means"])


class GradNorm:
    """Weights that sum to T and even out the tasks' gradient norms on the last shared layer (Chen et al., ICML 2018).

    They follow the signs of eq. 2: a task whose weighted norm is above the mean norm times r^alpha loses weight, with
    r its loss against its first one, relative to the other tasks.
    """

    def __init__(
        self, config: GradNormConfig, *, task_weights_T: Tensor, last_layer: SharedPart
    ) -> None:
        self._alpha = config.alpha
        self._task_weights_T = task_weights_T
        self._layer = last_layer
        self.factor = Learned(torch.ones_like(task_weights_T), lr=config.lr)
        self._first_T = torch.zeros_like(task_weights_T)
        self._norms_T = torch.zeros_like(task_weights_T)
        self.weights_T = task_weights_T

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        self.weights_T = self._task_weights_T * self.factor.value_T
        gradients = SharedGradients([self._layer], losses=len(self.weights_T))
        for share in shares:
            gradients.add(share.by_task_T)
            _backward(share, self.weights_T)
        self._norms_T = gradients.norms()

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        part_T = taking_part(loss, self._task_weights_T) & (loss.by_task_T.detach() > 0)
        losses_T = loss.by_task_T.detach()
        fresh_T = part_T & (self._first_T == 0)
        self._first_T = torch.where(fresh_T, losses_T, self._first_T)
        rate_T = torch.where(part_T, losses_T / self._first_T, torch.zeros_like(losses_T))
        weighted_T = self.factor.value_T * self._norms_T
        aim_T = _mean(weighted_T, part_T) * (rate_T / _mean(rate_T, part_T)) ** self._alpha
        slope_T = torch.sign(weighted_T - aim_T) * self._norms_T
        self.factor.step(torch.where(part_T, slope_T, torch.zeros_like(slope_T)))
        value_T = self.factor.value_T.clamp_(min=_LEAST_WEIGHT)
        value_T.mul_(len(value_T) / value_T.sum())

    def state(self) -> dict[str, Tensor]:
        return self.factor.state() | {"first": self._first_T}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._first_T.copy_(state["first"])
        self.factor.load_state({name: item for name, item in state.items() if name != "first"})


def _backward(share: Loss, weights_T: Tensor) -> None:
    (weights_T * share.by_task_T).sum().backward()  # type: ignore[no-untyped-call]


def _mean(values_T: Tensor, part_T: Tensor) -> Tensor:
    """The mean over the tasks that take part; 1 where none does."""
    total = torch.where(part_T, values_T, torch.zeros_like(values_T)).sum()
    return torch.where(part_T.any(), total / part_T.sum().clamp(min=1), torch.ones_like(total))
