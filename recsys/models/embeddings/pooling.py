"""From the rows of a batch's ids to one vector a bag, or to a grid of events.

Axes: **B** rows of the batch, **N** ids, **K** embedding width, **L** events.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_pool(
    rows_NK: Tensor, weights_N: Tensor, *, lengths_B: Tensor, pooling: Literal["mean", "sum"]
) -> Tensor:
    """Per bag the sum of w * e or, for a mean, that over the sum of w; zeros where all weights are 0. [B, K]."""
    if pooling == "mean":
        weights_N = _shares(weights_N, lengths_B)
    # The rows are looked up already: a second lookup, in them and in order, weighs and sums without atomics.
    return F.embedding_bag(
        torch.arange(len(rows_NK), device=rows_NK.device),
        rows_NK,
        lengths_B.long().cumsum(0) - lengths_B,
        mode="sum",
        per_sample_weights=weights_N,
    )


def _shares(weights_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Each weight over its bag's total, 0 where that is 0. In float64: totals of large float32 stay finite."""
    row_N = torch.repeat_interleave(
        torch.arange(len(lengths_B), device=lengths_B.device), lengths_B
    )
    total_B = weights_N.new_zeros(len(lengths_B), dtype=torch.float64)
    total_N = total_B.index_add_(0, row_N, weights_N.double())[row_N]
    return torch.where(total_N > 0, weights_N / total_N, 0.0).float()


def pad(events_NK: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Events as [B, L, K], left-aligned with zeros after the last, and the mask [B, L]; L >= 1."""
    longest = max(1, int(lengths_B.max())) if len(lengths_B) else 1
    valid_BL = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
    position_N = valid_BL.flatten().nonzero().squeeze(1)
    width = events_NK.shape[1]
    grid = events_NK.new_zeros(valid_BL.numel(), width)
    grid.index_copy_(0, position_N, events_NK)
    return grid.view(*valid_BL.shape, width), valid_BL
