"""Tables and their optimizer's state as tensor files: whole tables, whatever parts of them the ranks hold.

Row-wise Adagrad adds the mean over a row's squared gradients to one sum a row. A table that is cut by columns has a
sum for each part of a row; their mean, by width, is what the one sum would be of the same gradients, and is stored.
What an optimizer keeps for each number is cut as the numbers are. The first rank writes tables that all of them hold.

Axes: **R** rows, **K** embedding width.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from recsys.models.embeddings.lookup import Embeddings
from recsys.models.embeddings.tables import Part, TableSpec
from recsys.models.embeddings.updates import Quantity
from recsys.ranks import add_up, is_first, largest
from recsys.tensor_files import Block, stored_tensors, write_blocks


def write_tables(file: Path, embeddings: Embeddings) -> None:
    """Write the tables' rows, together with the other ranks."""
    blocks = [
        Block(part.table, (part.first_row, part.first_column), part.weight_RK)
        for part in _written_here(embeddings)
    ]
    write_blocks(file, {spec.name: (spec.rows, spec.dim) for spec in embeddings.specs}, blocks)


def read_tables(file: Path, embeddings: Embeddings) -> None:
    """Fill what this process holds of tables. Raises ArtifactError when the file or a table in it does not fit."""
    embeddings.load_table_weights(stored_tensors(file))


def write_table_optimizer(file: Path, embeddings: Embeddings) -> None:
    """Write what the tables' optimizer remembers, together with the other ranks."""
    parts = _written_here(embeddings)
    blocks: list[Block] = []
    for quantity in embeddings.quantities:
        if quantity.of == "row":
            blocks += _of_whole_rows(parts, embeddings, quantity)
            blocks += _of_columns(parts, embeddings, quantity)
        else:
            blocks += [_as_cut(part, quantity) for part in parts]
    write_blocks(file, embeddings.state_shapes(), blocks)


def read_table_optimizer(file: Path, embeddings: Embeddings) -> None:
    """Fill the optimizer's state of what this process holds of tables. Raises ArtifactError as `read_tables`."""
    embeddings.load_optimizer_state(stored_tensors(file))


def _written_here(embeddings: Embeddings) -> list[Part]:
    parts = embeddings.tables.parts()
    return [part for part in parts if is_first() or not part.on_every_rank]


def _as_cut(part: Part, quantity: Quantity) -> Block:
    first = tuple(item.start for item in part.place(quantity))
    return Block(quantity.key(part.table), first, part.state[quantity.name])


def _of_whole_rows(
    parts: list[Part], embeddings: Embeddings, quantity: Quantity
) -> Iterator[Block]:
    dims = {spec.name: spec.dim for spec in embeddings.specs}
    for part in parts:
        if part.weight_RK.shape[1] == dims[part.table]:
            yield _as_cut(part, quantity)


def _of_columns(parts: list[Part], embeddings: Embeddings, quantity: Quantity) -> Iterator[Block]:
    """Of the tables that ranks, this one or others, hold by columns: the means over parts, from the first rank."""
    specs = embeddings.specs
    here = [[part for part in parts if _is_cut(part, spec)] for spec in specs]
    anywhere = largest([len(found) for found in here])
    for spec, found, cut in zip(specs, here, anywhere, strict=True):
        if not cut:
            continue
        mean_R = torch.zeros(spec.rows)
        for part in found:
            share = part.weight_RK.shape[1] / spec.dim
            mean_R[part.rows] += share * part.state[quantity.name].cpu()
        mean_R = add_up(mean_R)
        if is_first():
            yield Block(quantity.key(spec.name), (0,), mean_R)


def _is_cut(part: Part, spec: TableSpec) -> bool:
    return part.table == spec.name and part.weight_RK.shape[1] < spec.dim
