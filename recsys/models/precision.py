"""Which precision of products is fast on a machine: measured, not read off its name."""

import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

# Relative error of a product against float64 that still counts as float32. bf16 and TF32 are at 1e-4 and above.
_TOLERANCE = 1e-6
_PROBE_SHAPES = ((512, 416, 256), (64, 2048, 128))
# Of products long enough to time, the fastest of so many.
_TIMED_SHAPE, _TIMES = (1024, 416, 256), 3


def use_fast_float32(device: torch.device) -> str:
    """The float32 matmul precision now set for this process: `medium` where it is still float32 here, else `highest`.

    With `medium` torch may compute float32 products in oneDNN, which is faster on CPUs whose oneDNN keeps float32
    and inexact on devices where the word means bf16 or TF32. So it is measured first.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = max(_relative_error(shape, device) for shape in _PROBE_SHAPES)
    if error >= _TOLERANCE:
        torch.set_float32_matmul_precision("highest")
    chosen = torch.get_float32_matmul_precision()
    logger.info(
        "float32_matmul precision=%s was=%s device=%s medium_error=%.2e",
        chosen,
        before,
        device.type,
        error,
    )
    return chosen


def bf16_slowdown(device: torch.device) -> float:
    """How many times as long as in float32 a product takes in bf16 on a CPU; it is emulated there if above 1."""
    rows, inner, columns = _TIMED_SHAPE
    left, right = torch.ones(rows, inner, device=device), torch.ones(columns, inner, device=device)
    halves = left.bfloat16(), right.bfloat16()
    return _seconds(lambda: F.linear(*halves)) / _seconds(lambda: F.linear(left, right))


def warn_of_slow_bf16(device: torch.device) -> None:
    """Warn where training in bf16 would be slower than in float32."""
    if device.type != "cpu":
        return
    times = bf16_slowdown(device)
    if times > 1:
        logger.warning(
            "train.slow_bf16 times=%.1f hint='products in bf16 take so many times as long as in float32 on this CPU; "
            'set train.precision = "float32"\'',
            times,
        )


def _seconds(product: Callable[[], Tensor]) -> float:
    """CPU time of the calling thread for a product, of the fastest one."""
    product()
    found = []
    for _ in range(_TIMES):
        began = time.thread_time()
        product()
        found.append(time.thread_time() - began)
    return min(found)


def _relative_error(shape: tuple[int, int, int], device: torch.device) -> float:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    exact: Tensor = left.double() @ right.double()
    found = (left.to(device) @ right.to(device)).double().cpu()
    return float((found - exact).norm() / exact.norm())
