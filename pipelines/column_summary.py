"""What a column holds, counted in one pass and bounded memory."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.hashing import hash_ids

_KEPT_HASHES = 4096


@dataclass
class ColumnSummary:
    """Nulls, distinct values, smallest and largest of a column.

    Of a list column, its values are described; of a map, its distinct keys and the smallest and largest number.

    Up to 4096 distinct values are counted exactly; beyond that the number is estimated from the 4096 smallest hashes
    (Bar-Yossef et al., 2002), with a standard error of 1.6 %.
    """

    rows: int = 0
    nulls: int = 0
    not_finite: int = 0
    least: Any = None
    most: Any = None
    values: int = 0
    _hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, values: pa.Array) -> None:
        """Take in a batch of the column."""
        self.rows += len(values)
        self.nulls += values.null_count
        if pa.types.is_map(values.type):
            # Of the maps that are not null alone: a null one may own hidden pairs.
            maps = values.drop_null()
            start, stop = maps.offsets[0].as_py(), maps.offsets[-1].as_py()
            self._bound(self._finite(maps.items.slice(start, stop - start)))
            self._count(maps.keys.slice(start, stop - start))
            return
        flat = self._finite(values.flatten() if pa.types.is_list(values.type) else values)
        self._bound(flat)
        self._count(flat)

    @property
    def exact(self) -> bool:
        """Whether `distinct` is a count, and not an estimate."""
        return len(self._hashes) < _KEPT_HASHES

    @property
    def distinct(self) -> int:
        """The number of distinct values, estimated when there are many."""
        if self.exact:
            return len(self._hashes)
        estimated = round((_KEPT_HASHES - 1) / (float(self._hashes[-1]) / 2.0**64))
        return min(estimated, self.values)

    @property
    def constant(self) -> bool:
        """Whether all rows are alike: one value without nulls, or nothing but nulls."""
        return self.rows > 0 and (
            self.nulls == self.rows or (len(self._hashes) <= 1 and not self.nulls)
        )

    def to_json(self) -> dict[str, Any]:
        shown = {"least": _plain(self.least), "most": _plain(self.most)}
        return {
            "rows": self.rows,
            "nulls": self.nulls,
            "not_finite": self.not_finite,
            "distinct": self.distinct,
            **shown,
        }

    def _finite(self, flat: pa.Array) -> pa.Array:
        """The values that are not null and no NaN or infinity, which are counted."""
        flat = flat.drop_null()
        if not pa.types.is_floating(flat.type):
            return flat
        finite = pc.is_finite(flat)
        self.not_finite += len(flat) - finite.true_count
        return flat.filter(finite)

    def _count(self, flat: pa.Array) -> None:
        self.values += len(flat)
        if len(flat):
            hashes = np.unique(np.concatenate([self._hashes, np.unique(_hashed(flat))]))
            self._hashes = hashes[:_KEPT_HASHES]

    def _bound(self, flat: pa.Array) -> None:
        if not len(flat):
            return
        bounds = pc.min_max(flat)
        least, most = bounds["min"].as_py(), bounds["max"].as_py()
        self.least = least if self.least is None else min(self.least, least)
        self.most = most if self.most is None else max(self.most, most)


def _hashed(flat: pa.Array) -> NDArray[np.uint64]:
    if pa.types.is_floating(flat.type):
        # Equal floats have equal bits, once -0.0 is 0.0.
        bits = (flat.cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0).view(np.int64)
        return hash_ids(pa.array(bits))
    return hash_ids(flat.cast(pa.int64()) if pa.types.is_timestamp(flat.type) else flat)


def _plain(value: Any) -> Any:
    return (
        value if value is None or isinstance(value, bool | int | float | str) else value.isoformat()
    )
