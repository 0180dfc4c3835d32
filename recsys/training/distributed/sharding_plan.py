"""Plans of TorchRec's `EmbeddingShardingPlanner`, for tables that exist and for tables that are only described.

What a row asks of a table reaches the planner as pooling factors (ids a bag) and numbers of poolings (bags a row). The
planner is given what it does not see by itself: row-wise Adagrad's number a row, and options in an order that does not
change with the interpreter's hash seed, so that every rank can plan alone and all agree.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    Storage,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ShardingPlan

from recsys.errors import ConfigError
from recsys.models.embeddings.tables import module_name, table_name
from recsys.sharding import ShardingConfig, TableConstraint
from recsys.training.distributed.cluster import Cluster
from recsys.training.distributed.demand import Demand, Length
from recsys.training.distributed.described_tables import collections, kernels, kinds, sharders
from recsys.training.distributed.fit import Room, why_none
from recsys.training.distributed.placement import (
    COPIED,
    DENSE_KERNEL,
    Cut,
    Placement,
    Shard,
    gradient_buffer,
    shard,
)
from recsys.training.distributed.plan import Budget, Plan

# Kinds that nobody has to ask for. A column shard keeps an Adagrad state of its own: another optimizer than one
# process has, whose state fits no other plan.
_UNASKED = ("table_wise", "row_wise", "table_row_wise")
_NOTHING = {"hbm": 0, "ddr": 0}


@dataclass(frozen=True, eq=False)
class ModulePlan:
    """A plan, and the same as TorchRec's `ShardingPlan` for `DistributedModelParallel`."""

    plan: Plan
    sharding: Any

    def sharding_of(self, module: nn.Module) -> Any:
        """The `ShardingPlan` of a module whose collections hold some of the planned tables."""
        by_table = {name: item for of in self.sharding.plan.values() for name, item in of.items()}
        found = {
            path: EmbeddingModuleShardingPlan(
                {name: by_table[name] for name in sharder.shardable_parameters(collection)}
            )
            for path, collection in module.named_modules()
            for sharder in sharders()
            if isinstance(collection, sharder.module_type)
        }
        return ShardingPlan(found)


def plan_tables(
    demands: Sequence[Demand],
    budget: Budget,
    *,
    batch_size: int,
    config: ShardingConfig,
    lengths: Sequence[Length] = (),
) -> Plan:
    """The plan of tables that are only described: nothing is allocated. Raises ConfigError where none fits."""
    module = collections(demands, budget.cluster.device)
    planned = plan_module(
        module, demands, budget=budget, batch_size=batch_size, config=config, lengths=lengths
    )
    return planned.plan


def plan_module(
    module: nn.Module,
    demands: Sequence[Demand],
    *,
    budget: Budget,
    batch_size: int,
    config: ShardingConfig,
    lengths: Sequence[Length] = (),
) -> ModulePlan:
    """The plan of the collections in a module, which hold the tables of `demands`. The same on every rank.

    Raises ConfigError where no placement has room, or where a constraint asks for what the device cannot do.
    """
    room = budget.room()
    constraints = {
        module_name(demand.spec.name): _constraints(demand, config, budget.cluster)
        for demand in demands
    }
    topology = _topology(budget.cluster, room)
    enumerator = _OrderedEnumerator(
        topology=topology, batch_size=batch_size, constraints=constraints
    )
    chosen = _Chosen()
    planner = _planner(enumerator, topology, constraints=constraints, chosen=chosen)
    reader = _Reader({demand.spec.name: demand for demand in demands}, config, budget, batch_size)
    try:
        with _copies_unmentioned():
            sharding = planner.plan(module, sharders())
    except PlannerError as error:
        options = enumerator.last_stored_search_space or ()
        raise ConfigError(why_none([reader.placement(item) for item in options], room)) from error
    plan = Plan(budget, batch_size, tuple(lengths), reader.in_order(chosen.options))
    plan.check(demand.spec for demand in demands)
    return ModulePlan(plan, sharding)


def _planner(
    enumerator: Any, topology: Any, *, constraints: Mapping[str, Any], chosen: "_Chosen"
) -> Any:
    return EmbeddingShardingPlanner(
        topology=topology,
        enumerator=enumerator,
        constraints=constraints,
        # What is reserved is not in the topology.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        # Not its search of a grid, which makes up to ten thousand proposals.
        proposer=[GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()],
        stats=NoopEmbeddingStats(),
        callbacks=[chosen.keep],
    )


