"""TorchRec's managed collision (ZCH) of a table: an id map that changes after every step.

An id that a step meets for the first time asks for a row, and TorchRec's policy says whether it gets one:

- `lru`: the row of the id that no step has met for longest; any id of this step is stronger. Of several the one with
  the largest hash goes.
- `lfu`: the row of the id met least often, if the new one comes more often in this step alone. Counts are of all steps
  since an id got its row, and are lost with it.

TorchRec keeps the ids sorted, the rows without one behind them, and at last a slot that stands for all ids without one:

```
ids    -9.. | -2.. |  3.. |  4.. |  max |  max |  max      a free row and the last slot hold the largest int64
rows     7  |   4  |   6  |   5  |   2  |   3  |   8       of a table of 8 rows: the last slot lies behind it
```

Free rows are taken from the right, so that they ascend, whatever was taken before: an `IdMap` holds all that there is
to know. Hashes are unsigned, TorchRec's ids signed: an id is its hash with the first bit turned, which keeps the order.

TorchRec's `profile` collects ids and updates the map once in several steps. Its buffer is of the size of the first
batch that it sees, and what does not fit is left out, so that a resumed training would go on otherwise. Here each step
is an update of its own, by the method that `profile` calls in the end.

Axes: **N** ids, **G** ids and how often each came, of which some may be the same, **R** distinct ids, **E** entries.
"""

import numpy as np
import torch
from torch import Tensor
from torchrec import JaggedTensor
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)

from recsys.idmap import IdMap
from recsys.schema import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, Table

_FIRST_BIT = -(2**63)
# In TorchRec's list a free row; the one id that looks so never gets a row.
_NO_ID = torch.iinfo(torch.int64).max
_IDS = "ids"


class ManagedCollision:
    """A table's id map in TorchRec's hands, on a device. Hashes are those of encoded rows, their bits as int64."""

    def __init__(self, before: IdMap, table: Table, device: torch.device) -> None:
        self._rows = table.rows
        self._by_count = table.eviction == "lfu"
        self._policy = LFU_EvictionPolicy() if self._by_count else LRU_EvictionPolicy()
        self._module = MCHManagedCollisionModule(
            # Its last slot, which no id gets, lies behind the table.
            zch_size=table.rows - RESERVED_ROWS + 1,
            device=device,
            eviction_policy=self._policy,
            eviction_interval=1,
            output_global_offset=RESERVED_ROWS,
        )
        self.updates = before.updates
        self._take(before)

    def rows(self, hash_N: Tensor) -> Tensor:
        """The table's row of each hash: row 0 for a missing id, row 1 for one that has none."""
        ids_N = hash_N ^ _FIRST_BIT
        lengths = torch.tensor([len(ids_N)], device=ids_N.device)
        asked = {_IDS: JaggedTensor(values=ids_N, lengths=lengths)}
        row_N: Tensor = self._module.remap(asked)[_IDS].values()
        row_N = row_N.masked_fill((row_N >= self._rows) | (ids_N == _NO_ID), UNKNOWN_ROW)
        return row_N.masked_fill(hash_N == 0, MISSING_ROW)

    @torch.no_grad()
    def update(self, hash_G: Tensor, count_G: Tensor) -> Tensor:
        """Take in the ids of a step, and return the rows that have gone to ids which had none."""
        ids_G = hash_G ^ _FIRST_BIT
        asks_G = (hash_G != 0) & (ids_G != _NO_ID)
        ids_R, place_G = torch.unique(ids_G[asks_G], return_inverse=True)
        count_R = torch.zeros_like(ids_R).index_add_(0, place_G, count_G[asks_G])
        self.updates += 1
        self._module._current_iter = self.updates
        numbers = {
            item.metadata_name: torch.full_like(count_R, self.updates)
            for item in self._policy.metadata_info
            if item.is_history_metadata
        }
        self._module._update_and_evict(ids_R, count_R, numbers)
        given: Tensor = self._module.evict()
        return given

    def id_map(self) -> IdMap:
        """The map as it is now."""
        held = self._module._mch_sorted_raw_ids
        entries = int((held != _NO_ID).sum())
        ids_E, row_E, number_E = (
            item[:entries].cpu().clone().numpy()
            for item in (held, self._module._mch_remapped_ids_mapping, self._numbers)
        )
        nothing_E = np.zeros(entries, np.int64)
        return IdMap(
            (ids_E ^ _FIRST_BIT).view(np.uint64),
            row_E,
            number_E if self._by_count else nothing_E,
            nothing_E if self._by_count else number_E,
            updates=self.updates,
        )

    @property
    def _numbers(self) -> Tensor:
        """What the policy goes by: how often each id came, or which update saw it last."""
        (found,) = self._module._mch_metadata.values()
        numbers: Tensor = found
        return numbers

    def _take(self, before: IdMap) -> None:
        """Put the ids of a map in place of none."""
        entries, module = len(before), self._module
        free = np.ones(self._rows, np.bool_)
        free[before.row_E] = free[:RESERVED_ROWS] = False
        rows = np.concatenate([before.row_E, np.flatnonzero(free), [self._rows]])
        module._mch_remapped_ids_mapping.copy_(torch.from_numpy(rows))
        ids_E = before.hash_E.view(np.int64) ^ _FIRST_BIT
        module._mch_sorted_raw_ids[:entries] = torch.from_numpy(ids_E)
        number_E = before.count_E if self._by_count else before.seen_E
        self._numbers[:entries] = torch.from_numpy(number_E.copy())
