"""Methods that combine the tasks' gradients of shared parameters: PCGrad, CAGrad, ConFIG.

Each result is a weighted sum of the tasks' gradients with weights that depend on their inner products alone, so each
method is a function from a T x T matrix to T numbers, and nothing of the parameters' size is computed but that matrix
and the sum. Towers, tables and tasks' own parameters keep the plain sum's gradient: rows of a table differ from batch
to batch, and T copies of its gradient would not fit.

Axes: **T** tasks.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.training.balancing.shared import SharedGradients, SharedPart
from recsys.training.objective import Loss

Matrix = NDArray[np.float64]
# Inner products are sums of float32 products: below this share of the largest they are rounding.
_RELATIVE_ACCURACY = 1e-6


class Surgery:
    """The sum's gradient everywhere but on shared parameters, where `combine` weighs the tasks' gradients.

    `combine(gramian_TT, step)` sees the gradients of weighted losses, those tasks left out that have none.
    """

    def __init__(
        self,
        parts: Sequence[SharedPart],
        combine: Callable[[Matrix, int], Matrix],
        *,
        task_weights_T: Tensor,
    ) -> None:
        self._parts = parts
        self._combine = combine
        self._task_weights_T = task_weights_T
        self.weights_T = task_weights_T

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        gradients = SharedGradients(self._parts, losses=len(self._task_weights_T))
        for share in shares:
            gradients.add(self._task_weights_T * share.by_task_T)
            share.total.backward()  # type: ignore[no-untyped-call]
        factors = combined(gradients.gramian().double().cpu().numpy(), step, self._combine)
        factors_T = torch.from_numpy(factors).to(self._task_weights_T)
        self.weights_T = self._task_weights_T * factors_T
        gradients.put(factors_T)

    def after_step(self, loss: Loss, step: int, repeat: Callable[[], Loss]) -> None:
        return

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        assert not state


def combined(gramian_TT: Matrix, step: int, combine: Callable[[Matrix, int], Matrix]) -> Matrix:
    """`combine` over the tasks that have a gradient; 1 for the others, and for all when fewer than two have one.

    A matrix that is not finite gives weights that are not, so that the loop stops as it does for any such gradient.
    """
    if not np.isfinite(gramian_TT).all():
        return np.full(len(gramian_TT), np.nan)
    weights_T = np.ones(len(gramian_TT))
    present = np.flatnonzero(np.diag(gramian_TT) > 0)
    if len(present) > 1:
        weights_T[present] = combine(gramian_TT[np.ix_(present, present)], step)
    return weights_T


def pcgrad(gramian_TT: Matrix, random: np.random.Generator) -> Matrix:
    """Each gradient less its projections on those it conflicts with, in random order, summed.

    Yu et al., NeurIPS 2020, algorithm 1.
    """
    tasks = len(gramian_TT)
    weights_TT = np.eye(tasks)
    for own_T in weights_TT:
        for other in random.permutation(tasks):
            product = own_T @ gramian_TT[other]
            if product < 0:
                own_T[other] -= product / gramian_TT[other, other]
    return np.asarray(weights_TT.sum(axis=0))


def cagrad(gramian_TT: Matrix, radius: float) -> Matrix:
    """T times the direction near the mean gradient that serves the worst-off task best; the sum for a radius of 0.

    Liu et al., NeurIPS 2021: g_0 + c |g_0| g_w / |g_w|, where w on the simplex minimises g_w.g_0 + c |g_0| |g_w|, over
    1 + c^2. T times it, as the authors' code does, for all that is not shared gets the gradient of the sum.
    """
    from scipy.optimize import minimize

    tasks = len(gramian_TT)
    mean_T = np.full(tasks, 1.0 / tasks)
    scaled_TT = gramian_TT / np.diag(gramian_TT).max()
    to_mean_T = scaled_TT @ mean_T
    length = radius * np.sqrt(max(mean_T @ to_mean_T, 0.0))

    def worst(w_T: Matrix) -> tuple[float, Matrix]:
        norm = np.sqrt(max(w_T @ scaled_TT @ w_T, _RELATIVE_ACCURACY**2))
        return float(w_T @ to_mean_T + length * norm), to_mean_T + length * scaled_TT @ w_T / norm

    found = minimize(
        worst,
        mean_T,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * tasks,
        constraints={
            "type": "eq",
            "fun": lambda w_T: w_T.sum() - 1.0,
            "jac": lambda w_T: np.ones(tasks),
        },
        options={"ftol": 1e-12, "maxiter": 200},
    )
    w_T = np.clip(found.x, 0.0, None)
    w_T /= w_T.sum()
    norm = np.sqrt(max(w_T @ scaled_TT @ w_T, 0.0))
    if norm > _RELATIVE_ACCURACY:
        mean_T = mean_T + length * w_T / norm
    # Else some mixture of the gradients vanishes: no direction serves every task, and the mean is as good as any.
    return np.asarray(tasks * mean_T / (1.0 + radius**2))


def config(gramian_TT: Matrix) -> Matrix:
    """The direction of equal cosines with all gradients, as long as their projections on it together.

    ConFIG (Liu et al., ICLR 2025, eq. 2): pinv(U) 1 for the rows U of unit gradients, here through U U^T, which has T
    rows. Where no direction has a positive product with all of them, opposite gradients cancel.
    """
    norms_T = np.sqrt(np.diag(gramian_TT))
    cosines_TT = gramian_TT / np.outer(norms_T, norms_T)
    units_T = np.linalg.pinv(cosines_TT, rcond=_RELATIVE_ACCURACY, hermitian=True).sum(axis=1)
    cosines_T = cosines_TT @ units_T
    squared = units_T @ cosines_T
    if squared <= _RELATIVE_ACCURACY:
        return np.zeros(len(gramian_TT))
    return np.asarray((norms_T @ cosines_T) / squared * units_T / norms_T)
