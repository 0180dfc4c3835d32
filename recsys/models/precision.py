"""float32 products through a faster path where the machine has an exact one."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Relative error of a product against float64 that still counts as float32. bf16 and TF32 are at 1e-4 and above.
_TOLERANCE = 1e-6
_PROBE_SHAPES = ((512, 416, 256), (64, 2048, 128))


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


def _relative_error(shape: tuple[int, int, int], device: torch.device) -> float:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    exact: Tensor = left.double() @ right.double()
    found = (left.to(device) @ right.to(device)).double().cpu()
    return float((found - exact).norm() / exact.norm())
