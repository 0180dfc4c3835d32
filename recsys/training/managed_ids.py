"""Ids of tables whose maps TorchRec changes after every step (`ids = "zch"`).

```
feed         hashes ──┐
a step                ├─ in_rows: rows of the present map, row 1 for ids that it does not know -> forward, backward
after it, if sound    └─ after_step: all ranks' hashes -> the same update on each -> rows of new ids begin anew
```

So a step that is skipped leaves the maps as they were, and an id is known from the step after the one that met it
first. Every rank has whole maps, on the device that it trains on: looking ids up there sends nothing, and an update is
a function of the ids and how often they came, whatever rank met them.

Axes: **N** ids of a batch, **G** ids of all ranks, **E** rows.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recsys.admission import expected_collisions, id_families
from recsys.batch import Batch
from recsys.errors import ConfigError
from recsys.experiment import Experiment
from recsys.idmap import IdMap
from recsys.models.embeddings.lookup import Embeddings, torchrec_imports
from recsys.models.embeddings.tables import EmbeddingsConfig, Part, begin_anew
from recsys.ranks import gathered
from recsys.schema import UNKNOWN_ROW, Schema
from recsys.training.journal import Record

if TYPE_CHECKING:
    from recsys.models.embeddings.managed_collision import ManagedCollision

logger = logging.getLogger(__name__)


def check_managed(schema: Schema, experiment: Experiment) -> None:
    """Raise ConfigError where tables whose maps TorchRec keeps cannot be trained, or not in this way."""
    if not schema.managed:
        return
    name, sharding = schema.managed[0], experiment.sharding
    if not torchrec_imports():
        raise ConfigError(
            f'tables.{name}: ids = "zch" is TorchRec\'s, and torchrec or fbgemm does not import here; install the '
            'project\'s [cpu] or [gpu] extra, or say ids = "unbounded"'
        )
    if sharding.pipeline:
        raise ConfigError(
            f'sharding.pipeline sends ids a step ahead, and with tables.{name}.ids = "zch" each step changes their '
            'rows; take pipeline out, or say ids = "unbounded"'
        )
    for table in schema.managed:
        constraint = sharding.constraints.get(table)
        if constraint is not None and "fused_uvm_caching" in constraint.kernels:
            raise ConfigError(
                f"sharding.constraints.{table}.kernels: a cache of rows (fused_uvm_caching) does not see rows begin "
                'anew, as they do with ids = "zch"; take it out, or say ids = "unbounded"'
            )


@dataclass
class _Table:
    """A table's map, and what came since the last record."""

    map: "ManagedCollision"
    slots: tuple[int, ...]
    told: IdMap
    ids: Tensor | int = 0
    unknown: Tensor | int = 0


class ManagedIds:
    """The maps of a training that change after its steps; none in most schemas, and then nothing is done."""

    def __init__(
        self, embeddings: Embeddings, config: EmbeddingsConfig, *, seed: int, device: torch.device
    ) -> None:
        """The maps go on from those of the embeddings; `config` and `seed` say how rows begin."""
        self._embeddings, self._config, self._seed = embeddings, config, seed
        self._steps = 0
        self._tables = _tables(embeddings, device)

    def in_rows(self, batch: Batch) -> Batch:
        """A batch of hashes with the rows that they have now."""
        if not self._tables:
            return batch
        by_slot = _by_slot(batch)
        for item in self._tables.values():
            for slot in item.slots:
                by_slot[slot] = item.map.rows(by_slot[slot])
        return replace(batch, values_N=torch.cat(by_slot))

    def after_step(self, batch: Batch) -> None:
        """Take in the hashes of a step's batch, those of all ranks: together with them."""
        if not self._tables:
            return
        self._steps += 1
        for (name, item), (hash_G, count_G) in zip(
            self._tables.items(), self._of_all_ranks(batch), strict=True
        ):
            item.ids += count_G.sum()
            item.unknown += count_G[item.map.rows(hash_G) == UNKNOWN_ROW].sum()
            self._begin_anew(name, item.map.update(hash_G, count_G), item.map.updates)

    def id_maps(self) -> dict[str, IdMap]:
        """The maps as they are now, by table."""
        return {name: item.map.id_map() for name, item in self._tables.items()}

    def records(self, *, step: int) -> list[Record]:
        """A journal record of the steps since the last one, if there is a map."""
        if not self._tables:
            return []
        families = id_families(self._embeddings.schema)
        counts = {name: _counts(item, families[name]) for name, item in self._tables.items()}
        for name, numbers in counts.items():
            told = " ".join(f"{key}={number:.10g}" for key, number in numbers.items())
            logger.info("ids table=%s step=%d %s", name, step, told)
        steps, self._steps = self._steps, 0
        return [{"kind": "ids", "step": step, "steps": steps, "tables": counts}]

    def _of_all_ranks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Each table's hashes in a batch and how often they came, from each rank that met them; in one message."""
        by_slot, own = _by_slot(batch), []
        for number, item in enumerate(self._tables.values()):
            hash_N = torch.cat([by_slot[slot] for slot in item.slots])
            hashes, counts = torch.unique(hash_N[hash_N != 0], return_counts=True)
            own.append(torch.stack([torch.full_like(hashes, number), hashes, counts], dim=1))
        table_G, hash_G, count_G = gathered(torch.cat(own)).unbind(1)
        for number in range(len(self._tables)):
            of_table_G = table_G == number
            yield hash_G[of_table_G], count_G[of_table_G]

    def _begin_anew(self, name: str, rows_E: Tensor, time: int) -> None:
        if not len(rows_E):
            return
        spec = next(spec for spec in self._embeddings.specs if spec.name == name)
        begin_anew(
            self._parts,
            spec,
            rows_E,
            self._config,
            quantities=self._embeddings.quantities,
            seed=self._seed,
            time=time,
        )

    @cached_property
    def _parts(self) -> list[Part]:
        """Views, so that one look for them is enough: TorchRec takes longer for it than a step may."""
        parts = self._embeddings.tables.parts()
        return [part for part in parts if part.table in self._tables]


def _tables(embeddings: Embeddings, device: torch.device) -> dict[str, _Table]:
    schema, maps = embeddings.schema, embeddings.id_maps
    if not schema.managed:
        return {}
    # Importing TorchRec takes seconds: only who trains with it pays.
    from recsys.models.embeddings.managed_collision import ManagedCollision

    return {
        name: _Table(
            ManagedCollision(maps[name], schema.tables[name], device),
            tuple(f for f, slot in enumerate(embeddings.slots) if slot.table == name),
            maps[name],
        )
        for name in schema.managed
    }


def _by_slot(batch: Batch) -> list[Tensor]:
    """A batch's ids by slot."""
    counts: list[int] = batch.lengths_FB.sum(dim=1).tolist()
    return list(torch.split(batch.values_N, counts))


def _counts(item: _Table, family: str) -> Mapping[str, float]:
    """What came since the last record, and which ids have a row now that had none then; the next record begins here."""
    now = item.map.id_map()
    kept = int(np.isin(now.hash_E, item.told.hash_E, assume_unique=True).sum())
    counts = {
        "ids": int(item.ids),
        "unknown": int(item.unknown),
        "kept": kept,
        "new": len(now) - kept,
        "evicted": len(item.told) - kept,
        "collisions": expected_collisions(len(now), family=family),
    }
    item.told, item.ids, item.unknown = now, 0, 0
    return counts
