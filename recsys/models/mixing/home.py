"""HoME: normalised experts in a hierarchy of task categories, with feature gates and self gates (arXiv 2408.05430).

Axes: **B** rows, **G** expert groups, **I** input width, **H** expert width, **L** parts of a feature gate, **R** rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys.errors import ConfigError, nearest
from recsys.models.experts import ExpertBank
from recsys.models.gates import SelectiveGates, mix
from recsys.models.owners import Axis, Owned, Owner, along, below, of_experts
from recsys.models.probe import Watched
from recsys.models.stages import Hidden, StageConfig

# Where the paper's rank, I / L, is more than this, the gate alone would be as large as the rest of the model.
_MOST_RANK = 64


class HoME(nn.Module):
    """Hierarchy of multi-gate experts: categories of tasks and what all share first, then category, task and global.

    Experts are batch-normalised and Swish (section 4.1). Layer 1 has a group of experts for each category and one
    shared; a category's gate mixes its own and the shared experts, the shared gate all. Layer 2 has global experts on
    the shared state, category experts and task experts on the category's; a task's gate reads both states and mixes
    global, its category's and its own (4.2). Every group sees its input through a feature gate in (0, 2), and adds a
    self gate's mixture of its own experts (4.3).

    With an input a task [B, T, I] a category reads the mean over its tasks, the shared group the mean over all.
    """

    class Config(StageConfig):
        """`groups` names the categories and the tasks of each; without any, all tasks are one category.

        `experts` a group, of widths `meta_hidden` in layer 1 and `task_hidden` in layer 2. A feature gate has
        `feature_gate_parts` parts of rank `feature_gate_rank` (I / parts, at most 64, if not given).
        """

        kind: Literal["home"] = "home"
        groups: dict[str, tuple[str, ...]] = {}
        experts: int = Field(default=1, ge=1)
        meta_hidden: Hidden = Field(default=(128,), min_length=1)
        task_hidden: Hidden = Field(default=(128,), min_length=1)
        expert_dropout: float = Field(default=0.0, ge=0, lt=1)
        feature_gate: bool = True
        feature_gate_parts: int = Field(default=2, ge=1)
        feature_gate_rank: int | None = Field(default=None, ge=1)
        self_gate: bool = True

    def __init__(self, config: Config, *, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.places = places(config, tasks)
        self.meta = HierarchyLayer(
            config, width=width, hidden=config.meta_hidden, plan=self.places.meta, gate_width=width
        )
        states = self.meta.width
        self.specific = HierarchyLayer(
            config,
            width=states,
            hidden=config.task_hidden,
            plan=self.places.specific,
            gate_width=2 * states,
        )
        self.width = self.specific.width

    def forward(self, x: Tensor) -> Tensor:
        inputs = x if x.dim() == 2 else self._of_categories(x)
        state_BCH = self.meta(inputs, inputs)
        own = state_BCH[:, list(self.places.category_of_task)]
        shared = state_BCH[:, -1:].expand_as(own)
        x_BTH: Tensor = self.specific(state_BCH, torch.cat([own, shared], dim=2))
        return x_BTH

    def watched(self) -> tuple[Watched, ...]:
        return tuple(
            Watched(
                bank=layer.bank,
                gates=layer.gates,
                groups=layer.plan.labels,
                readers=layer.plan.readers,
                native=layer.self_gates is not None,
                self_gates=layer.self_gates,
                feature_gates=layer.feature_gates and layer.feature_gates.opening,
                gated=layer.plan.names if layer.feature_gates is not None else (),
            )
            for layer in (self.meta, self.specific)
        )

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        meta = tuple((Owner(None, name),) for name in self.places.meta.names)
        *categories, shared = meta
        # In another category a task's experts and gates would read another state.
        members = [
            (Owner(task.task, f"in {self.places.meta.names[category]}"),)
            for (task,), category in zip(tasks, self.places.category_of_task, strict=True)
        ]
        specific = self.specific.owned((shared, *categories, *members))
        return below("meta", self.meta.owned(meta)) | below("specific", specific)

    @staticmethod
    def parameter_count(config: Config, *, width: int, tasks: Sequence[str]) -> int:
        """Both layers: K (M(d; hidden) + 2 H) a group, 2 d R L + d L a feature gate, gate kernels and self gates."""
        found = places(config, tasks)
        meta = HierarchyLayer.parameter_count(
            config, width=width, hidden=config.meta_hidden, plan=found.meta, gate_width=width
        )
        states = config.meta_hidden[-1]
        return meta + HierarchyLayer.parameter_count(
            config,
            width=states,
            hidden=config.task_hidden,
            plan=found.specific,
            gate_width=2 * states,
        )

    def _of_categories(self, x_BTI: Tensor) -> Tensor:
        """[B, C + 1, I]: the mean over each category's tasks, then over all tasks."""
        means = [x_BTI[:, list(members)].mean(dim=1) for members in self.places.tasks_of_category]
        return torch.stack([*means, x_BTI.mean(dim=1)], dim=1)


