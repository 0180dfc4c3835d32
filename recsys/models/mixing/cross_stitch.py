"""Cross-Stitch: a network a task, their layers' outputs blended by learned constants (Misra et al., CVPR 2016)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys.models.experts import ExpertBank
from recsys.models.gates import mix
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, StageConfig

# A task's own share of its blend at the start; the others share the rest.
_OWN_SHARE = 0.9


class CrossStitch(nn.Module):
    """One MLP a task; after each layer h_t becomes sum_u A[t, u] h_u, A [T, T] learned and the same for all rows."""

    class Config(StageConfig):
        """`hidden` widths of each task's MLP; `dropout` after each of its layers."""

        kind: Literal["cross_stitch"] = "cross_stitch"
        hidden: Hidden = Field(default=(256, 128), min_length=1)
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.banks = nn.ModuleList()
        self.stitches = nn.ParameterList()
        for fan_in, fan_out in zip((width, *config.hidden), config.hidden, strict=False):
            self.banks.append(
                ExpertBank(fan_in, (fan_out,), experts=len(tasks), dropout=config.dropout)
            )
            self.stitches.append(nn.Parameter(_first_stitch(len(tasks))))
        self.width = config.hidden[-1]

    def forward(self, x: Tensor) -> Tensor:
        for bank, stitch_TT in zip(self.banks, self.stitches, strict=True):
            h_BTH = bank(x)
            x = mix(stitch_TT.expand(h_BTH.shape[0], -1, -1), h_BTH)
        return x

    def watched(self) -> tuple[Watched, ...]:
        return tuple(
            Watched(bank=bank, gates=None, groups=self.tasks)
            for bank in self.banks
            if isinstance(bank, ExpertBank)
        )

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        blends = {name: Owned((tasks, tasks)) for name in self.stitches.state_dict()}
        return below("banks", along(self.banks, tasks)) | below("stitches", blends)

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """T * M(width; hidden), and T^2 a layer."""
        mlps = ExpertBank.parameter_count(width, config.hidden, experts=len(tasks))
        return mlps + len(config.hidden) * len(tasks) ** 2


def _first_stitch(tasks: int) -> Tensor:
    if tasks == 1:
        return torch.ones(1, 1)
    others = torch.full((tasks, tasks), (1 - _OWN_SHARE) / (tasks - 1))
    return others.fill_diagonal_(_OWN_SHARE)
