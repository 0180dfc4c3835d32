"""Which day or split each row belongs to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.rules import Rule
from recsys.config import Config
from recsys.errors import DataError
from recsys.hashing import hash_ids, splitmix64
from recsys.raw import require_present
from recsys.schema import dtype_name

HELD_OUT = ("validation", "test")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DAY_MICROSECONDS = 86_400 * 1_000_000


class Split(Config):
    """By the UTC day of keys.time, by a seeded hash of a column (or of the row's place), by file, or by rules."""

    by: Literal["time", "hash", "file", "rules"]
    column: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    parts: dict[str, float] = {}
    rules: dict[str, Rule] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.by == "hash") != bool(self.parts):
            raise ValueError(
                'parts = { train = 0.8, ... } is needed with by = "hash", and only then'
            )
        if (self.by == "rules") != bool(self.rules):
            raise ValueError(
                'rules = { test = { column = "day", at_least = 30 }, ... } is needed with by = "rules", and only then'
            )
        draws_nothing = self.column is not None or "seed" in self.model_fields_set
        if self.by == "time" and draws_nothing:
            raise ValueError(
                'by = "time" takes neither column nor seed; the time is keys.time of the schema'
            )
        if self.by == "rules" and draws_nothing:
            raise ValueError(
                'by = "rules" takes neither column nor seed; every rule names its own column'
            )
        for name in self.rules:
            check_name(name)
        if self.parts:
            check_shares(self.parts)
        return self


def check_shares(shares: Mapping[str, float]) -> None:
    """Nothing, when names can be folders and shares add up to 1; raises ValueError otherwise."""
    for name, share in shares.items():
        check_name(name)
        if not 0 < share < 1:
            raise ValueError(f"the share of {name!r} is {share:g}; it must lie between 0 and 1")
    total = sum(shares.values())
    if abs(total - 1) > 1e-9:
        raise ValueError(f"the shares {dict(shares)} add up to {total:g}; they must add up to 1")


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"split name {name!r} becomes a folder; use letters, digits, '_', '-' and '.'"
        )


@dataclass(frozen=True)
class Assigned:
    """For each row the number of its day or split among `names`."""

    names: tuple[str, ...]
    number_B: NDArray[np.int64]


def by_time(times_B: pa.Array) -> Assigned:
    """UTC days of timestamps. Raises DataError on a null."""
    require_present(
        times_B, "the time is null, so the row belongs to no day; add a filter with not_null = true"
    )
    microseconds_B = times_B.cast(pa.int64()).to_numpy(zero_copy_only=False)
    day_D, number_B = np.unique(microseconds_B // _DAY_MICROSECONDS, return_inverse=True)
    return Assigned(
        tuple(str(day) for day in day_D.astype("datetime64[D]")), number_B.astype(np.int64)
    )


def by_column(values_B: pa.Array, shares: Mapping[str, float], *, seed: int) -> Assigned:
    """Shares drawn by a seeded hash of a column's values. Raises DataError on a null and for what is no id."""
    types = pa.types
    if not (
        types.is_string(values_B.type)
        or types.is_integer(values_B.type)
        or types.is_boolean(values_B.type)
        or types.is_timestamp(values_B.type)
    ):
        raise DataError(
            f"the column of the split is {dtype_name(values_B.type)}; split by text, integers or timestamps"
        )
    require_present(
        values_B,
        "the column of the split is null, so the row belongs to none; add a filter with not_null = true",
    )
    return _drawn(hash_ids(values_B, seed), shares)


def by_place(place_B: NDArray[np.int64], shares: Mapping[str, float], *, seed: int) -> Assigned:
    """Shares drawn by a seeded hash of each row's place in the files."""
    return _drawn(splitmix64(place_B, seed), shares)


def by_rules(answers: Mapping[str, pa.Array]) -> Assigned:
    """For each row the first split whose rule is true. Raises DataError at a row for which none is."""
    true_SB = np.stack(
        [answer.fill_null(False).to_numpy(zero_copy_only=False) for answer in answers.values()]
    )
    lost_B = ~true_SB.any(axis=0)
    if lost_B.any():
        raise DataError(
            "no rule of [split] is true, so the row belongs to none; add a rule, or a filter that leaves such rows out",
            row=int(np.argmax(lost_B)),
        )
    return Assigned(tuple(answers), np.argmax(true_SB, axis=0).astype(np.int64))


def whole(name: str, rows: int) -> Assigned:
    """All rows in one split."""
    return Assigned((name,), np.zeros(rows, np.int64))


def _drawn(hash_B: NDArray[np.uint64], shares: Mapping[str, float]) -> Assigned:
    uniform_B = (hash_B >> np.uint64(11)).astype(np.float64) * 2.0**-53
    bounds = np.cumsum(list(shares.values()))[:-1]
    assert all(low < high for low, high in pairwise(bounds)), "shares are positive"
    return Assigned(
        tuple(shares), np.searchsorted(bounds, uniform_B, side="right").astype(np.int64)
    )
