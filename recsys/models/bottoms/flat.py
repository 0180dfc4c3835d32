"""Everything side by side: the input of every task is one concatenation.

Axes: **U** users, **N** candidates, **L** events, **K** width of one event, **I** input width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from recsys.models.inputs import Blocks, InputLayout, SequenceLayout
from recsys.models.owners import Axis, Owned
from recsys.models.stages import StageConfig


class Flat(nn.Module):
    """One concatenation [N, I]: user block and pooled sequences, then candidate block and each sequence's match.

    User-side parts come first and are computed once a user, so that a server may multiply them into the next layer
    once a request.
    """

    class Config(StageConfig):
        """`sequence`: how a sequence enters.

        `mean` of its events; `mean_and_product`: also, where it has a target, the product of the mean and the
        candidate's vector, dimension by dimension; `target_attention`: also a sum of events weighted by their
        similarity to the candidate (DIN, Zhou et al., KDD 2018, with a scaled dot product).
        """

        kind: Literal["flat"] = "flat"
        sequence: Literal["mean", "mean_and_product", "target_attention"] = "mean_and_product"

    def __init__(self, config: Config, *, layout: InputLayout, tasks: int) -> None:
        super().__init__()
        self._layout = layout
        self._sequences = tuple(layout.sequences.values())
        matched = (
            [item for item in self._sequences if item.targets] if config.sequence != "mean" else []
        )
        self.products = tuple(matched)
        # A list: a dictionary of modules refuses names such as `items`.
        self.attention = nn.ModuleList(
            TargetAttention(item) for item in matched if config.sequence == "target_attention"
        )
        self.width = (
            layout.user_width
            + layout.candidate_width
            + sum(item.width for item in self._sequences)
            + sum(_target_width(item) for item in self.products)
            + sum(item.width for item in matched if config.sequence == "target_attention")
        )

    def forward(self, blocks: Blocks) -> Tensor:
        pooled = {
            item.name: mean_of_events(blocks.tokens[item.name], blocks.valid[item.name])
            for item in self._sequences
        }
        parts: list[Tensor] = []
        if self._layout.user_width or pooled:
            parts.append(blocks.rows_of(torch.cat([blocks.user_UI, *pooled.values()], dim=1)))
        parts.append(blocks.candidate_NI)
        for item in self.products:
            parts += _products(item, blocks.rows_of(pooled[item.name]), blocks.candidate_NI)
        parts += [attention(blocks) for attention in self.attention]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        return {}

    @staticmethod
    def parameter_count(config: Config, *, layout: InputLayout, tasks: int) -> int:
        """None but the attention's: K_t^2 per sequence with a target of K_t columns in all."""
        if config.sequence != "target_attention":
            return 0
        return sum(_target_width(item) ** 2 for item in layout.sequences.values())


class TargetAttention(nn.Module):
    """Events weighted by a softmax over their similarity to the candidate, [N, K]; zeros for no events."""

    def __init__(self, layout: SequenceLayout) -> None:
        super().__init__()
        self._layout = layout
        width = _target_width(layout)
        self.query = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.query.weight)

    def forward(self, blocks: Blocks) -> Tensor:
        tokens_NLK = blocks.rows_of(blocks.tokens[self._layout.name])
        valid_NL = blocks.rows_of(blocks.valid[self._layout.name])
        candidate = torch.cat(
            [item.of(blocks.candidate_NI) for item in self._layout.targets.values()], dim=1
        )
        keys = torch.cat(
            [self._layout.tokens[token].of(tokens_NLK) for token in self._layout.targets], dim=2
        )
        scores_NL = (keys * self.query(candidate)[:, None]).sum(dim=2) / keys.shape[2] ** 0.5
        # A row without events must not divide by zero: its softmax is uniform and then masked to nothing.
        weights_NL = scores_NL.masked_fill(~valid_NL, -1e4).softmax(dim=1) * valid_NL
        attended_NK: Tensor = (weights_NL[:, :, None] * tokens_NLK).sum(dim=1)
        return attended_NK


def mean_of_events(tokens_ULK: Tensor, valid_UL: Tensor) -> Tensor:
    """The mean of each user's events, [U, K]; zeros for a user without any. Relies on zeros after the last event."""
    count_U1 = valid_UL.sum(dim=1, keepdim=True).clamp(min=1)
    return tokens_ULK.sum(dim=1) / count_U1


def _products(layout: SequenceLayout, pooled_NK: Tensor, candidate_NI: Tensor) -> list[Tensor]:
    return [
        layout.tokens[token].of(pooled_NK) * target.of(candidate_NI)
        for token, target in layout.targets.items()
    ]


def _target_width(layout: SequenceLayout) -> int:
    return sum(item.width for item in layout.targets.values())
