"""What a row of a batch asks of each table: how many ids, and how many vectors come back."""

from dataclasses import dataclass

from recsys.layout import Slot, slots
from recsys.models.embeddings.lookup import table_specs
from recsys.models.embeddings.tables import TableSpec
from recsys.models.embeddings.updates import TableOptimizer
from recsys.schema import Schema, TextFeature
from recsys.sharding import ShardingConfig

# Ids of a bag whose length neither the schema bounds nor `[sharding] lengths` states.
ASSUMED_BAG_LENGTH = 10.0
# Of a map that TorchRec keeps, bytes a row: id, row and a number; scores and the new order while it is updated.
_MAP_BYTES = 24 + 48


@dataclass(frozen=True)
class Demand:
    """A table, and the mean number of ids that each slot which reads it has in a row, in the order of `spec.streams`.

    A ragged table gives a vector back for every id; any other one a vector a slot, the sum of its bag. `optimizer` is
    what trains it.
    """

    spec: TableSpec
    ids: tuple[float, ...]
    optimizer: TableOptimizer = "rowwise_adagrad"

    @property
    def ids_per_row(self) -> float:
        return sum(self.ids)

    @property
    def vectors_per_row(self) -> float:
        return self.ids_per_row if self.spec.ragged else len(self.ids)


@dataclass(frozen=True)
class Length:
    """How many ids a bag, or events a sequence, is taken to have, and why."""

    name: str
    mean: float
    because: str


def demands(
    schema: Schema, config: ShardingConfig, optimizer: TableOptimizer = "rowwise_adagrad"
) -> tuple[Demand, ...]:
    """What every table of a schema is asked for, in the order of `table_specs`."""
    means = {slot.name: _length(slot, schema, config).mean for slot in slots(schema)}
    return tuple(
        Demand(spec, tuple(means[stream] for stream in spec.streams), optimizer)
        for spec in table_specs(schema)
    )


def id_map_bytes(schema: Schema) -> int:
    """What the id maps that TorchRec keeps (`ids = "zch"`) take of every rank's device, while they are updated too."""
    return sum(_MAP_BYTES * schema.tables[name].rows for name in schema.managed)


def lengths(schema: Schema, config: ShardingConfig) -> tuple[Length, ...]:
    """The length of every bag and sequence that a plan counts with, in the schema's order."""
    found = [_length(slot, schema, config) for slot in slots(schema) if slot.kind != "single"]
    return tuple({length.name: length for length in found}.values())


def _length(slot: Slot, schema: Schema, config: ShardingConfig) -> Length:
    name = slot.sequence or slot.name
    if slot.kind == "single":
        return Length(name, 1.0, "one id a row")
    if name in config.lengths:
        return Length(name, config.lengths[name], "[sharding] lengths")
    if slot.kind == "token":
        return Length(name, float(slot.max_length), "its max_length")
    item = schema.features[name]
    if isinstance(item, TextFeature):
        return Length(name, float(item.max_ids), "its max_ids")
    return Length(name, ASSUMED_BAG_LENGTH, "assumed: nothing bounds it")
