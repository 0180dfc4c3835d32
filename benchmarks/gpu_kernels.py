"""Where a step's time goes on its device, operator by operator, and how far each is from the machine's limits.

Torch's profiler knows an operator's time on the device; what it moved and multiplied is counted as torch dispatches it:
the bytes of tensors that it reads and gives back, each once, and two operations a multiply-add of matrix products.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], None]
# What says how a tensor is read, and moves nothing.
_VIEWS = {
    *(
        "view",
        "t",
        "transpose",
        "expand",
        "slice",
        "select",
        "unbind",
        "split",
        "permute",
        "detach",
    ),
    *("as_strided", "alias", "unsqueeze", "squeeze", "_unsafe_view", "empty", "empty_like"),
    *("split_with_sizes", "new_empty", "empty_strided", "_to_copy_meta"),
}


@dataclass(frozen=True)
class Ceilings:
    """What this machine did in the same run: bytes copied (read and written) and operations of products a second."""

    bytes_a_second: float
    flops_a_second: float


@dataclass(frozen=True)
class Operator:
    """One operator of a step: seconds on the device, bytes and operations that it cannot do without."""

    name: str
    seconds: float
    share: float
    bytes: float
    flops: float

    def of_limit(self, ceilings: Ceilings) -> float:
        """The time its work would take at the nearer ceiling, by the time that it took."""
        floor = max(self.bytes / ceilings.bytes_a_second, self.flops / ceilings.flops_a_second)
        return floor / self.seconds if self.seconds else 0.0


def operators(step: Step, device: torch.device, *, steps: int = 3) -> list[Operator]:
    """The operators of a step, those that take most of it first."""
    with _Work() as work:
        step()
    seconds = {name: total / steps for name, total in _seconds(step, device, steps).items()}
    total = sum(seconds.values()) or 1.0
    found = [
        Operator(name, taken, taken / total, work.bytes[name], work.flops[name])
        for name, taken in seconds.items()
        if taken
    ]
    return sorted(found, key=lambda item: -item.seconds)


def kernels(step: Step, *, count: int = 10) -> list[dict[str, Any]]:
    """The GPU kernels that take most of a step, by name."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    ran = [
        item for item in found.key_averages() if item.device_type == torch.autograd.DeviceType.CUDA
    ]
    ran.sort(key=lambda item: -item.self_device_time_total)
    return [
        {
            "name": item.key[:120],
            "calls": item.count,
            "ms": round(item.self_device_time_total / 1e3, 4),
        }
        for item in ran[:count]
    ]


def flops_of(step: Step) -> int:
    """Operations of a step's matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    total: int = counter.get_total_flops()
    return total


class _Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up bytes and operations by operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: defaultdict[str, float] = defaultdict(float)
        self.flops: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _VIEWS:
            return result
        tensors = {
            id(item): item
            for item in tree_leaves((args, kwargs, result))
            if isinstance(item, Tensor)
        }
        self.bytes[f"aten::{name}"] += sum(
            item.numel() * item.element_size() for item in tensors.values()
        )
        self.flops[f"aten::{name}"] += _flops(name, args)
        return result


def _flops(name: str, args: Any) -> float:
    """2 m n k of a product, times its batch."""
    match name:
        case "mm" | "bmm":
            left, right = args[0], args[1]
        case "addmm" | "baddbmm":
            left, right = args[1], args[2]
        case _:
            return 0.0
    return 2.0 * left.numel() * right.shape[-1]


def _seconds(step: Step, device: torch.device, steps: int) -> dict[str, float]:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    clock = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return {
        item.key: getattr(item, clock) / 1e6
        for item in found.key_averages()
        if item.key.startswith(("aten::", "fbgemm::"))
    }
