"""DTRN: interests and a refinement of features for each task (Deep Task-specific Bottom Representation Network).

Axes: **U** users, **N** candidates, **T** tasks, **S** sequences, **L** events, **K** width of an event, **F** fields,
**I** input width, **H** hidden width.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.models.bottoms.interests import (
    CommonNorms,
    ConditionalNorms,
    ConditionalTransformer,
    TargetPooling,
    linear,
    mean_pooling,
)
from recsys.models.experts import ExpertBank
from recsys.models.inputs import Blocks, InputLayout, SequenceLayout
from recsys.models.owners import Axis, Owned, along, below
from recsys.models.stages import StageConfig

# Deviation of the initial position embeddings.
_POSITION_DEVIATION = 0.02


class DTRN(nn.Module):
    """An input a task, [N, T, I]: user and candidate blocks and each sequence's interest, refined for the task.

    TIM (Liu et al., CIKM 2023, arXiv 2308.05996): every sequence goes through one transformer whose LayerNorms depend
    on the task and the sequence, and is pooled by target attention with the candidate, or to its mean where it has no
    target. TRM: each task weighs features and interests, SENet-like, by 0 to 2 (`Refinement`).

    The paper's code is not public; what it leaves open is decided so: events of different widths are projected to one,
    a projection a sequence; the candidate is an event whose tokens without a target are zero, through the same
    projection; positions count from the newest event; a feature of a single column is a scalar, which nothing refines.

    Sequences are encoded on the user axis: a server does that once a request, and only pools for each candidate.
    """

    class Config(StageConfig):
        """`width` of an event in the transformer, whose feed-forward has `feed_forward_hidden` units (4 * `width`).

        The hypernetwork has `hyper_hidden` units and reads a task's and a sequence's embedding; target attention has
        `pooling_hidden` units. `condition` and `refine` switch the conditional LayerNorms and the refinement off,
        `refine_reduction` is by how much the refinement's hidden layer is narrower than its input.
        """

        kind: Literal["dtrn"] = "dtrn"
        width: int = Field(default=16, ge=2)
        attention_heads: int = Field(default=2, ge=1)
        feed_forward_hidden: int | None = Field(default=None, ge=1)
        task_embedding: int = Field(default=8, ge=1)
        sequence_embedding: int = Field(default=8, ge=1)
        hyper_hidden: int = Field(default=32, ge=1)
        pooling_hidden: int = Field(default=32, ge=1)
        dropout: float = Field(default=0.0, ge=0, lt=1)
        condition: bool = True
        refine: bool = True
        refine_reduction: int = Field(default=3, ge=1)

        @model_validator(mode="after")
        def _heads_divide_the_width(self) -> Self:
            if self.width % self.attention_heads:
                raise ValueError(
                    f"width {self.width} is no multiple of attention_heads {self.attention_heads}; change one"
                )
            return self

    def __init__(self, config: Config, *, layout: InputLayout, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.interests = TaskInterests(
            config, sequences=tuple(layout.sequences.values()), tasks=tasks
        )
        self.refinement = (
            Refinement(layout, config, tasks=tasks, sequences=len(layout.sequences))
            if config.refine
            else None
        )
        self._has_user_block = layout.user_width > 0
        self.width = (
            layout.user_width + layout.candidate_width + len(layout.sequences) * config.width
        )

    def forward(self, blocks: Blocks) -> Tensor:
        interests_NTSK = self.interests(blocks)
        user = [blocks.rows_of(blocks.user_UI)] if self._has_user_block else []
        features_NI = torch.cat([*user, blocks.candidate_NI], dim=1)
        parts = [features_NI[:, None].expand(-1, self.tasks, -1), interests_NTSK.flatten(2)]
        x_NTI = torch.cat(parts, dim=2)
        if self.refinement is None:
            return x_NTI
        refined_NTI: Tensor = x_NTI * self.refinement(features_NI, interests_NTSK)
        return refined_NTI

    def owned(self, tasks: Axis) -> dict[str, Owned]:
        found: dict[str, Owned] = {}
        if isinstance(self.interests.norms, ConditionalNorms):
            found["interests.norms.task_embedding"] = Owned((tasks,))
        if self.refinement is not None:
            found |= below("refinement", along(self.refinement, tasks))
        return found

    @staticmethod
    def parameter_count(config: Config, *, layout: InputLayout, tasks: int) -> int:
        """That of the interests, and of the refinement for every task."""
        sequences = tuple(layout.sequences.values())
        interests = TaskInterests.parameter_count(config, sequences=sequences, tasks=tasks)
        if not config.refine:
            return interests
        fields = len(_fields(layout)) + len(sequences)
        return interests + tasks * Refinement.parameter_count(fields, config.refine_reduction)


class TaskInterests(nn.Module):
    """TIM: an interest a task and sequence, [N, T, S, K]; zeros for a user without events.

    Raises ConfigError where there is no sequence.
    """

    def __init__(
        self, config: DTRN.Config, *, sequences: tuple[SequenceLayout, ...], tasks: int
    ) -> None:
        super().__init__()
        if not sequences:
            raise ConfigError(
                "model.bottom (dtrn): the schema has no sequence to read interests from; "
                'declare one under [sequences], or take kind = "flat"'
            )
        self.tasks = tasks
        self.sequences = sequences
        # A list: a dictionary of modules refuses names such as `items`.
        self.projections = nn.ModuleList(linear(item.width, config.width) for item in sequences)
        self.position_embedding = nn.Parameter(
            torch.randn(max(item.max_length for item in sequences), config.width)
            * _POSITION_DEVIATION
        )
        self.norms: ConditionalNorms | CommonNorms = (
            ConditionalNorms(
                config.width,
                tasks=tasks,
                sequences=len(sequences),
                task_width=config.task_embedding,
                sequence_width=config.sequence_embedding,
                hidden=config.hyper_hidden,
            )
            if config.condition
            else CommonNorms(config.width, sequences=len(sequences))
        )
        self.transformer = ConditionalTransformer(
            config.width,
            attention_heads=config.attention_heads,
            hidden=_feed_forward_hidden(config),
            dropout=config.dropout,
        )
        self.pooling = (
            TargetPooling(config.width, hidden=config.pooling_hidden)
            if any(item.targets for item in sequences)
            else None
        )

    def forward(self, blocks: Blocks) -> Tensor:
        norms_TSJ2K = self.norms()
        pooled = [
            self._interest(sequence, project, norms_TJ2K, blocks)
            for sequence, project, norms_TJ2K in zip(
                self.sequences, self.projections, norms_TSJ2K.unbind(1), strict=True
            )
        ]
        # One interest for all tasks where norms are common.
        return torch.stack(pooled, dim=2).expand(-1, self.tasks, -1, -1)

    @staticmethod
    def parameter_count(
        config: DTRN.Config, *, sequences: tuple[SequenceLayout, ...], tasks: int
    ) -> int:
        """Norms and transformer; (K_s + 1) * K a sequence of width K_s, K a position, and target attention's."""
        width = config.width
        norms = CommonNorms.parameter_count(width)
        if config.condition:
            norms = ConditionalNorms.parameter_count(
                width,
                tasks=tasks,
                sequences=len(sequences),
                task_width=config.task_embedding,
                sequence_width=config.sequence_embedding,
                hidden=config.hyper_hidden,
            )
        transformer = ConditionalTransformer.parameter_count(
            width, hidden=_feed_forward_hidden(config)
        )
        events = sum((item.width + 1) * width for item in sequences)
        events += max(item.max_length for item in sequences) * width
        pooling = 0
        if any(item.targets for item in sequences):
            pooling = TargetPooling.parameter_count(width, hidden=config.pooling_hidden)
        return norms + transformer + events + pooling

    def _interest(
        self, sequence: SequenceLayout, project: nn.Module, norms_TJ2K: Tensor, blocks: Blocks
    ) -> Tensor:
        """[N, T, K] of one sequence."""
        valid_UL = blocks.valid[sequence.name]
        events_ULK = project(blocks.tokens[sequence.name]) + self._positions(valid_UL)
        encoded_UTLK = self.transformer(events_ULK, valid_UL, norms_TJ2K)
        if not sequence.targets:
            return blocks.rows_of(mean_pooling(encoded_UTLK, valid_UL))
        assert self.pooling is not None
        candidate_NK = project(_candidate_as_event(sequence, blocks.candidate_NI))
        interest_NTK: Tensor = self.pooling(
            encoded_UTLK, valid_UL, candidate_NK=candidate_NK, blocks=blocks
        )
        return interest_NTK

    def _positions(self, valid_UL: Tensor) -> Tensor:
        """Embedding of each event's position, [U, L, K], counted from the user's newest."""
        order_L = torch.arange(valid_UL.shape[1], device=valid_UL.device)
        newest_U1 = valid_UL.sum(dim=1, keepdim=True) - 1
        position_UL = (newest_U1 - order_L).clamp(min=0, max=self.position_embedding.shape[0] - 1)
        return nn.functional.embedding(position_UL, self.position_embedding)


