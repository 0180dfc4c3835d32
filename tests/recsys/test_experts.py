"""Which form a bank of experts takes, and what it copies."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.models.experts import ExpertBank, Form, choose_form


@pytest.mark.parametrize(
    ("hidden", "reads", "few", "many"),
    [
        ((8,), (0, 0, 0, 0), "wide", "wide"),
        ((8, 4), (0, 0, 0, 0), "wide", "loop"),
        ((8,), (0, 0, 1, 1), "wide", "wide"),
        ((8, 4), (0, 0, 1, 1), "wide", "loop"),
        ((8,), (0, 1, 2, 3), "batched", "loop"),
    ],
)
def test_the_form_on_a_cpu_follows_rows_depth_and_shared_inputs(
    hidden: tuple[int, ...], reads: tuple[int, ...], few: Form, many: Form
) -> None:
    bank, streams = ExpertBank(1, hidden, experts=4, inputs=reads), max(reads) + 1
    # Four experts of width 8 give 2^19 numbers in the first layer for 2^14 rows.
    for rows, form in ((2**14, few), (2**14 + 1, many)):
        x = torch.empty(rows, 1) if streams == 1 else torch.empty(rows, streams, 1)
        assert choose_form(bank, x) == form


class _Casts(TorchDispatchMode):
    """Counts casts of tensors of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += 1
        found: torch.Tensor = func(*args, **(kwargs or {}))
        return found


def test_under_autocast_a_loop_casts_what_its_experts_share_once() -> None:
    bank = ExpertBank(6, (4, 3), experts=5)
    looked_up = torch.randn(7, 6, requires_grad=True)
    with _Casts((7, 6)) as casts:
        with torch.autocast("cpu", torch.bfloat16):
            # Like a lookup's result, and unlike a leaf, whose cast autocast would keep.
            out = bank.compute(looked_up * 2, form="loop")
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    # There, and back for the gradient.
    assert casts.count == 2
    assert looked_up.grad is not None
    assert looked_up.grad.dtype == torch.float32