@dataclass(frozen=True)
class LayerPlan:
    """One layer: each group's name and the input it reads, and for each gate its groups, the last one its own."""

    names: tuple[str, ...]
    reads: tuple[int, ...]
    gates: tuple[tuple[int, ...], ...]
    experts: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The group's name of each expert."""
        return tuple(name for name in self.names for _ in range(self.experts))

    @property
    def readers(self) -> tuple[str, ...]:
        """The group whose state each gate makes."""
        return tuple(self.names[groups[-1]] for groups in self.gates)

    def members(self, groups: Sequence[int]) -> tuple[int, ...]:
        """The experts of some groups."""
        return tuple(
            group * self.experts + expert for group in groups for expert in range(self.experts)
        )


@dataclass(frozen=True)
class Places:
    """Which task belongs where."""

    category_of_task: tuple[int, ...]
    tasks_of_category: tuple[tuple[int, ...], ...]
    meta: LayerPlan
    specific: LayerPlan


def places(config: HoME.Config, tasks: Sequence[str]) -> Places:
    """The hierarchy of a section. Raises ConfigError for a task in no category, in two, or unknown."""
    groups = config.groups or {"all": tuple(tasks)}
    _check_groups(groups, tasks)
    categories = list(groups)
    category_of_task = tuple(
        next(c for c, name in enumerate(categories) if task in groups[name]) for task in tasks
    )
    shared = len(categories)
    labels = tuple(f"group {name}" for name in categories)
    meta = LayerPlan(
        names=(*labels, "shared"),
        reads=tuple(range(shared + 1)),
        gates=(*((shared, c) for c in range(shared)), tuple(range(shared + 1))),
        experts=config.experts,
    )
    # Layer 2: the global group, the categories, then the tasks.
    specific = LayerPlan(
        names=("shared", *labels, *tasks),
        reads=(shared, *range(shared), *category_of_task),
        gates=tuple(
            (0, 1 + category, 1 + shared + task) for task, category in enumerate(category_of_task)
        ),
        experts=config.experts,
    )
    members = tuple(
        tuple(t for t, category in enumerate(category_of_task) if category == c)
        for c in range(shared)
    )
    return Places(category_of_task, members, meta, specific)


