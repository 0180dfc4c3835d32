"""Parallel MLPs in the form that a device likes best.

Axes: **B** rows, **E** experts, **S** inputs, **I** input width, **H** expert width, **U** units of all experts.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.ranks import add_up_uses, world_size

Form = Literal["loop", "wide", "batched"]

# Up to here the first layer's outputs, 2 MiB in float32, stay in a core's caches while all experts pass over them.
_CACHED_OUTPUTS = 2**19
# Fewer rows have a variance that says little of the next batch.
_LEAST_NORMALIZED_ROWS = 32


class ExpertBank(nn.Module):
    """E MLPs of one shape side by side: one input [B, I] for all, or [B, S, I] with several -> [B, E, H].

    Expert e reads x[:, inputs[e]] of several inputs; without `inputs` there is one for each expert. A layer is
    Linear -> ReLU -> Dropout, the last layer too. With `normalized` experts the activation is Swish, and the last
    layer's is preceded by a batch normalisation of every unit (HoME, arXiv 2408.05430).

    Parameters are stacked over experts, `weights[l]` [E, out, in] and `biases[l]` [E, out], whatever form computes
    them, so a checkpoint knows no form. `activation` is called once, on the last layer's pre-activations [B, E, H]:
    the place for a probe's hook.
    """

    def __init__(
        self,
        width: int,
        hidden: tuple[int, ...],
        *,
        experts: int,
        inputs: Sequence[int] | None = None,
        dropout: float = 0.0,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        assert hidden
        assert experts > 0
        self.experts = experts
        self.inputs = tuple(range(experts)) if inputs is None else tuple(inputs)
        assert len(self.inputs) == experts
        # Neighbours that read the same of several inputs: that input, and how many they are.
        self.readers = [(stream, len(list(run))) for stream, run in groupby(self.inputs)]
        self.width = hidden[-1]
        self.dropout = dropout
        self.activation: nn.Module = nn.SiLU() if normalized else nn.ReLU()
        self.norm: BatchNorm | None = BatchNorm(experts, self.width) if normalized else None
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip((width, *hidden), hidden, strict=False):
            weight = torch.empty(experts, fan_out, fan_in)
            for expert in weight:
                nn.init.xavier_uniform_(expert)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(experts, fan_out)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, E, H] for x [B, I], or for x [B, S, I] when experts have inputs of their own."""
        return self.compute(x, form=choose_form(self, x))

    def compute(self, x: Tensor, *, form: Form) -> Tensor:
        """The same output in a given form; forms differ in speed alone."""
        match form:
            case "loop":
                return self._loop(x)
            case "wide":
                return self._wide(x)
            case "batched":
                return self._batched(x)

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Move the normalisation's running statistics, scale and shift into the last layer: the same in evaluation."""
        if self.norm is None:
            return
        scale = self.norm.norm_scale * (self.norm.running_var + self.norm.epsilon).rsqrt()
        shift = self.norm.norm_shift - self.norm.running_mean * scale
        scale_EH, shift_EH = scale.view(self.experts, -1), shift.view(self.experts, -1)
        self.weights[-1].mul_(scale_EH[:, :, None])
        self.biases[-1].mul_(scale_EH).add_(shift_EH)
        self.norm = None

    @staticmethod
    def parameter_count(
        width: int, hidden: tuple[int, ...], *, experts: int, normalized: bool = False
    ) -> int:
        """E * M(width; hidden), with M the parameters of one affine stack; scale and shift of the units on top."""
        affine = sum(
            (fan_in + 1) * out for fan_in, out in zip((width, *hidden), hidden, strict=False)
        )
        return experts * (affine + (2 * hidden[-1] if normalized else 0))

    def _loop(self, x: Tensor) -> Tensor:
        """One product an expert and layer: no copies between layers."""
        # Once for all: autocast would cast for every expert, there and back, which is a tenth of a step on CPUs.
        x = as_factor(x)
        # One unbind per layer: its backward is one stack, where E selects would each fill a whole gradient.
        layers = [
            (w.unbind(0), b.unbind(0)) for w, b in zip(self.weights, self.biases, strict=True)
        ]
        streams = x.unbind(1) if x.dim() == 3 else None
        outputs = []
        for e in range(self.experts):
            h = x if streams is None else streams[self.inputs[e]]
            for depth, (weights, biases) in enumerate(layers):
                h = F.linear(h, weights[e], biases[e])
                if depth < len(layers) - 1:
                    h = self._hidden(h)
            outputs.append(h)
        return self._out(torch.stack(outputs, dim=1))

    def _wide(self, x: Tensor) -> Tensor:
        """One product of the first layers of all experts that read the same input, then batched products."""
        h_BEH = self._first_layers(x)
        if len(self.weights) == 1:
            return self._out(h_BEH)
        return self._batched_from(1, self._hidden(h_BEH).transpose(0, 1))

    def _first_layers(self, x: Tensor) -> Tensor:
        weight_EHI, bias_EH = self.weights[0], self.biases[0]
        if x.dim() == 2:
            wide = F.linear(x, weight_EHI.flatten(0, 1), bias_EH.flatten())
        else:
            sizes = [count for _, count in self.readers]
            weights, biases = weight_EHI.split(sizes), bias_EH.split(sizes)
            streams = x.unbind(1)
            products = [
                F.linear(streams[stream], weight.flatten(0, 1), bias.flatten())
                for (stream, _), weight, bias in zip(self.readers, weights, biases, strict=True)
            ]
            wide = torch.cat(products, dim=1)
        return wide.view(x.shape[0], *weight_EHI.shape[:2])

    def _batched(self, x: Tensor) -> Tensor:
        """One batched product over experts a layer."""
        if x.dim() == 2:
            return self._batched_from(0, x.expand(self.experts, -1, -1))
        own = self.inputs == tuple(range(x.shape[1]))
        return self._batched_from(0, (x if own else x[:, list(self.inputs)]).transpose(0, 1))

    def _batched_from(self, first: int, h_EBI: Tensor) -> Tensor:
        for depth in range(first, len(self.weights)):
            bias_E1H = self.biases[depth][:, None]
            h_EBI = torch.baddbmm(bias_E1H, h_EBI, self.weights[depth].transpose(1, 2))
            if depth < len(self.weights) - 1:
                h_EBI = self._hidden(h_EBI)
        return self._out(h_EBI.transpose(0, 1))

    def _hidden(self, h: Tensor) -> Tensor:
        # Nobody else reads the products; ReLU's gradient needs its result alone.
        return self._drop(F.silu(h) if isinstance(self.activation, nn.SiLU) else F.relu_(h))

    def _out(self, h_BEH: Tensor) -> Tensor:
        if self.norm is not None:
            h_BEH = self.norm(h_BEH)
        return self._drop(self.activation(h_BEH))

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h