class Refinement(nn.Module):
    """TRM: each task's weight in (0, 2) for every column, [N, T, I]; 1 at first.

    w_t = 2 sigmoid(V_2 relu(V_1 z_t + a_1) + a_2), squeeze-and-excitation over fields: z is each field's mean over its
    own columns, and a field is a feature or an interest. A single column is no field and weighs 1.
    """

    field_means: Tensor
    field_of_column: Tensor

    def __init__(
        self, layout: InputLayout, config: DTRN.Config, *, tasks: int, sequences: int
    ) -> None:
        super().__init__()
        fields = _fields(layout)
        # Interests are fields behind the features, and the weight of 1 stands behind all of them.
        count = len(fields) + sequences
        field_of_column = torch.full((layout.user_width + layout.candidate_width,), count)
        means = torch.zeros(len(field_of_column), len(fields))
        for number, columns in enumerate(fields):
            field_of_column[columns.start : columns.stop] = number
            means[columns.start : columns.stop, number] = 1 / len(columns)
        of_interests = torch.arange(len(fields), count).repeat_interleave(config.width)
        self.register_buffer("field_means", means, persistent=False)
        self.register_buffer(
            "field_of_column", torch.cat([field_of_column, of_interests]), persistent=False
        )
        hidden = _refined_hidden(count, config.refine_reduction)
        self.squeeze = ExpertBank(count, (hidden,), experts=tasks)
        self.weight = nn.Parameter(torch.zeros(tasks, count, hidden))
        self.bias = nn.Parameter(torch.zeros(tasks, count))

    def forward(self, features_NI: Tensor, interests_NTSK: Tensor) -> Tensor:
        means_N1F = (features_NI @ self.field_means)[:, None]
        interests_NTS = interests_NTSK.mean(dim=3)
        squeezed_NTF = torch.cat(
            [means_N1F.expand(-1, interests_NTS.shape[1], -1), interests_NTS], dim=2
        )
        field_weights_NTF = self.field_weights(squeezed_NTF)
        one_NT1 = torch.ones_like(field_weights_NTF[..., :1])
        return torch.cat([field_weights_NTF, one_NT1], dim=2).index_select(2, self.field_of_column)

    def field_weights(self, squeezed_NTF: Tensor) -> Tensor:
        """Each field's weight for each task, [N, T, F]."""
        h_NTH = self.squeeze(squeezed_NTF)
        excited_TNF = torch.bmm(h_NTH.transpose(0, 1), self.weight.transpose(1, 2))
        return 2 * torch.sigmoid(excited_TNF.transpose(0, 1).float() + self.bias)

    @staticmethod
    def parameter_count(fields: int, reduction: int) -> int:
        """Of one task: (F + 1) * F/r + (F/r + 1) * F."""
        hidden = _refined_hidden(fields, reduction)
        return (fields + 1) * hidden + (hidden + 1) * fields


def _candidate_as_event(sequence: SequenceLayout, candidate_NI: Tensor) -> Tensor:
    """The candidate's own columns in the places of a sequence's tokens; zeros for tokens without a target."""
    parts = [
        sequence.targets[token].of(candidate_NI)
        if token in sequence.targets
        else candidate_NI.new_zeros(candidate_NI.shape[0], columns.width)
        for token, columns in sequence.tokens.items()
    ]
    return torch.cat(parts, dim=1)


def _fields(layout: InputLayout) -> list[range]:
    """Columns of every feature of more than one column, among the user's and then the candidate's."""
    found = [range(item.start, item.start + item.width) for item in layout.user.values()]
    for item in layout.candidate.values():
        start = layout.user_width + item.start
        found.append(range(start, start + item.width))
    return [columns for columns in found if len(columns) > 1]


def _refined_hidden(fields: int, reduction: int) -> int:
    return max(1, fields // reduction)


def _feed_forward_hidden(config: DTRN.Config) -> int:
    return config.feed_forward_hidden or 4 * config.width