@contextmanager
def _copies_unmentioned() -> Iterator[None]:
    """Keep TorchRec from warning, by torch's and everybody's root logger, that a copied table is not cut."""

    def is_told(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Sharding spec not found")

    root = logging.getLogger()
    root.addFilter(is_told)
    try:
        yield
    finally:
        root.removeFilter(is_told)


class _Chosen:
    """Keeps the options that the planner chose: its own plan has no estimates."""

    def __init__(self) -> None:
        self.options: list[Any] = []

    def keep(self, options: list[Any]) -> list[Any]:
        self.options = options
        return options


class _OrderedEnumerator(EmbeddingEnumerator):  # type: ignore[misc] # a class without types
    """TorchRec's enumerator walks through sets of texts, whose order is another in every process.

    It counts no gradient of a table that every rank holds.
    """

    def enumerate(self, module: nn.Module, sharders: list[Any]) -> list[Any]:
        found: list[Any] = super().enumerate(module, sharders)
        memory = "ddr" if self._compute_device == "cpu" else "hbm"
        for option in found:
            if option.sharding_type == COPIED:
                for part in option.shards:
                    part.storage += Storage(**_NOTHING | {memory: gradient_buffer(*part.size)})
        return sorted(found, key=lambda item: (item.fqn, item.sharding_type, item.compute_kernel))


@dataclass(frozen=True)
class _Reader:
    """Reads the planner's options as placements."""

    demands: Mapping[str, Demand]
    config: ShardingConfig
    budget: Budget
    batch_size: int

    def in_order(self, options: Sequence[Any]) -> tuple[Placement, ...]:
        """The placements of chosen options, in the order of the demands."""
        order = list(self.demands)
        found = [self.placement(option) for option in options]
        return tuple(sorted(found, key=lambda item: order.index(item.table)))

    def placement(self, option: Any) -> Placement:
        name = table_name(option.name)
        cut = Cut(
            kind=option.sharding_type,
            kernel=option.compute_kernel,
            pooled=option.is_pooled,
            cache_fraction=_constraint(name, self.config).cache_fraction,
        )
        shards = tuple(self._shard(name, cut, item) for item in option.shards)
        return Placement(self.demands[name], cut.kind, cut.kernel, cut.pooled, shards)

    def _shard(self, name: str, cut: Cut, found: Any) -> Shard:
        rows, columns = found.size
        estimate = found.perf
        return shard(
            self.demands[name],
            cut,
            rank=-1 if found.rank is None else found.rank,
            rows=rows,
            columns=columns,
            cluster=self.budget.cluster,
            batch_size=self.batch_size,
            lookup_ms=estimate.fwd_compute + estimate.bwd_compute,
            exchange_ms=estimate.fwd_comms + estimate.bwd_comms,
        )


def _constraint(name: str, config: ShardingConfig) -> TableConstraint:
    return config.constraints.get(name, TableConstraint())


def _constraints(demand: Demand, config: ShardingConfig, cluster: Cluster) -> ParameterConstraints:
    """What the planner is told of a table. Raises ConfigError for a kind or kernel that the device does not have."""
    spec, asked = demand.spec, _constraint(demand.spec.name, config)
    possible = kinds(spec)
    _check_possible(spec.name, "kinds", asked.kinds or (), possible, cluster)
    _check_possible(spec.name, "kernels", asked.kernels, kernels(cluster.device), cluster)
    cache = CacheParams(load_factor=asked.cache_fraction)
    dense = [DENSE_KERNEL] if COPIED in (asked.kinds or ()) else []
    return ParameterConstraints(
        sharding_types=list(asked.kinds or [kind for kind in possible if kind in _UNASKED]),
        compute_kernels=[*asked.kernels, *dense],
        min_partition=asked.min_partition,
        # The ids of a ragged table count one by one.
        pooling_factors=[1.0] if spec.ragged else list(demand.ids),
        num_poolings=[demand.ids_per_row] if spec.ragged else [1.0] * len(demand.ids),
        cache_params=cache if "fused_uvm_caching" in asked.kernels else None,
    )


def _check_possible(
    table: str, setting: str, asked: Sequence[str], possible: Sequence[str], cluster: Cluster
) -> None:
    for name in asked:
        if name not in possible:
            raise ConfigError(
                f"sharding.constraints.{table}.{setting}: on {cluster.device} this table cannot be {name}; "
                f"take of: {', '.join(possible)}"
            )


def _topology(cluster: Cluster, room: Room) -> Any:
    """The cluster as TorchRec counts: bytes that tables may take, and bytes a millisecond."""
    on_cpu = cluster.device == "cpu"
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=cluster.world_size, local_world_size=cluster.ranks_per_host),
        HardwareConfig(
            hbm_cap_bytes=0 if on_cpu else room.device,
            ddr_cap_bytes=room.device if on_cpu else room.host,
            hbm_mem_bw=cluster.hbm_bandwidth / 1e3,
            ddr_mem_bw=cluster.host_bandwidth / 1e3,
            hbm_to_ddr_mem_bw=cluster.device_to_host_bandwidth / 1e3,
            intra_host_bw=cluster.intra_host_bandwidth / 1e3,
            inter_host_bw=cluster.inter_host_bandwidth / 1e3,
        ),
        KernelConfig(compute_device=cluster.device, use_hardware_based_bandwidth=True),
    )
