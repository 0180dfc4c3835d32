"""The ranking model: embeddings -> bottom -> mixing -> heads -> logits.

The program, everything after the embeddings, is what a bundle carries; tables stay outside of it.

Axes: **B** rows, **N** candidates, **T** tasks, **U** users, **I** input width, **H** width of a representation.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from recsys.batch import Batch
from recsys.models.embeddings.lookup import Embeddings
from recsys.models.inputs import Blocks, InputLayout
from recsys.models.owners import Axis, Owned, below, of_tasks
from recsys.models.probe import Watched


class Stage(Protocol):
    """What all stages say: whose the parts of their parameters are (`recsys.models.owners`)."""

    def owned(self, tasks: Axis) -> Mapping[str, Owned]: ...


class Bottom(Stage, Protocol):
    """Blocks to the mixing stage's input: [N, I], or [N, T, I] when every task has its own."""

    width: int

    def __call__(self, blocks: Blocks) -> Tensor: ...


class Mixing(Stage, Protocol):
    """[N, I] or [N, T, I] to one representation a task, [N, T, H]. Equal inputs for all tasks equal the one input."""

    width: int

    def __call__(self, x: Tensor) -> Tensor: ...

    def watched(self) -> tuple[Watched, ...]: ...


class Heads(Stage, Protocol):
    """[N, T, H] to logits [N, T]. Where they `keeps_order`, no task is ever likelier than the one it is `given`."""

    keeps_order: ClassVar[bool]

    def __call__(self, x_NTH: Tensor) -> Tensor: ...

    def initialize_output_bias(self, means: Sequence[float]) -> None: ...


class Program(nn.Module):
    """Logits [N, T] of blocks: bottom -> mixing -> heads. A `given` task's logit is its joint one."""

    def __init__(
        self,
        *,
        layout: InputLayout,
        task_names: tuple[str, ...],
        bottom: Bottom,
        mixing: Mixing,
        heads: Heads,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.task_names = task_names
        self.bottom = bottom
        self.mixing = mixing
        self.heads = heads

    def forward(self, blocks: Blocks) -> Tensor:
        return self.heads(self.mixing(self.bottom(blocks)))

    def owned(self) -> dict[str, Owned]:
        """Whose the parts of parameters and buffers are, by their names in the state; the rest is shared whole."""
        tasks = of_tasks(self.task_names)
        stages: dict[str, Stage] = {
            "bottom": self.bottom,
            "mixing": self.mixing,
            "heads": self.heads,
        }
        return {
            key: item
            for name, stage in stages.items()
            for key, item in below(name, stage.owned(tasks)).items()
        }

    def initialize_output_bias(self, means: Mapping[str, float]) -> None:
        """Start at the base rate. `means`: each task's mean label over all of the training rows."""
        self.heads.initialize_output_bias([means[task] for task in self.task_names])


class NamedProgram(nn.Module):
    """A program over separate tensors, in the order of `input_names`: the signature that an export has."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.names = input_names(program.layout)

    def forward(self, *tensors: Tensor) -> Tensor:
        logits_NT: Tensor = self.program(named_blocks(dict(zip(self.names, tensors, strict=True))))
        return logits_NT


class RankingModel(nn.Module):
    """Logits [B, T] of a batch.

    `program.parameters()` are the dense parameters. Tables update themselves in the backward pass, at the rate that
    `embeddings.set_learning_rate` gave before the forward pass.
    """

    def __init__(self, embeddings: Embeddings, program: Program) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.program = program

    def forward(self, batch: Batch) -> Tensor:
        logits_BT: Tensor = self.program(self.embeddings(batch))
        return logits_BT


def input_names(layout: InputLayout) -> tuple[str, ...]:
    """Names of a program's inputs, in order."""
    sequences = [f"{part}.{name}" for name in layout.sequences for part in ("tokens", "valid")]
    return ("user_UI", "candidate_NI", "user_of_row_N", *sequences)


def named_blocks(tensors: Mapping[str, Tensor]) -> Blocks:
    """Blocks of tensors by the names of `input_names`."""

    def of(part: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(part): item for name, item in tensors.items() if name.startswith(part)
        }

    return Blocks(
        user_UI=tensors["user_UI"],
        candidate_NI=tensors["candidate_NI"],
        user_of_row_N=tensors["user_of_row_N"],
        tokens=of("tokens."),
        valid=of("valid."),
    )
