"""The named blocks a program takes, and where each feature lies in them.

Axes: **U** users of a request, **N** candidates, **I** width of a block, **L** events, **K** width of one event.
In training every row is its own user: U = N = B.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from recsys.layout import BlockSide, dense, slots
from recsys.schema import Schema


@dataclass(frozen=True, eq=False)
class Blocks:
    """Everything a program reads. `user_of_row_N` is the row of `user_UI` per candidate, None where U = N in order.

    Per sequence: `tokens` [U, L, K], events left-aligned, oldest first, exact zeros after the last one, and `valid`
    [U, L], true for events. L may be any length up to the sequence's `max_length`.
    """

    user_UI: Tensor
    candidate_NI: Tensor
    user_of_row_N: Tensor | None = None
    tokens: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)

    def rows_of(self, user_U: Tensor) -> Tensor:
        """A tensor over users, repeated for each of their candidates."""
        return user_U if self.user_of_row_N is None else user_U.index_select(0, self.user_of_row_N)


@dataclass(frozen=True)
class Columns:
    """A run of columns on a block's last axis."""

    name: str
    start: int
    width: int

    def of(self, block: Tensor) -> Tensor:
        return block.narrow(-1, self.start, self.width)


@dataclass(frozen=True)
class SequenceLayout:
    """Where a sequence's tokens lie on the last axis of `tokens`, and the candidate's columns they compare with."""

    name: str
    max_length: int
    width: int
    tokens: dict[str, Columns]
    targets: dict[str, Columns]


@dataclass(frozen=True)
class InputLayout:
    """Widths of the blocks and the columns of every feature, in the order that serving gathers them in."""

    user_width: int
    candidate_width: int
    user: dict[str, Columns]
    candidate: dict[str, Columns]
    sequences: dict[str, SequenceLayout]


def input_layout(schema: Schema) -> InputLayout:
    """The layout of a schema's blocks: pooled slots in the schema's order, then dense values."""
    user, candidate = _block(schema, "user"), _block(schema, "candidate")
    return InputLayout(
        user_width=sum(item.width for item in user.values()),
        candidate_width=sum(item.width for item in candidate.values()),
        user=user,
        candidate=candidate,
        sequences={name: _sequence(schema, name, candidate) for name in schema.sequences},
    )


def _block(schema: Schema, side: BlockSide) -> dict[str, Columns]:
    widths = [(slot.name, slot.dim) for slot in slots(schema, side) if slot.kind != "token"]
    return _columns([*widths, *((item.name, item.width) for item in dense(schema, side))])


def _sequence(schema: Schema, name: str, candidate: dict[str, Columns]) -> SequenceLayout:
    prefix = f"{name}."
    own = [slot for slot in slots(schema) if slot.sequence == name]
    tokens = _columns((slot.name.removeprefix(prefix), slot.dim) for slot in own)
    return SequenceLayout(
        name=name,
        max_length=schema.sequences[name].max_length,
        width=sum(slot.dim for slot in own),
        tokens=tokens,
        targets={
            token: candidate[target] for token, target in schema.sequences[name].target.items()
        },
    )


def _columns(widths: Iterable[tuple[str, int]]) -> dict[str, Columns]:
    found: dict[str, Columns] = {}
    start = 0
    for name, width in widths:
        found[name] = Columns(name, start, width)
        start += width
    return found