class HierarchyLayer(nn.Module):
    """Groups of normalised experts behind feature gates, mixed by gates and self gates: -> [B, gates, H].

    `x` [B, I] is every group's input, or [B, S, I] where group g reads x[:, reads[g]]; `gated` is what gates read.
    """

    def __init__(
        self,
        config: HoME.Config,
        *,
        width: int,
        hidden: tuple[int, ...],
        plan: LayerPlan,
        gate_width: int,
    ) -> None:
        super().__init__()
        self.plan = plan
        experts = len(plan.labels)
        self.feature_gates = (
            FeatureGates(
                width,
                reads=plan.reads,
                parts=config.feature_gate_parts,
                rank=_rank(config, width),
            )
            if config.feature_gate
            else None
        )
        # Behind feature gates every group has an input of its own.
        of_group = range(len(plan.names)) if config.feature_gate else plan.reads
        self.bank = ExpertBank(
            width,
            hidden,
            experts=experts,
            inputs=[of_group[e // config.experts] for e in range(experts)],
            dropout=config.expert_dropout,
            normalized=True,
        )
        gates = range(len(plan.gates))
        self.gates = SelectiveGates(
            gate_width,
            choices=[plan.members(groups) for groups in plan.gates],
            experts=experts,
            inputs=gates,
        )
        self.self_gates = (
            SelectiveGates(
                gate_width,
                choices=_own_experts(plan),
                experts=experts,
                inputs=gates,
                squash="softmax" if config.experts > 1 else "sigmoid",
            )
            if config.self_gate
            else None
        )
        self.width = self.bank.width

    def forward(self, x: Tensor, gated: Tensor) -> Tensor:
        experts_BEH = self.bank(x if self.feature_gates is None else self.feature_gates(x))
        weights_BGE = self.gates(gated)
        if self.self_gates is not None:
            # Both sums over experts as one product.
            weights_BGE = weights_BGE + self.self_gates(gated)
        return mix(weights_BGE, experts_BEH)

    def owned(self, groups: Axis) -> dict[str, Owned]:
        """Whose the parts of the parameters are, of groups that these own."""
        experts = of_experts(groups, [self.plan.experts] * len(groups))
        gates = tuple(groups[chosen[-1]] for chosen in self.plan.gates)
        found = below("bank", along(self.bank, experts))
        found |= below("gates", self.gates.owned(gates, experts))
        if self.self_gates is not None:
            found |= below("self_gates", self.self_gates.owned(gates, experts))
        if self.feature_gates is not None:
            found |= below("feature_gates", along(self.feature_gates, groups))
        return found

    @staticmethod
    def parameter_count(
        config: HoME.Config,
        *,
        width: int,
        hidden: tuple[int, ...],
        plan: LayerPlan,
        gate_width: int,
    ) -> int:
        """Experts with their normalisation, a feature gate a group, a gate's choices, a self gate's own experts."""
        total = ExpertBank.parameter_count(width, hidden, experts=len(plan.labels), normalized=True)
        total += SelectiveGates.parameter_count(
            gate_width, choices=[plan.members(groups) for groups in plan.gates]
        )
        if config.feature_gate:
            parts, rank = config.feature_gate_parts, _rank(config, width)
            total += len(plan.names) * (2 * width * rank * parts + width * parts)
        if config.self_gate:
            total += SelectiveGates.parameter_count(gate_width, choices=_own_experts(plan))
        return total


class FeatureGates(nn.Module):
    """Each group's input scaled dimension by dimension, by a gate in (0, 2) that starts at 1: -> [B, G, I].

    sum_l softmax(W x)_l * 2 sigmoid(x B_l A_l) (HoME, eq. 8 and 9), with A zero at first. x is [B, I], or [B, S, I]
    where group g reads x[:, reads[g]]. `opening` is called once a group with the gate's values [B, I]: the place for a
    probe's hook.
    """

    def __init__(self, width: int, *, reads: Sequence[int], parts: int, rank: int) -> None:
        super().__init__()
        self.reads = tuple(reads)
        groups = len(self.reads)
        self.choice = nn.Parameter(torch.empty(groups, parts, width))
        down = torch.empty(groups * parts, rank, width)
        for kernel in down:
            nn.init.xavier_uniform_(kernel)
        self.down = nn.Parameter(down.view(groups, parts, rank, width))
        self.up = nn.Parameter(torch.zeros(groups, parts, width, rank))
        self.opening = nn.Identity()
        nn.init.normal_(self.choice, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        streams = x.unbind(1) if x.dim() == 3 else None
        gated = [
            self._gated(x if streams is None else streams[stream], group)
            for group, stream in enumerate(self.reads)
        ]
        return torch.stack(gated, dim=1)

    def _gated(self, x_BI: Tensor, group: int) -> Tensor:
        share_BL = torch.softmax(F.linear(x_BI, self.choice[group]), dim=-1)
        gate_BI = sum(
            share_BL[:, part, None]
            * torch.sigmoid(F.linear(F.linear(x_BI, self.down[group, part]), self.up[group, part]))
            for part in range(self.choice.shape[1])
        )
        opened_BI: Tensor = self.opening(2 * gate_BI)
        return x_BI * opened_BI


def _own_experts(plan: LayerPlan) -> list[tuple[int, ...]]:
    """What each self gate chooses from: the experts of the gate's own group, named last."""
    return [plan.members(groups[-1:]) for groups in plan.gates]


def _rank(config: HoME.Config, width: int) -> int:
    return config.feature_gate_rank or max(1, min(_MOST_RANK, width // config.feature_gate_parts))


def _check_groups(groups: dict[str, tuple[str, ...]], tasks: Sequence[str]) -> None:
    where, seen = "model.mixing (home): groups", dict[str, str]()
    for name, members in groups.items():
        if not members:
            raise ConfigError(f"{where}.{name} is empty; give it tasks or remove it")
        for task in members:
            if task not in tasks:
                raise ConfigError(
                    f"{where}.{name} names task {task!r}, which the schema does not have{nearest(task, tasks)}"
                )
            if task in seen:
                raise ConfigError(
                    f"{where} name task {task!r} twice, in {seen[task]!r} and in {name!r}; name it once, in one group"
                )
            seen[task] = name
    missing = [task for task in tasks if task not in seen]
    if missing:
        raise ConfigError(f"{where} leave out task {missing[0]!r}; put every task into one group")