def as_factor(x: Tensor) -> Tensor:
    """The tensor in the type in which products are computed: its own, or autocast's."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class BatchNorm(nn.Module):
    """Every unit of every expert normalised over the batch, scaled and shifted: [B, E, H] -> [B, E, H].

    In training the batch's own mean and variance, over the rows of all ranks; else the running ones. A single row has
    no variance: it takes the running statistics in training too. Float32 under autocast.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, experts: int, width: int, *, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = 1e-5
        self.norm_scale = nn.Parameter(torch.ones(experts * width))
        self.norm_shift = nn.Parameter(torch.zeros(experts * width))
        self.register_buffer("running_mean", torch.zeros(experts * width))
        self.register_buffer("running_var", torch.ones(experts * width))

    def forward(self, h_BEH: Tensor) -> Tensor:
        h_BU = h_BEH.flatten(1).float()
        together = self.training and world_size() > 1
        normalized_BU = self._over_ranks(h_BU) if together else self._alone(h_BU)
        return normalized_BU.view_as(h_BEH).to(h_BEH.dtype)

    def _alone(self, h_BU: Tensor) -> Tensor:
        return F.batch_norm(
            h_BU,
            self.running_mean,
            self.running_var,
            self.norm_scale,
            self.norm_shift,
            training=self.training and h_BU.shape[0] > 1,
            momentum=self.momentum,
            eps=self.epsilon,
        )

    def _over_ranks(self, h_BU: Tensor) -> Tensor:
        """The same over the rows of all ranks. Torch's own layer for this runs on GPUs alone."""
        own = torch.cat([h_BU.sum(dim=0), h_BU.new_tensor([float(len(h_BU))])])
        sum_U, rows = torch.split(add_up_uses(own), [h_BU.shape[1], 1])
        mean_U = sum_U / rows
        # Of the deviations: a mean of squares less a squared mean would lose digits.
        var_U = add_up_uses((h_BU - mean_U).square().sum(dim=0)) / rows
        several = rows > 1
        mean_U = torch.where(several, mean_U, self.running_mean)
        with torch.no_grad():
            unbiased_U = torch.where(several, var_U * rows / (rows - 1), self.running_var)
            self.running_mean.lerp_(mean_U, self.momentum)
            self.running_var.lerp_(unbiased_U, self.momentum)
        var_U = torch.where(several, var_U, self.running_var)
        scale_U = self.norm_scale * (var_U + self.epsilon).rsqrt()
        return (h_BU - mean_U) * scale_U + self.norm_shift


def require_batch_rows(module: nn.Module, batch_size: int, *, parts: int = 1) -> None:
    """Raise ConfigError when batches, or parts of them, are too small for banks that are normalised over them."""
    normalized = any(isinstance(item, BatchNorm) for item in module.modules())
    if normalized and batch_size // parts < _LEAST_NORMALIZED_ROWS:
        cut = f" in {parts} parts (train.accumulate)" if parts > 1 else ""
        raise ConfigError(
            f"data.batch_size is {batch_size}{cut}, and this mixing normalises its experts over the batch (BatchNorm); "
            f"give at least {parts * _LEAST_NORMALIZED_ROWS} rows, better {parts * 1024}, or choose another mixing"
        )


def fold_norms(module: nn.Module) -> None:
    """Move every bank's normalisation below a module into the bank's last layer, in place: what an export computes."""
    for item in module.modules():
        if isinstance(item, ExpertBank):
            item.fold_norm()


def choose_form(bank: ExpertBank, x: Tensor) -> Form:
    """The form for this bank, input and device; `benchmarks/experts.py` prints the measurements behind it.

    On CPUs a loop is the fastest to train where outputs are large: products of all experts at once then copy between
    layers. Experts that share inputs share the product of an only layer. Where outputs stay in the caches, as on GPUs,
    launches count. At serving sizes the forms differ little.
    """
    if x.device.type != "cpu":
        return "wide" if x.dim() == 2 else "batched"
    shared = x.dim() == 2 or len(bank.readers) < bank.experts
    # An exported program serves any number of rows.
    few = (
        not torch.compiler.is_exporting() and x.shape[0] * bank.biases[0].numel() <= _CACHED_OUTPUTS
    )
    if shared and (few or len(bank.weights) == 1):
        return "wide"
    return "batched" if few else "loop"
