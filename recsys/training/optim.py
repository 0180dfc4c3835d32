"""Dense optimizer, clipping and the one schedule that dense parameters and embedding tables share.

The tables' own optimizer (row-wise Adagrad, fused into the backward pass) belongs to the embedding backend; it gets its
learning rate from here and nothing else.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from recsys.experiment import OptimizerConfig
from recsys.ranks import add_up_all


class HasLearningRate(Protocol):
    """What an embedding backend offers to the schedule."""

    def set_learning_rate(self, learning_rate: float) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """Factor on every learning rate, a pure function of the step: nothing of it needs to be in a checkpoint."""

    warmup_steps: int
    total_steps: int
    decay: Literal["none", "linear", "cosine"]
    final_fraction: float

    def factor(self, step: int) -> float:
        """Factor for a step counted from 0: linear up to 1 over the warm-up, then down to `final_fraction`.

        The first warm-up step already moves (1 / warmup_steps), and the last step of training gets `final_fraction`.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "none":
            return 1.0
        span = max(1, self.total_steps - 1 - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        left = (
            1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        )
        return self.final_fraction + (1.0 - self.final_fraction) * left


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, but not to biases (stacked over experts or not) and gates.

    Pulling an output's bias to 0 would pull its base rate to one half, pulling a gate to 0 its mixture to uniform.
    """
    return (
        parameter.ndim >= 2 and "bias" not in name and "gate" not in name and "stitch" not in name
    )


class DenseOptimizer:
    """AdamW over dense parameters, named so that its state can be saved by name."""

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
    ) -> None:
        self._named = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self._clip_norm = config.clip_norm
        decayed = [item for name, item in self._named.items() if is_decayed(name, item)]
        others = [item for name, item in self._named.items() if not is_decayed(name, item)]
        groups = [
            {"params": parameters, "weight_decay": decay}
            for parameters, decay in ((decayed, config.weight_decay), (others, 0.0))
            if parameters
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.dense_lr, fused=True)

    def step(self, learning_rate: float) -> Tensor:
        """Add up over ranks, clip, update, drop the gradients; returns their global norm from before the clipping."""
        norm = self.gradient_norm()
        self.update(learning_rate, norm)
        return norm

    def gradient_norm(self) -> Tensor:
        """Add the gradients up over ranks; returns their global norm."""
        gradients = [item.grad for item in self._named.values() if item.grad is not None]
        add_up_all(gradients)
        return torch.nn.utils.get_total_norm(gradients)

    def update(self, learning_rate: float, norm: Tensor) -> None:
        """Clip by the norm that `gradient_norm` gave, update, drop the gradients."""
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._named.values(), self._clip_norm, norm)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients of a step that is not made."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and step counts as `<parameter>/<quantity>`; empty before the first step."""
        return {
            f"{name}/{quantity}": value
            for name, parameter in self._named.items()
            for quantity, value in self._adamw.state.get(parameter, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for key, value in state.items():
            name, _, quantity = key.rpartition("/")
            parameter = self._named[name]
            # As torch does: step counts stay on the parameter's device because the update is fused.
            self._adamw.state[parameter][quantity] = value.to(parameter.device)


class Optimizer:
    """One update of everything: the schedule for both rates, the dense step, and the tables' rate for the next step."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        embeddings: HasLearningRate,
        *,
        config: OptimizerConfig,
        total_steps: int,
    ) -> None:
        self.dense = DenseOptimizer(parameters, config)
        self._embeddings = embeddings
        self._config = config
        self._schedule = Schedule(
            config.warmup_steps, total_steps, config.decay, config.final_fraction
        )

    def dense_lr(self, step: int) -> float:
        return self._config.dense_lr * self._schedule.factor(step)

    def embedding_lr(self, step: int) -> float:
        return self._config.embedding_lr * self._schedule.factor(step)

    def before_backward(self, step: int) -> None:
        """Set the tables' rate: their update happens inside the backward pass that follows."""
        self._embeddings.set_learning_rate(self.embedding_lr(step))

    def after_backward(self, step: int, norm: Tensor) -> None:
        """Update the dense parameters, whose gradients have that norm."""
        self.dense.update(self.dense_lr(step), norm)
