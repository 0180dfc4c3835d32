"""Parallel MLPs and the gates that mix them.

Axes: **B** rows, **E** experts, **I** input width, **H** expert width, **T** tasks.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Form = Literal["loop", "wide", "batched"]

# Deviation of a gate's initial kernel: near-uniform gates at step 0 keep diagnostics readable.
_GATE_DEVIATION = 0.01


class ExpertBank(nn.Module):
    """E MLPs of one shape side by side: [B, I] shared or [B, E, I] each its own -> [B, E, H].

    A layer is Linear -> ReLU -> Dropout, the last layer too. Parameters are stacked over experts, `weights[l]`
    [E, out, in] and `biases[l]` [E, out], whatever form computes them, so a checkpoint knows no form.
    `activation` is called once, on the last layer's pre-activations [B, E, H]: the place for a probe's hook.
    """

    def __init__(
        self, width: int, hidden: tuple[int, ...], *, experts: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        assert hidden
        assert experts > 0
        self.experts = experts
        self.width = hidden[-1]
        self.dropout = dropout
        self.activation = nn.ReLU()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip((width, *hidden), hidden, strict=False):
            weight = torch.empty(experts, fan_out, fan_in)
            for expert in weight:
                nn.init.xavier_uniform_(expert)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(experts, fan_out)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, E, H] for x [B, I], or for x [B, E, I] when every expert has an input of its own."""
        return self.compute(x, form=choose_form(x))

    def compute(self, x: Tensor, *, form: Form) -> Tensor:
        """The same output in a given form; forms differ in speed alone."""
        match form:
            case "loop":
                return self._loop(x)
            case "wide":
                return self._wide(x)
            case "batched":
                return self._batched(x)

    @staticmethod
    def parameter_count(width: int, hidden: tuple[int, ...], *, experts: int) -> int:
        """E * M(width; hidden), with M the parameters of one affine stack."""
        return experts * sum(
            (fan_in + 1) * out for fan_in, out in zip((width, *hidden), hidden, strict=False)
        )

    def _loop(self, x: Tensor) -> Tensor:
        """One product an expert and layer: no copies between layers."""
        # One unbind per layer: its backward is one stack, where E selects would each fill a whole gradient.
        layers = [
            (w.unbind(0), b.unbind(0)) for w, b in zip(self.weights, self.biases, strict=True)
        ]
        outputs = []
        for e in range(self.experts):
            h = x if x.dim() == 2 else x[:, e]
            for depth, (weights, biases) in enumerate(layers):
                h = F.linear(h, weights[e], biases[e])
                if depth < len(layers) - 1:
                    h = self._drop(F.relu(h))
            outputs.append(h)
        return self._drop(self.activation(torch.stack(outputs, dim=1)))

    def _wide(self, x: Tensor) -> Tensor:
        """One product of all experts' first layers, then batched products."""
        if x.dim() == 3:
            return self._batched(x)
        wide = F.linear(x, self.weights[0].flatten(0, 1), self.biases[0].flatten())
        h_BEH = wide.view(x.shape[0], self.experts, -1)
        if len(self.weights) == 1:
            return self._drop(self.activation(h_BEH))
        return self._batched_from(1, self._drop(F.relu(h_BEH)).transpose(0, 1))

    def _batched(self, x: Tensor) -> Tensor:
        """One batched product over experts a layer."""
        shared = x.dim() == 2
        return self._batched_from(
            0, x.expand(self.experts, -1, -1) if shared else x.transpose(0, 1)
        )

    def _batched_from(self, first: int, h_EBI: Tensor) -> Tensor:
        for depth in range(first, len(self.weights)):
            bias_E1H = self.biases[depth][:, None]
            h_EBI = torch.baddbmm(bias_E1H, h_EBI, self.weights[depth].transpose(1, 2))
            if depth < len(self.weights) - 1:
                h_EBI = self._drop(F.relu(h_EBI))
        return self._drop(self.activation(h_EBI.transpose(0, 1)))

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h


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
        return self._drop(torch.softmax(self._scores(x), dim=-1, dtype=torch.float32))

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
            return F.linear(x, self.weight.flatten(0, 1), bias).view(x.shape[0], self.tasks, -1)
        scores_TBE = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2))
        scores_BTE = scores_TBE.transpose(0, 1)
        return scores_BTE if self.bias is None else scores_BTE + self.bias

    def _drop(self, gate_BTE: Tensor) -> Tensor:
        if not self.dropout or not self.training:
            return gate_BTE
        kept = torch.rand_like(gate_BTE) >= self.dropout
        kept |= ~kept.any(dim=-1, keepdim=True)
        survivors = gate_BTE * kept
        return survivors / survivors.sum(dim=-1, keepdim=True)


def mix(gate_BTE: Tensor, experts_BEH: Tensor) -> Tensor:
    """Each task's gated sum of experts, [B, T, H]."""
    return torch.bmm(gate_BTE.to(experts_BEH.dtype), experts_BEH)


def shared_input(x: Tensor) -> Tensor:
    """[B, I]: what experts and gates that all tasks share read; of [B, T, I], an input a task, the mean over tasks.

    Equal inputs for all tasks then give what the one input gives.
    """
    return x if x.dim() == 2 else x.mean(dim=1)


def choose_form(x: Tensor) -> Form:
    """The form for this device; `benchmarks/experts.py` prints the measurements behind it.

    On CPUs the loop is the fastest to train, because the other forms copy between layers, and at serving sizes no
    slower in eager mode or exported; only single rows would gain from fewer launches. On GPUs launches count.
    """
    return "loop" if x.device.type == "cpu" else "wide"
