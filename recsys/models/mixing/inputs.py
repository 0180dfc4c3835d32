"""The two shapes a mixing stage accepts: one input for all tasks [B, I], or one a task [B, T, I]."""

from torch import Tensor


def shared_input(x: Tensor) -> Tensor:
    """[B, I]: what experts and gates that all tasks share read; the mean over tasks where each has an input of its own.

    Equal inputs for all tasks then give what the one input gives.
    """
    return x if x.dim() == 2 else x.mean(dim=1)
