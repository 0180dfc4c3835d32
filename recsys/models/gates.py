"""Gates: how much of each expert a mixture takes.

Axes: **B** rows, **G** gates, **E** experts, **I** input width, **H** expert width, **T** tasks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.owners import Axis, Owned, along

# Deviation of a gate's initial kernel: near-uniform gates at step 0 keep diagnostics readable.
_GATE_DEVIATION = 0.01


class Gates(nn.Module):
    """One softmax gate a task over E experts: [B, I] shared or [B, T, I] each its own -> [B, T, E], rows sum to 1.

    MMoE (Ma et al., KDD 2018, eq. 7): softmax(W_t x), no bias. `hidden` puts an MLP of its own before each task's
    projection. `dropout` zeroes entries in training and renormalises the survivors; a row that loses all keeps all.
    """

    def __init__(
        self,
        width: int,
        *,
        tasks: int,
        experts: int,
        hidden: tuple[int, ...] = (),
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.dropout = dropout
        self.trunk = ExpertBank(width, hidden, experts=tasks) if hidden else None
        self.weight = nn.Parameter(torch.empty(tasks, experts, hidden[-1] if hidden else width))
        self.bias = nn.Parameter(torch.zeros(tasks, experts)) if bias else None
        nn.init.normal_(self.weight, std=_GATE_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        if self.trunk is not None:
            x = self.trunk(x)
        # float32 under autocast too: rows that do not sum to 1 would scale the mixture.
        gate_BTE = softmax_of_choices(self._scores(x))
        return _dropped(gate_BTE, self.dropout) if self.training else gate_BTE

    @staticmethod
    def parameter_count(
        width: int, *, tasks: int, experts: int, hidden: tuple[int, ...] = (), bias: bool = False
    ) -> int:
        """T * (M(width; hidden) + h * E), plus T * E if biased."""
        trunk = ExpertBank.parameter_count(width, hidden, experts=tasks)
        return trunk + tasks * experts * ((hidden[-1] if hidden else width) + bias)

    def _scores(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            bias = None if self.bias is None else self.bias.flatten()
            scores = F.linear(x, self.weight.flatten(0, 1), bias)
            return scores.view(x.shape[0], *self.weight.shape[:2])
        scores_TBE = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2))
        scores_BTE = scores_TBE.transpose(0, 1)
        return scores_BTE if self.bias is None else scores_BTE + self.bias


class SelectiveGates(nn.Module):
    """Gates that each choose among experts of their own: -> [B, G, E], rows sum to 1, exactly 0 elsewhere.

    Gate g has a kernel [len(choices[g]), I] and reads x [B, I], or its own of several inputs, x[:, inputs[g]] of
    [B, S, I]. `weight` [C, I] stacks the kernels of all gates. A `sigmoid` gate weighs each choice by itself, in
    (0, 1), instead of by a softmax over all of the gate's.
    """

    choices_index: Tensor

    def __init__(
        self,
        width: int,
        *,
        choices: Sequence[Sequence[int]],
        experts: int,
        inputs: Sequence[int],
        bias: bool = False,
        dropout: float = 0.0,
        squash: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        super().__init__()
        assert len(choices) == len(inputs)
        assert all(choices)
        self.gates = len(choices)
        self.experts = experts
        self.inputs = tuple(inputs)
        self.choices = tuple(tuple(item) for item in choices)
        self.sizes = [len(item) for item in choices]
        self.dropout = dropout
        self.squash = squash
        total = sum(self.sizes)
        self.weight = nn.Parameter(torch.empty(total, width))
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        nn.init.normal_(self.weight, std=_GATE_DEVIATION)
        # Column of every (gate, expert) among the scores; what a gate may not choose is the column behind them.
        index = torch.full((self.gates, experts), total)
        index[_gate_of(self.sizes), torch.tensor([e for item in choices for e in item])] = (
            torch.arange(total)
        )
        self.register_buffer("choices_index", index.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scores_BC = self._scores(x)
        never_B1 = scores_BC.new_full((x.shape[0], 1), -torch.inf)
        scores_BX = torch.cat([scores_BC, never_B1], dim=1).index_select(1, self.choices_index)
        scores_BGE = scores_BX.view(x.shape[0], self.gates, self.experts)
        if self.squash == "sigmoid":
            return torch.sigmoid(scores_BGE.float())
        gate_BGE = softmax_of_choices(scores_BGE)
        return _dropped(gate_BGE, self.dropout) if self.training else gate_BGE

    def owned(self, gates: Axis, experts: Axis) -> dict[str, Owned]:
        """Whose the parts of the parameters are: a gate's and an expert's together."""
        pairs = tuple(
            gate + experts[e]
            for gate, chosen in zip(gates, self.choices, strict=True)
            for e in chosen
        )
        return along(self, pairs)

    @staticmethod
    def parameter_count(width: int, *, choices: Sequence[Sequence[int]], bias: bool = False) -> int:
        """(width + biased) * the number of choices of all gates."""
        return (width + bias) * sum(len(item) for item in choices)

    def _scores(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return F.linear(x, self.weight, self.bias)
        kernels = torch.split(self.weight, self.sizes)
        streams = x.unbind(1)
        scores = [
            F.linear(streams[stream], kernel)
            for stream, kernel in zip(self.inputs, kernels, strict=True)
        ]
        scores_BC = torch.cat(scores, dim=1)
        return scores_BC if self.bias is None else scores_BC + self.bias


def softmax_of_choices(scores_BGE: Tensor) -> Tensor:
    """Softmax over the last axis, in float32."""
    if scores_BGE.device.type != "cpu" or torch.compiler.is_exporting():
        return torch.softmax(scores_BGE, dim=-1, dtype=torch.float32)
    # Along a last axis as short as a row of experts, torch's kernel for CPUs takes several times as long.
    scores_EX = scores_BGE.float().flatten(0, 1).t().contiguous()
    return scores_EX.softmax(dim=0).t().contiguous().view(scores_BGE.shape)


def mix(gate_BGE: Tensor, experts_BEH: Tensor) -> Tensor:
    """Each gate's weighted sum of experts, [B, G, H]."""
    return torch.bmm(gate_BGE.to(experts_BEH.dtype), experts_BEH)


def shared_input(x: Tensor) -> Tensor:
    """[B, I]: what experts and gates that all tasks share read; of [B, T, I], an input a task, the mean over tasks.

    Equal inputs for all tasks then give what the one input gives.
    """
    return x if x.dim() == 2 else x.mean(dim=1)


def with_shared(x: Tensor) -> Tensor:
    """[B, T + 1, I]: an input a task and behind them their mean. One input for all, [B, I], stays as it is."""
    return x if x.dim() == 2 else torch.cat([x, x.mean(dim=1, keepdim=True)], dim=1)


def _dropped(gate_BGE: Tensor, share: float) -> Tensor:
    """Entries dropped at random, the survivors renormalised; a row that loses all keeps all."""
    if not share:
        return gate_BGE
    kept = torch.rand_like(gate_BGE) >= share
    # What was not to be chosen is no survivor.
    kept &= gate_BGE > 0
    kept |= ~kept.any(dim=-1, keepdim=True)
    survivors = gate_BGE * kept
    return survivors / survivors.sum(dim=-1, keepdim=True)


def _gate_of(sizes: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
