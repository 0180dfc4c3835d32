"""Whether a plan holds every table and every rank what it is given; if not, the sentence that says what to do."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recsys.errors import ConfigError
from recsys.models.embeddings.tables import TableSpec
from recsys.training.distributed.placement import Placement, Shard
from recsys.training.distributed.quantities import bytes_text

_REMEDY = (
    "take more ranks, fewer rows a step, a table of fewer rows or a smaller dim, or allow another kind or kernel under "
    "[sharding] constraints"
)


@dataclass(frozen=True)
class Room:
    """Bytes of each rank that tables and a step's buffers may take: of its device and, beside it, of host memory.

    `because` says what the device has in all and what else takes of it.
    """

    ranks: int
    device: int
    host: int
    because: str

    def holds(self, shards: Iterable[Shard]) -> bool:
        """Whether one rank holds all of these."""
        found = list(shards)
        return device_need(found) <= self.device and _host_need(found) <= self.host


def device_need(shards: Iterable[Shard]) -> int:
    """Bytes of a rank's device that shards take: rows there, their optimizer state and a step's buffers."""
    return sum(shard.device_bytes + shard.buffer_bytes for shard in shards)


def check_complete(placements: Sequence[Placement], specs: Iterable[TableSpec]) -> None:
    """Raise ConfigError unless every table is placed exactly once, with all of its numbers, in every copy of them."""
    placed = Counter(item.table for item in placements)
    for spec in specs:
        if placed[spec.name] != 1:
            raise ConfigError(
                f"table {spec.name!r} stands {placed[spec.name]} times in the plan, where every table stands once; "
                "take it out of [sharding] constraints"
            )
    for item in placements:
        numbers = sum(shard.rows * shard.columns for shard in item.shards)
        if numbers != item.parameters * (len(item.ranks) if item.is_copied else 1):
            raise ConfigError(
                f"table {item.table!r}: the shards of the plan hold {numbers} numbers of {item.parameters}; "
                "name other kinds for it under [sharding] constraints"
            )


def check_room(placements: Sequence[Placement], room: Room) -> None:
    """Raise ConfigError when a rank's shards need more than it has room for."""
    for rank in range(room.ranks):
        held = [(item, shard) for item in placements for shard in item.shards if shard.rank == rank]
        shards = [shard for _, shard in held]
        if not room.holds(shards):
            largest, _ = max(held, key=lambda pair: _size(pair[1]))
            raise ConfigError(
                f"rank {rank} does not hold its tables: they need {_needs(shards)}, it has room for "
                f"{_has(room, shards)}; the largest is {largest.table!r} ({largest.kind}): {_REMEDY}"
            )


def why_none(options: Sequence[Placement], room: Room) -> str:
    """Why no plan was found among these options, several a table, in one sentence."""
    smallest: dict[str, Placement] = {}
    for option in options:
        best = smallest.setdefault(option.table, option)
        if _worth(option, room) < _worth(best, room):
            smallest[option.table] = option
    for item in smallest.values():
        if not _fits_alone(item, room):
            worst = max(item.shards, key=_size)
            return (
                f"table {item.table!r} does not fit: at its smallest, {item.kind} with kernel {item.kernel}, "
                f"a rank needs {_needs([worst])} and has room for {_has(room, [worst])}; {_REMEDY}"
            )
    largest = max(smallest.values(), key=lambda item: sum(map(_size, item.shards)))
    every = [shard for item in smallest.values() for shard in item.shards]
    return (
        f"the tables do not fit: together they need {_needs(every)} at the least, and each of {room.ranks} ranks has "
        f"room for {_has(room, every)}; the largest is {largest.table!r}: {_REMEDY}"
    )


def _fits_alone(option: Placement, room: Room) -> bool:
    return all(room.holds([shard]) for shard in option.shards)


def _worth(option: Placement, room: Room) -> tuple[int, int]:
    """Orders a table's options, best first: those that fit by all their bytes, the others by their largest shard."""
    if _fits_alone(option, room):
        return 0, sum(map(_size, option.shards))
    return 1, max(map(_size, option.shards))


def _size(shard: Shard) -> int:
    return device_need([shard]) + shard.host_bytes


def _host_need(shards: Iterable[Shard]) -> int:
    return sum(shard.host_bytes for shard in shards)


def _needs(shards: Sequence[Shard]) -> str:
    host = _host_need(shards)
    needed = bytes_text(device_need(shards))
    return f"{needed} and {bytes_text(host)} of host memory" if host else needed


def _has(room: Room, shards: Sequence[Shard]) -> str:
    device = f"{bytes_text(room.device)} ({room.because})"
    return f"{device} and {bytes_text(room.host)} of host memory" if _host_need(shards) else device
