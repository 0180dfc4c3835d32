"""Where the shards of each table lie, and what a step costs there: bytes kept, bytes sent, milliseconds.

Formulas, with B rows a rank, n ids and v vectors a row, W ranks on H hosts, 8 bytes an id and 4 a number, for a shard
of R rows and K columns:

| kind | ids it looks up | vectors it makes |
| --- | --- | --- |
| table_wise, column_wise, table_column_wise | W B n | W B v |
| row_wise, sums of bags | B n | W B v: its part of every rank's sums |
| row_wise, a vector an id | B n | B n |
| table_row_wise | H B n | W B v: its part of sums, added up within the host to H B v |
| data_parallel | B n | B v, which stay; 2 (W - 1) / W x 4 R K bytes of gradients leave, in a ring |

Weights take 4 R K bytes, row-wise Adagrad's state 4 R, Adagrad's 4 R K; the buffers of a step 8 bytes for each of these
ids and 4 K for each of these vectors. All but 1/W of them cross to other ranks, forward, and as many bytes of gradients
come back. A data_parallel table's buffers take 8 R K more: its gradient, and the message that adds it up.
"""

import math
from dataclasses import dataclass
from typing import Any

from recsys.models.embeddings.updates import state_bytes
from recsys.training.distributed.cluster import Cluster
from recsys.training.distributed.demand import Demand

ID_BYTES = 8
NUMBER_BYTES = 4
# The kind that is a copy on every rank, and TorchRec's name for the kernel of a gradient of all rows.
COPIED = "data_parallel"
DENSE_KERNEL = "dense"
# Of a cache: where each row lies, and for each cached one which it is and when it was read.
_INDEX_BYTES, _SLOT_BYTES = 4, 16
# Kernels of rows that lie there alone.
_ON_DEVICE = ("fused", DENSE_KERNEL)


@dataclass(frozen=True)
class Shard:
    """A part of a table on a rank. `lookup_ms` and `exchange_ms` are TorchRec's estimates, forward and backward.

    `device_bytes` and `host_bytes` are where weights and optimizer state lie. Sent bytes are those of the forward pass,
    but for `gradient_bytes`, which a rank sends of a table that every rank holds.
    """

    rank: int
    rows: int
    columns: int
    weight_bytes: int
    optimizer_bytes: int
    device_bytes: int
    host_bytes: int
    buffer_bytes: int
    id_bytes: int
    intra_host_bytes: int
    inter_host_bytes: int
    gradient_bytes: int
    lookup_ms: float
    exchange_ms: float

    @property
    def vector_bytes(self) -> int:
        """What the forward pass sends of it; as many bytes of gradients come back."""
        return self.intra_host_bytes + self.inter_host_bytes

    @property
    def moved_bytes(self) -> int:
        """What a step moves between ranks on its account: ids, vectors and their gradients."""
        return self.id_bytes + 2 * self.vector_bytes + self.gradient_bytes


@dataclass(frozen=True)
class Placement:
    """One table: how it is cut and where its rows lie. `pooled` tables sum each bag where it lies."""

    demand: Demand
    kind: str
    kernel: str
    pooled: bool
    shards: tuple[Shard, ...]

    @property
    def table(self) -> str:
        return self.demand.spec.name

    @property
    def parameters(self) -> int:
        return self.demand.spec.rows * self.demand.spec.dim

    @property
    def is_copied(self) -> bool:
        """Whether each of its shards is the whole table."""
        return self.kind == COPIED

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that hold rows of it."""
        return tuple(sorted({shard.rank for shard in self.shards if shard.rows}))

    def to_json(self) -> dict[str, Any]:
        spec = self.demand.spec
        return {
            "table": spec.name,
            "rows": spec.rows,
            "dim": spec.dim,
            "parameters": self.parameters,
            "slots": list(spec.streams),
            "ids_per_row": self.demand.ids_per_row,
            "kind": self.kind,
            "kernel": self.kernel,
            "pooled": self.pooled,
            "ranks": list(self.ranks),
            "shards": [vars(shard) for shard in self.shards],
        }


@dataclass(frozen=True)
class Cut:
    """How a table is cut, as far as a shard's cost depends on it. `cache_fraction` is for a cached kernel."""

    kind: str
    kernel: str
    pooled: bool
    cache_fraction: float


