"""A plan as a person reads it: one line a table, then what a rank holds, sends and waits for."""

from recsys.models.embeddings.updates import TITLES
from recsys.report import aligned_table
from recsys.training.distributed.placement import Placement
from recsys.training.distributed.plan import Plan
from recsys.training.distributed.quantities import bytes_text, count_text

_HEADER = (
    "table",
    "rows",
    "dim",
    "parameters",
    "kind",
    "kernel",
    "ranks",
    "rows, state",
    "buffers",
    "ids",
    "vectors",
    "ms",
)


def plan_text(plan: Plan) -> str:
    """The plan as aligned plain text. Of a table's shards, each column shows the largest."""
    cluster = plan.budget.cluster
    heading = (
        f"{cluster.world_size} ranks ({cluster.device}), {cluster.ranks_per_host} a host, "
        f"{plan.batch_size:,} rows a rank a step"
    )
    table = aligned_table(_HEADER, [_cells(item) for item in plan.placements])
    return "\n\n".join([heading, table, "\n".join([*_totals(plan), *_lengths(plan)])])


def _cells(item: Placement) -> tuple[str, ...]:
    spec, shards = item.demand.spec, item.shards
    return (
        spec.name,
        count_text(spec.rows),
        str(spec.dim),
        count_text(item.parameters),
        item.kind,
        item.kernel,
        _ranks(item.ranks),
        bytes_text(max(shard.weight_bytes + shard.optimizer_bytes for shard in shards)),
        bytes_text(max(shard.buffer_bytes for shard in shards)),
        bytes_text(max(shard.id_bytes for shard in shards)),
        bytes_text(max(shard.vector_bytes for shard in shards)),
        f"{max(shard.lookup_ms + shard.exchange_ms for shard in shards):.2f}",
    )


def _ranks(ranks: tuple[int, ...]) -> str:
    """`3`, `0-127`, or for ranks that do not follow each other the first, the last and their number."""
    first, last = ranks[0], ranks[-1]
    if first == last:
        return str(first)
    span = f"{first}-{last}"
    return span if len(ranks) == last - first + 1 else f"{len(ranks)} of {span}"


def _totals(plan: Plan) -> list[str]:
    dense, world = plan.budget.dense, plan.budget.cluster.world_size
    busiest = max(plan.loads, key=lambda load: load.moved_bytes)
    slowest = max(plan.loads, key=lambda load: load.table_ms)
    kept = sum(
        shard.weight_bytes + shard.optimizer_bytes
        for item in plan.placements
        for shard in item.shards
    )
    lines = [
        f"parameters    {count_text(plan.parameters)} ({plan.parameters:,}), "
        f"{dense.parameters:,} of them dense, on every rank",
        f"tables        {bytes_text(kept)} on all ranks, {_optimizer(plan)}'s state included",
        *_memory(plan),
        f"moved a step  {bytes_text(busiest.moved_bytes)} at rank {busiest.rank}, the most: ids, vectors, their "
        f"gradients; and {bytes_text(dense.sent_bytes(world))} of dense gradients at every rank",
        f"time a step   {plan.step_ms:.1f} ms without dense computation: tables {slowest.table_ms:.1f} at rank "
        f"{slowest.rank}, the slowest, dense gradients {plan.all_reduce_ms:.1f}",
    ]
    return [*lines, *_copies(plan)]


def _copies(plan: Plan) -> list[str]:
    """What of the above is for tables that every rank holds."""
    copies = [item.shards[0] for item in plan.placements if item.is_copied]
    if not copies:
        return []
    kept = sum(shard.weight_bytes + shard.optimizer_bytes for shard in copies)
    sent = sum(shard.gradient_bytes for shard in copies)
    return [
        f"every rank    holds {', '.join(plan.copied)}: {bytes_text(kept)}; "
        f"of what it moves, {bytes_text(sent)} are their gradients"
    ]


def _optimizer(plan: Plan) -> str:
    return " and ".join({TITLES[item.demand.optimizer]: None for item in plan.placements})


def _memory(plan: Plan) -> list[str]:
    budget = plan.budget
    fullest = max(plan.loads, key=lambda load: load.device_bytes + load.buffer_bytes)
    used = fullest.device_bytes + fullest.buffer_bytes + budget.dense.bytes + budget.id_map_bytes
    device = (
        f"{bytes_text(used)} of {bytes_text(budget.device_limit)} at rank {fullest.rank}, the fullest: "
        f"{bytes_text(fullest.device_bytes)} rows and state, {bytes_text(fullest.buffer_bytes)} buffers, "
        f"{bytes_text(budget.dense.bytes)} dense part"
    )
    if budget.id_map_bytes:
        device += f", {bytes_text(budget.id_map_bytes)} id maps"
    reserved = f"reserved      {budget.reserved:.0%} of all memory, beside these limits"
    if budget.cluster.device == "cpu":
        return [f"host memory   {device}", reserved]
    host = max(load.host_bytes for load in plan.loads)
    return [
        f"HBM           {device}",
        f"host memory   {bytes_text(host)} of a rank's {bytes_text(budget.host_limit)}",
        reserved,
    ]


def _lengths(plan: Plan) -> list[str]:
    return [
        f"counted with  {length.mean:g} ids or events of {length.name} a row ({length.because})"
        for length in plan.lengths
    ]
