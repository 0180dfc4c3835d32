"""Where a training step's time goes: shares by kind of work, and its matrix products on their own."""

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from ceiling_table import PARTS
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], None]

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
_NORMALISATION = {"native_batch_norm", "native_layer_norm", "softmax", "softmax_backward_data"}
_COPIES = {
    *("copy", "cat", "clone", "fill", "zero", "index", "index_put_impl", "index_select"),
    *("index_add", "index_copy", "embedding", "embedding_dense"),
}
# These take a little time to say how a tensor is read or which kernel computes it.
_SHAPES = {
    *("t", "to", "to_copy", "view", "reshape", "transpose", "permute", "flatten", "expand"),
    *("as_strided", "unbind", "select", "slice", "narrow", "split", "squeeze", "unsqueeze"),
    *("detach", "alias", "empty", "empty_like", "empty_strided", "linear", "matmul", "stack"),
    *("item", "local_scalar_dense", "result_type", "resolve_conj", "unsafe_view", "reshape_alias"),
}


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts a step's matrix products by operator, shapes, strides and types, as they reach the kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            operands = tuple((item.shape, item.stride(), item.dtype) for item in args)
            self.calls[func, operands] += 1
        return func(*args, **(kwargs or {}))


def counted_flops(step: Step) -> int:
    """Two for each multiply-add of a step's matrix products, those of the gradients too, as torch dispatches them."""
    with FlopCounterMode(display=False) as counter:
        step()
    total: int = counter.get_total_flops()
    return total


def products_alone(step: Step) -> list[tuple[Step, int]]:
    """A step's matrix products on operands of their own, each with how often the step computes it."""
    counted = Products()
    with counted:
        step()
    return [(_call(func, operands), count) for (func, operands), count in counted.calls.items()]


def profiled(step: Step, *, steps: int = 3) -> dict[str, float]:
    """Share of a step's time that each operator itself takes, of medians over steps.

    Wall-clock time, the only one that is known of an operator: a neighbour on the machine slows all alike, and a median
    leaves out the operator that stood waiting.
    """
    found = [_times(step) for _ in range(steps)]
    medians = {
        name: statistics.median(times.get(name, 0.0) for times in found)
        for name in {name for times in found for name in times}
    }
    total = sum(medians.values())
    return {name: time / total for name, time in medians.items()}


def by_part(shares: dict[str, float]) -> dict[str, float]:
    """Operators' shares summed to those of `PARTS`."""
    found = dict.fromkeys(PARTS, 0.0)
    for operator, share in shares.items():
        found[part_of(operator)] += share
    return found


def largest(shares: dict[str, float], count: int = 3) -> dict[str, float]:
    """The operators that take most of the time without being products."""
    working = {
        operator.removeprefix("aten::"): share
        for operator, share in shares.items()
        if part_of(operator) not in ("products", "overhead")
    }
    return dict(sorted(working.items(), key=lambda item: -item[1])[:count])


def part_of(operator: str) -> str:
    """The part that an operator's own time belongs to; what is not known by name computes number by number."""
    if not operator.startswith("aten::"):
        return "overhead"
    name = operator.removeprefix("aten::").strip("_").removesuffix("_backward")
    if name.startswith(("fused_adamw", "foreach", "linalg_vector_norm")):
        return "optimizer"
    for part, names in (
        ("products", _PRODUCTS),
        ("normalisation", _NORMALISATION),
        ("copies", _COPIES),
        ("overhead", _SHAPES),
    ):
        if name in names:
            return part
    return "elementwise"


def _times(step: Step) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    return {item.key: float(item.self_cpu_time_total) for item in found.key_averages()}


def _call(func: Any, operands: tuple[Any, ...]) -> Step:
    tensors = [_operand(*item) for item in operands]

    def run() -> None:
        func(*tensors)

    return run


def _operand(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.randn(extent).to(dtype).as_strided(shape, stride)