@dataclass(frozen=True)
class _Volume:
    """Ids that a shard looks up in a step and vectors that it makes of them, its own rank's included."""

    ids: float
    vectors: float


def shard(
    demand: Demand,
    cut: Cut,
    *,
    rank: int,
    rows: int,
    columns: int,
    cluster: Cluster,
    batch_size: int,
    lookup_ms: float,
    exchange_ms: float,
) -> Shard:
    """A shard with its bytes; of one without rows nothing is read."""
    weight = NUMBER_BYTES * rows * columns
    state = state_bytes(demand.optimizer, rows=rows, columns=columns)
    volume = _volume(demand, cut, cluster, batch_size) if rows else _Volume(0, 0)
    output = NUMBER_BYTES * columns * volume.vectors
    intra, inter = _sent(output, cut, cluster)
    copied = cut.kind == COPIED
    away = 0.0 if copied else 1 - 1 / cluster.world_size
    return Shard(
        rank=rank,
        rows=rows,
        columns=columns,
        weight_bytes=weight,
        optimizer_bytes=state,
        device_bytes=_on_device(weight + state, rows, cut),
        host_bytes=0 if cut.kernel in _ON_DEVICE else weight + state,
        buffer_bytes=math.ceil(ID_BYTES * volume.ids)
        + math.ceil(output)
        + (gradient_buffer(rows, columns) if copied else 0),
        id_bytes=math.ceil(ID_BYTES * volume.ids * away),
        intra_host_bytes=math.ceil(intra),
        inter_host_bytes=math.ceil(inter),
        gradient_bytes=ring_bytes(rows * columns, cluster.world_size) if copied else 0,
        lookup_ms=lookup_ms,
        exchange_ms=exchange_ms,
    )


def ring_bytes(numbers: int, world_size: int) -> int:
    """What a rank sends to add so many numbers up over all ranks: 2 (W - 1) / W of them, in a ring."""
    return 2 * (world_size - 1) * NUMBER_BYTES * numbers // world_size


def gradient_buffer(rows: int, columns: int) -> int:
    """Bytes for a gradient of all rows, and for the message in which ranks add it up."""
    return 2 * NUMBER_BYTES * rows * columns


def _volume(demand: Demand, cut: Cut, cluster: Cluster, batch_size: int) -> _Volume:
    ids, vectors = batch_size * demand.ids_per_row, batch_size * demand.vectors_per_row
    if cut.kind == COPIED:
        return _Volume(ids, vectors)
    if cut.kind == "row_wise":
        return _Volume(ids, vectors * cluster.world_size if cut.pooled else vectors)
    readers = cluster.hosts if cut.kind == "table_row_wise" else cluster.world_size
    return _Volume(ids * readers, vectors * cluster.world_size)


def _sent(output: float, cut: Cut, cluster: Cluster) -> tuple[float, float]:
    """Bytes of a shard's vectors that go to other ranks of the host, and to other hosts."""
    world, local, hosts = cluster.world_size, cluster.ranks_per_host, cluster.hosts
    if cut.kind == COPIED:
        return 0.0, 0.0
    if cut.kind == "table_row_wise":
        reduced = output / local
        return output * (local - 1) / local, reduced * (hosts - 1) / hosts
    return output * (local - 1) / world, output * (world - local) / world


def _on_device(stored: int, rows: int, cut: Cut) -> int:
    if cut.kernel in _ON_DEVICE:
        return stored
    if cut.kernel == "fused_uvm":
        return 0
    cached = cut.cache_fraction
    return math.ceil(stored * cached) + math.ceil(rows * (_INDEX_BYTES + _SLOT_BYTES * cached))
