"""A plan: every table's placement and the dense part beside them, on a cluster."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from recsys.errors import ConfigError
from recsys.models.embeddings.tables import TableSpec
from recsys.training.distributed.cluster import Cluster
from recsys.training.distributed.demand import Length
from recsys.training.distributed.fit import Room, check_complete, check_room, device_need
from recsys.training.distributed.placement import NUMBER_BYTES, Placement, Shard, ring_bytes
from recsys.training.distributed.quantities import bytes_text

# Weights, gradients, and AdamW's two moments.
_DENSE_COPIES = 4


@dataclass(frozen=True)
class Dense:
    """The part of a model behind its tables, float32, which every rank holds whole."""

    parameters: int

    @property
    def bytes(self) -> int:
        """Weights, gradients and AdamW's two moments."""
        return _DENSE_COPIES * NUMBER_BYTES * self.parameters

    def sent_bytes(self, world_size: int) -> int:
        """What a rank sends to sum the gradients over all ranks."""
        return ring_bytes(self.parameters, world_size)


@dataclass(frozen=True)
class Budget:
    """What of a rank's memory goes to what: the cluster's, less `reserved` (a share of it), less what is on every rank.

    That is the dense part, and `id_map_bytes`.
    """

    cluster: Cluster
    reserved: float
    dense: Dense
    id_map_bytes: int = 0

    @property
    def device_limit(self) -> int:
        """Bytes of a rank's device for tables, a step's buffers, the dense part and id maps."""
        return int(self.cluster.rank_bytes * (1 - self.reserved))

    @property
    def host_limit(self) -> int:
        """Bytes of host memory for a rank's rows beside the device; none where the host is the device."""
        if self.cluster.device == "cpu":
            return 0
        return int(self.cluster.host_bytes_of_rank * (1 - self.reserved))

    def room(self) -> Room:
        """What is left for tables. Raises ConfigError when the dense part, or id maps beside it, leave nothing."""
        left = self.device_limit - self.dense.bytes
        memory = "HBM" if self.cluster.device == "cuda" else "host memory"
        whole = f"{bytes_text(self.cluster.rank_bytes)} {memory} less {self.reserved:.0%} reserved"
        if left <= 0:
            raise ConfigError(
                f"the dense part does not fit: its {self.dense.parameters} parameters with gradients and AdamW's "
                f"moments need {bytes_text(self.dense.bytes)} on every rank, which has "
                f"{bytes_text(self.device_limit)} ({whole}); make bottom, mixing or heads smaller"
            )
        because = f"{whole} and {bytes_text(self.dense.bytes)} for the dense part"
        if self.id_map_bytes:
            because += f", {bytes_text(self.id_map_bytes)} for id maps"
            left -= self.id_map_bytes
            if left <= 0:
                raise ConfigError(
                    f'the id maps do not fit: those of tables with ids = "zch" lie whole on every rank ({because}); '
                    'give these tables fewer rows, or say ids = "unbounded"'
                )
        return Room(self.cluster.world_size, left, self.host_limit, because)


@dataclass(frozen=True)
class RankLoad:
    """What one rank keeps, needs for a step (`buffer_bytes`) and moves in one, and TorchRec's estimate of its time.

    `device_bytes` are rows and optimizer state on the device, without buffers and the dense part.
    """

    rank: int
    device_bytes: int
    host_bytes: int
    buffer_bytes: int
    moved_bytes: int
    table_ms: float


@dataclass(frozen=True)
class Plan:
    """Placements of all tables, in the schema's order. `batch_size` is rows a rank takes a step."""

    budget: Budget
    batch_size: int
    lengths: tuple[Length, ...]
    placements: tuple[Placement, ...]

    @property
    def parameters(self) -> int:
        return self.budget.dense.parameters + sum(item.parameters for item in self.placements)

    @property
    def loads(self) -> tuple[RankLoad, ...]:
        """Every rank's load, by rank."""
        shards: list[list[Shard]] = [[] for _ in range(self.budget.cluster.world_size)]
        for placement in self.placements:
            for shard in placement.shards:
                shards[shard.rank].append(shard)
        return tuple(_load(rank, found) for rank, found in enumerate(shards))

    @property
    def copied(self) -> tuple[str, ...]:
        """Tables that every rank holds whole."""
        return tuple(item.table for item in self.placements if item.is_copied)

    @property
    def all_reduce_ms(self) -> float:
        """Time to sum the dense gradients over the slowest link."""
        cluster = self.budget.cluster
        link = cluster.inter_host_bandwidth if cluster.hosts > 1 else cluster.intra_host_bandwidth
        return 1e3 * self.budget.dense.sent_bytes(cluster.world_size) / link

    @property
    def step_ms(self) -> float:
        """Tables on the slowest rank and the dense gradients, one after the other; no dense computation."""
        return max(load.table_ms for load in self.loads) + self.all_reduce_ms

    def check(self, specs: Iterable[TableSpec]) -> None:
        """Raise ConfigError when a table is not placed exactly once, or a rank has no room for its shards."""
        check_complete(self.placements, specs)
        check_room(self.placements, self.budget.room())

    def to_json(self) -> dict[str, Any]:
        budget, cluster = self.budget, self.budget.cluster
        return {
            "cluster": vars(cluster),
            "batch_size": self.batch_size,
            "parameters": self.parameters,
            "memory": {
                "reserved": budget.reserved,
                "device_limit_bytes": budget.device_limit,
                "id_map_bytes": budget.id_map_bytes,
                "host_limit_bytes": budget.host_limit,
            },
            "dense": {
                "parameters": budget.dense.parameters,
                "bytes": budget.dense.bytes,
                "sent_bytes": budget.dense.sent_bytes(cluster.world_size),
                "all_reduce_ms": self.all_reduce_ms,
            },
            "step_ms": self.step_ms,
            "lengths": [vars(length) for length in self.lengths],
            "tables": [placement.to_json() for placement in self.placements],
            "ranks": [vars(load) for load in self.loads],
        }


def _load(rank: int, shards: list[Shard]) -> RankLoad:
    device = sum(shard.device_bytes for shard in shards)
    return RankLoad(
        rank=rank,
        device_bytes=device,
        host_bytes=sum(shard.host_bytes for shard in shards),
        buffer_bytes=device_need(shards) - device,
        moved_bytes=sum(shard.moved_bytes for shard in shards),
        table_ms=sum(shard.lookup_ms + shard.exchange_ms for shard in shards),
    )
