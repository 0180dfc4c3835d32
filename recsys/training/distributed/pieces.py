"""What a task of a stream does: reads and encodes a piece of an epoch, and hands it over in chunks.

No torch in here: a task on a core of its own starts without it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys import errors
from recsys.days import Days, RowGroup
from recsys.errors import UserError
from recsys.layout import training_columns


@dataclass(frozen=True)
class Piece:
    """Row groups that are read, permuted by the seed, and cut in chunks, of which the first ones may be left out."""

    groups: tuple[RowGroup, ...]
    chunks: int
    left_out: int
    seed: tuple[int, ...]

    def tables(self, days: Days) -> Iterator[pa.Table]:
        """The encoded rows of each chunk."""
        table = days.read(self.groups, training_columns(days.schema))
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(table.num_rows)
        for rows in np.array_split(order, self.chunks)[self.left_out :]:
            yield table.take(pa.array(rows))


def messages(piece: Piece, days: Days) -> Iterator[bytes]:
    """Each chunk of a piece as Arrow's stream. A user's mistake travels as data, for Ray would bury it: in each one."""
    try:
        for table in piece.tables(days):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            yield sink.getvalue().to_pybytes()
    except UserError as error:
        told = json.dumps({"error": type(error).__name__, "message": str(error)}).encode()
        yield from [told] * (piece.chunks - piece.left_out)


def table_of(message: bytes) -> pa.Table:
    """The encoded rows of a message. Raises the mistake that it holds instead."""
    if message.startswith(b"{"):
        tree = json.loads(message)
        kind: type[UserError] = getattr(errors, tree["error"])
        raise kind(tree["message"])
    return pa.ipc.open_stream(message).read_all().combine_chunks()
