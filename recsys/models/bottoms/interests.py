"""What a user's sequences say about each task's interests: a shared transformer whose LayerNorms each task conditions.

Axes: **U** users, **N** candidates, **T** tasks, **S** sequences, **L** events, **K** width of an event, **J**
LayerNorms, **H** hidden width. T is 1 where all tasks are alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.inputs import Blocks

# LayerNorms of the transformer's block.
NORMS = 2


class ConditionalNorms(nn.Module):
    """Scale and shift of every LayerNorm from a task's and a sequence's embedding: [T, S, J, 2, K].

    A hypernetwork of one hidden layer reads the two embeddings side by side, at norm 1, so that its outputs do not
    scale with them; the scale is 1 plus its output. Its last layer starts at zero: at first tasks are alike.
    """

    def __init__(
        self,
        width: int,
        *,
        tasks: int,
        sequences: int,
        task_width: int,
        sequence_width: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.width = width
        self.task_embedding = nn.Parameter(torch.randn(tasks, task_width))
        self.sequence_embedding = nn.Parameter(torch.randn(sequences, sequence_width))
        self.inner = linear(task_width + sequence_width, hidden)
        self.outer = linear(hidden, NORMS * 2 * width)
        nn.init.zeros_(self.outer.weight)

    def forward(self) -> Tensor:
        tasks, sequences = self.task_embedding.shape[0], self.sequence_embedding.shape[0]
        pairs = [
            self.task_embedding[:, None].expand(-1, sequences, -1),
            self.sequence_embedding.expand(tasks, -1, -1),
        ]
        condition_TSC = F.normalize(torch.cat(pairs, dim=2), dim=2)
        delta_TSX: Tensor = self.outer(torch.relu(self.inner(condition_TSC))).float()
        return _around_one(delta_TSX.view(tasks, sequences, NORMS, 2, self.width))

    @staticmethod
    def parameter_count(
        width: int,
        *,
        tasks: int,
        sequences: int,
        task_width: int,
        sequence_width: int,
        hidden: int,
    ) -> int:
        """T * d_t + S * d_b + (d_t + d_b + 1) * H + (H + 1) * J * 2 * K."""
        embeddings = tasks * task_width + sequences * sequence_width
        inner = (task_width + sequence_width + 1) * hidden
        return embeddings + inner + (hidden + 1) * NORMS * 2 * width


class CommonNorms(nn.Module):
    """Scale and shift of ordinary LayerNorms, the same for every task and sequence: [1, S, J, 2, K]."""

    def __init__(self, width: int, *, sequences: int) -> None:
        super().__init__()
        self.sequences = sequences
        self.delta = nn.Parameter(torch.zeros(1, 1, NORMS, 2, width))

    def forward(self) -> Tensor:
        return _around_one(self.delta.expand(-1, self.sequences, -1, -1, -1))

    @staticmethod
    def parameter_count(width: int) -> int:
        """J * 2 * K."""
        return NORMS * 2 * width


class ConditionalTransformer(nn.Module):
    """One post-norm block over a sequence's events, a result a task: [U, L, K] -> [U, T, L, K].

    ```
    a  = norm_1(y + attention(y))        norms with the task's and the sequence's own scale and shift
    y' = norm_2(a + W_4 relu(W_3 a))     all other weights are shared by tasks and sequences
    ```

    Nothing before the first norm's scale and shift depends on the task, so that attention and the normalised events are
    computed once. What stands behind a user's last event meets no other event, and means nothing.
    """

    def __init__(self, width: int, *, attention_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        assert width % attention_heads == 0
        self.attention_heads = attention_heads
        self.dropout = dropout
        self.query_key_value = linear(width, 3 * width)
        self.attended = linear(width, width)
        self.inner = linear(width, hidden)
        self.outer = linear(hidden, width)

    def forward(self, events_ULK: Tensor, valid_UL: Tensor, norms_TJ2K: Tensor) -> Tensor:
        attended_ULK = self._drop(self._attention(events_ULK, valid_UL))
        core_ULK = _normalized(events_ULK + attended_ULK)
        first_UTLK = _modulated(core_ULK[:, None], norms_TJ2K[:, 0])
        fed_UTLK = self._drop(self.outer(torch.relu(self.inner(first_UTLK))))
        return _modulated(_normalized(first_UTLK + fed_UTLK), norms_TJ2K[:, 1])

    @staticmethod
    def parameter_count(width: int, *, hidden: int) -> int:
        """4 K^2 + 4 K of the attention, 2 K H + H + K of the feed-forward."""
        return 4 * width * (width + 1) + (width + 1) * hidden + (hidden + 1) * width

    def _attention(self, events_ULK: Tensor, valid_UL: Tensor) -> Tensor:
        """Multi-head self-attention; no event attends to padding."""
        users, length, width = events_ULK.shape
        heads = self.attention_heads
        split = self.query_key_value(events_ULK).view(users, length, 3, heads, width // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores_UALL = query @ key.transpose(2, 3) * (width / heads) ** -0.5
        weights_UALL = _masked_softmax(scores_UALL, valid_UL[:, None, None])
        mixed_UALK = weights_UALL.to(value.dtype) @ value
        out_ULK: Tensor = self.attended(mixed_UALK.transpose(1, 2).flatten(2))
        return out_ULK

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h


class TargetPooling(nn.Module):
    """Events weighted by an MLP of the candidate and each event, [N, T, K]; zeros for no events.

    The weights are softmax(v relu(W [q; y; q - y; q * y] + b)) over events: DIN's activation unit (Zhou et al., KDD
    2018), here under a softmax and shared by tasks and sequences.
    """

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.inner = linear(4 * width, hidden)
        # Without a bias, which a softmax would not see.
        self.outer = linear(hidden, 1, bias=False)

    def forward(
        self, events_UTLK: Tensor, valid_UL: Tensor, *, candidate_NK: Tensor, blocks: Blocks
    ) -> Tensor:
        # W [q; y; q - y; q * y] by its parts: the user's once a user, the candidate's once a candidate.
        on_query, on_event, on_gap, on_product = torch.split(self.inner.weight, self.width, dim=1)
        user_UTLH = F.linear(events_UTLK, on_event - on_gap)
        own_NH = F.linear(candidate_NK, on_query + on_gap, self.inner.bias)
        events_NTLK = blocks.rows_of(events_UTLK)
        product_NTLH = F.linear(events_NTLK * candidate_NK[:, None, None], on_product)
        h_NTLH = torch.relu(blocks.rows_of(user_UTLH) + own_NH[:, None, None] + product_NTLH)
        scores_NTL = self.outer(h_NTLH)[..., 0]
        valid_N1L = blocks.rows_of(valid_UL)[:, None]
        weights_NTL = _masked_softmax(scores_NTL, valid_N1L) * valid_N1L
        return (weights_NTL[..., None] * events_NTLK).sum(dim=2)

    @staticmethod
    def parameter_count(width: int, *, hidden: int) -> int:
        """(4 K + 1) * H + H."""
        return (4 * width + 1) * hidden + hidden


def mean_pooling(events_UTLK: Tensor, valid_UL: Tensor) -> Tensor:
    """The mean of each user's events, [U, T, K]; zeros for a user without any."""
    count_U11 = valid_UL.sum(dim=1).clamp(min=1)[:, None, None]
    return (events_UTLK * valid_UL[:, None, :, None]).sum(dim=2) / count_U11


def linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A layer that starts as all of a tower's do: Xavier-uniform, bias 0."""
    layer = nn.Linear(width, out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _around_one(delta: Tensor) -> Tensor:
    """Scale and shift [..., 2, K] of their distances from 1 and 0."""
    return torch.stack([1 + delta[..., 0, :], delta[..., 1, :]], dim=-2)


def _normalized(h: Tensor) -> Tensor:
    """Each event's mean taken away and its deviation divided out."""
    return F.layer_norm(h, h.shape[-1:])


def _modulated(core: Tensor, norm_T2K: Tensor) -> Tensor:
    """[U, T, L, K]: normalised events under each task's scale and shift."""
    # One scale an event: gradients then sum over users first, then over events. Summing over both sides of the tasks'
    # axis at once takes ten times as long.
    norm_T2LK = norm_T2K[:, :, None].expand(-1, -1, core.shape[-2], -1)
    return core * norm_T2LK[:, 0] + norm_T2LK[:, 1]


def _masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the last axis, exactly 0 where not valid; uniform where nothing is. Float32 under autocast too."""
    lowest = torch.finfo(torch.float32).min
    return scores.float().masked_fill(~valid, lowest).softmax(dim=-1)
