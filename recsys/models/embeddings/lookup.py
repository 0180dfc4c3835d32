"""From a batch's ids to a program's blocks, with one lookup a table a step.

All ids of a table, whatever slots they belong to, go through one call: two fused lookups would be two optimizer
updates. Single ids, events and weighted ids are bags of one; means, weights and padding are done here, alike for
every backend.

Axes: **F** sparse slots, **B** rows, **N** ids, **M** bags, **K** embedding width.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.errors import ArtifactError, ConfigError
from recsys.idmap import IdMap, empty_id_maps
from recsys.layout import BlockSide, Slot, dense, slots
from recsys.models.embeddings.plain import PlainTables
from recsys.models.embeddings.pooling import pad, weighted_pool
from recsys.models.embeddings.read_only import StoredTables
from recsys.models.embeddings.tables import (
    Bags,
    EmbeddingsConfig,
    Readable,
    Tables,
    TableSpec,
)
from recsys.models.embeddings.updates import FUSED, QUANTITIES, TableOptimizer
from recsys.models.inputs import Blocks
from recsys.ranks import world_size
from recsys.schema import Schema
from recsys.tensor_files import StoredTensor, row_blocks

logger = logging.getLogger(__name__)


class Embeddings(nn.Module):
    """Tables of a schema behind one backend; `forward` gives a batch's blocks, where every row is its own user."""

    def __init__(
        self,
        schema: Schema,
        config: EmbeddingsConfig,
        *,
        seed: int,
        device: torch.device,
        tables_device: torch.device | None = None,
        optimizer: TableOptimizer = "rowwise_adagrad",
    ) -> None:
        """Tables are on `tables_device`, if given: torch's meta device for those that are sharded next."""
        super().__init__()
        self.schema = schema
        # Which id has which row of an unbounded table.
        self.id_maps: Mapping[str, IdMap] = empty_id_maps(schema)
        self.slots = slots(schema)
        self.specs = table_specs(schema)
        self.quantities = QUANTITIES[optimizer]
        self.backend = choose_backend(config, self.specs, optimizer)
        self.tables = _tables(
            self.backend,
            self.specs,
            config,
            optimizer=optimizer,
            seed=seed,
            device=tables_device or device,
            target=device,
        )
        self._names = tuple(slot.name for slot in self.slots)
        self._tokens_of = _token_positions(self.slots)
        for side in ("user", "candidate"):
            columns = torch.tensor(_dense_columns(schema, side), dtype=torch.long, device=device)
            self.register_buffer(f"{side}_columns", columns, persistent=False)

    def forward(self, batch: Batch) -> Blocks:
        found = self._look_up(batch)
        tokens, valid = self._sequences(found, batch)
        return Blocks(
            user_UI=self._block("user", found, batch),
            candidate_NI=self._block("candidate", found, batch),
            tokens=tokens,
            valid=valid,
        )

    def bags(self, batch: Batch) -> dict[str, Bags]:
        """What a batch asks of each table, by its name."""
        return self._joined(self._streams(batch))

    def set_learning_rate(self, rate: float) -> None:
        """Update tables at this rate from the next forward pass on."""
        self.tables.set_learning_rate(rate)

    def table_weights(self) -> dict[str, Tensor]:
        """Views of the tables' rows by table name, [rows, K], in a process that holds them whole."""
        assert world_size() == 1, "a rank holds parts of the tables"
        return {part.table: part.weight_RK for part in self.tables.parts()}

    def readable_weights(self) -> Mapping[str, Readable]:
        """As `table_weights`, to be read in parts where the tables lie in a file."""
        tables = self.tables
        return tables.stored if isinstance(tables, StoredTables) else self.table_weights()

    def read_from(self, weights: Mapping[str, StoredTensor]) -> None:
        """Look rows up where they are stored from now on; none is trained. Raises ArtifactError if tables differ."""
        _check_shapes(self._shapes, weights, "table")
        self.tables = StoredTables(weights)

    def load_table_weights(self, weights: Mapping[str, Readable]) -> None:
        """Fill what this process holds of tables from all of them, by name. Raises ArtifactError if they differ."""
        _check_shapes(self._shapes, weights, "table")
        with torch.no_grad():
            for part in self.tables.parts():
                _fill(part.weight_RK, weights[part.table], (part.rows, part.columns))

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what the optimizer remembers of whole tables, by `Quantity.key`."""
        return {
            item.key(spec.name): item.shape(spec.rows, spec.dim)
            for spec in self.specs
            for item in self.quantities
        }

    def load_optimizer_state(self, state: Mapping[str, Readable]) -> None:
        """Fill the optimizer's state of what this process holds of tables, as `load_table_weights`."""
        _check_shapes(self.state_shapes(), state, "optimizer state of table")
        with torch.no_grad():
            for part in self.tables.parts():
                for item in self.quantities:
                    _fill(part.state[item.name], state[item.key(part.table)], part.place(item))

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {spec.name: (spec.rows, spec.dim) for spec in self.specs}

    def _look_up(self, batch: Batch) -> dict[str, Tensor]:
        """Per slot: [B, K] pooled, or for a sequence's token [N, K], its events in row order."""
        streams = self._streams(batch)
        bags = self._joined(streams)
        for spec in self.specs:
            _check_ids(bags[spec.name].ids_N, spec)
        summed = self.tables(bags)
        found: dict[str, Tensor] = {}
        for spec in self.specs:
            found |= _apart(summed[spec.name], {name: streams[name] for name in spec.streams})
        weights = self._weights(batch)
        lengths = dict(zip(self._names, batch.lengths_FB.unbind(0), strict=True))
        for slot in self.slots:
            if slot.weighted:
                found[slot.name] = weighted_pool(
                    found[slot.name],
                    weights[slot.name],
                    lengths_B=lengths[slot.name],
                    pooling=slot.pooling,
                )
            elif slot.kind == "bag" and slot.pooling == "mean":
                found[slot.name] = found[slot.name] / lengths[slot.name].clamp(min=1)[:, None]
        return found

    def _streams(self, batch: Batch) -> dict[str, Bags]:
        """Per slot, its ids."""
        ids, lengths = self._by_slot(batch, batch.values_N), batch.lengths_FB.unbind(0)
        return {
            slot.name: _bags(slot, ids[slot.name], lengths_B)
            for slot, lengths_B in zip(self.slots, lengths, strict=True)
        }

    def _joined(self, streams: Mapping[str, Bags]) -> dict[str, Bags]:
        """Per table, the ids of all of its slots."""
        return {spec.name: _join([streams[name] for name in spec.streams]) for spec in self.specs}

    def _weights(self, batch: Batch) -> dict[str, Tensor]:
        if not any(slot.weighted for slot in self.slots):
            return {}
        assert batch.weights_N is not None, "the batch lacks the weights of its ids"
        return self._by_slot(batch, batch.weights_N)

    def _by_slot(self, batch: Batch, values_N: Tensor) -> dict[str, Tensor]:
        """Of values in the order of a batch's ids, those of each slot."""
        counts: list[int] = batch.lengths_FB.sum(dim=1).tolist()
        return dict(zip(self._names, torch.split(values_N, counts), strict=True))

    def _block(self, side: BlockSide, found: Mapping[str, Tensor], batch: Batch) -> Tensor:
        parts = [
            found[slot.name] for slot in self.slots if slot.side == side and slot.kind != "token"
        ]
        columns = self.get_buffer(f"{side}_columns")
        return torch.cat([*parts, batch.dense_BD.index_select(1, columns)], dim=1)

    def _sequences(
        self, found: Mapping[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        tokens: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for sequence, positions in self._tokens_of.items():
            lengths_B = batch.lengths_FB[positions[0]]
            for f in positions[1:]:
                assert torch.equal(lengths_B, batch.lengths_FB[f]), (
                    f"tokens of {sequence!r} are not aligned"
                )
            events_NK = torch.cat([found[self.slots[f].name] for f in positions], dim=1)
            tokens[sequence], valid[sequence] = pad(events_NK, lengths_B)
        return tokens, valid


def table_specs(schema: Schema) -> tuple[TableSpec, ...]:
    """The tables that the schema's slots read, in the order of their first slot."""
    streams: dict[str, list[Slot]] = {}
    for slot in slots(schema):
        streams.setdefault(slot.table, []).append(slot)
    return tuple(
        TableSpec(
            name=name,
            rows=schema.all_tables[name].rows,
            dim=schema.all_tables[name].dim,
            streams=tuple(slot.name for slot in found),
            ragged=any(slot.kind == "token" or slot.weighted for slot in found),
        )
        for name, found in streams.items()
    )


def choose_backend(
    config: EmbeddingsConfig,
    specs: Sequence[TableSpec],
    optimizer: TableOptimizer = "rowwise_adagrad",
) -> str:
    """`torchrec` or `plain`: what the configuration names or, for `auto`, TorchRec where it can train these tables."""
    if config.backend != "auto":
        return config.backend
    if optimizer not in FUSED:
        logger.warning("embeddings backend=plain reason='TorchRec has no %s here'", optimizer)
        return "plain"
    if not torchrec_imports():
        logger.warning("embeddings backend=plain reason='torchrec and fbgemm do not import here'")
        return "plain"
    odd = [spec.name for spec in specs if spec.dim % 4]
    if odd:
        logger.warning(
            "embeddings backend=plain reason='TorchRec needs widths in multiples of 4, not so: %s'",
            ", ".join(odd),
        )
        return "plain"
    return "torchrec"


def _tables(
    backend: str,
    specs: Sequence[TableSpec],
    config: EmbeddingsConfig,
    *,
    optimizer: TableOptimizer,
    seed: int,
    device: torch.device,
    target: torch.device,
) -> Tables:
    if backend == "plain":
        return PlainTables(specs, config, optimizer=optimizer, seed=seed, device=device)
    if not torchrec_imports():
        raise ConfigError(
            'model.embeddings.backend is "torchrec", but torchrec or fbgemm does not import here; '
            'install the project\'s [cpu] or [gpu] extra, or set backend = "plain"'
        )
    # Importing TorchRec takes seconds: only who trains on it pays.
    from recsys.models.embeddings.torchrec import TorchRecTables

    tables: Tables = TorchRecTables(
        specs, config, optimizer=optimizer, seed=seed, device=device, target=target
    )
    return tables


def torchrec_imports() -> bool:
    """Whether TorchRec and fbgemm are installed and fit this torch."""
    if (
        importlib.util.find_spec("torchrec") is None
        or importlib.util.find_spec("fbgemm_gpu") is None
    ):
        return False
    try:
        import recsys.models.embeddings.torchrec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        logger.warning("torchrec import failed: %s", error)
        return False
    return True


def _check_ids(ids_N: Tensor, spec: TableSpec) -> None:
    # Batches are checked as they are made; this is for those made otherwise. On a GPU it would wait for the device,
    # and the kernels check there.
    if ids_N.device.type != "cpu" or not len(ids_N):
        return
    low, high = torch.aminmax(ids_N)
    assert low >= 0, f"id {low} is outside table {spec.name!r}"
    assert high < spec.rows, f"id {high} is outside table {spec.name!r} of {spec.rows} rows"


def _bags(slot: Slot, ids_N: Tensor, lengths_B: Tensor) -> Bags:
    pooled_by_backend = slot.kind == "bag" and not slot.weighted
    return Bags(ids_N, lengths_B if pooled_by_backend else None)


def _apart(summed_MK: Tensor, streams: Mapping[str, Bags]) -> dict[str, Tensor]:
    """The sums of each stream's bags. Of an only stream as they are: the gradient of a split is a copy."""
    if len(streams) == 1:
        return dict.fromkeys(streams, summed_MK)
    sizes = [_bag_count(bags) for bags in streams.values()]
    return dict(zip(streams, torch.split(summed_MK, sizes), strict=True))


def _bag_count(bags: Bags) -> int:
    return len(bags.ids_N) if bags.lengths_M is None else len(bags.lengths_M)


def _join(streams: Sequence[Bags]) -> Bags:
    """The bags of several slots, one after the other."""
    if len(streams) == 1:
        return streams[0]
    ids_N = torch.cat([item.ids_N for item in streams])
    if all(item.lengths_M is None for item in streams):
        return Bags(ids_N, None)
    lengths = [
        item.ids_N.new_ones(len(item.ids_N), dtype=torch.int32)
        if item.lengths_M is None
        else item.lengths_M
        for item in streams
    ]
    return Bags(ids_N, torch.cat(lengths))


def _token_positions(found: Sequence[Slot]) -> dict[str, list[int]]:
    """Positions of each sequence's token slots."""
    positions: dict[str, list[int]] = {}
    for f, slot in enumerate(found):
        if slot.sequence is not None:
            positions.setdefault(slot.sequence, []).append(f)
    return positions


def _dense_columns(schema: Schema, side: BlockSide) -> list[int]:
    """Columns of `dense_BD` that belong to a side, in order."""
    sides = [item.side for item in dense(schema) for _ in range(item.width)]
    return [column for column, of in enumerate(sides) if of == side]


def _fill(target: Tensor, source: Readable, place: tuple[slice, ...]) -> None:
    """Copy what lies at a place of the source into the target, by blocks of rows."""
    first = place[0].start
    for rows in row_blocks(place[0], prod(target.shape[1:])):
        target[rows.start - first : rows.stop - first] = source[(rows, *place[1:])]


def _check_shapes(
    own: Mapping[str, tuple[int, ...]], given: Mapping[str, Readable], what: str
) -> None:
    if own.keys() != given.keys():
        raise ArtifactError(
            f"{what}s differ: found {', '.join(sorted(given))}; this model has {', '.join(sorted(own))}"
        )
    for name, shape in own.items():
        found = tuple(given[name].shape)
        if found != shape:
            raise ArtifactError(f"{what} {name!r} has shape {found}, this model's is {shape}")
