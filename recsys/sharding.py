"""Settings of how tables are spread over ranks: `[sharding]` of an experiment."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys.config import Config
from recsys.errors import ConfigError, nearest

ShardingKind = Literal[
    "table_wise",
    "row_wise",
    "table_row_wise",
    "column_wise",
    "table_column_wise",
    "data_parallel",
]
Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]


class TableConstraint(Config):
    """What a plan may do with one table.

    `kinds` are the ways to cut it, or `data_parallel`, a copy on every rank. `kernels` are where its rows may lie: the
    device's memory (`fused`), host memory (`fused_uvm`), or host memory with `cache_fraction` of the rows in a cache on
    the device (`fused_uvm_caching`). `min_partition` is the least width of a column shard.
    """

    kinds: tuple[ShardingKind, ...] | None = Field(default=None, min_length=1)
    kernels: tuple[Kernel, ...] = Field(default=("fused",), min_length=1)
    cache_fraction: float = Field(default=0.2, gt=0, le=1)
    min_partition: int | None = Field(default=None, ge=4, multiple_of=4)

    @model_validator(mode="after")
    def _copies_lie_on_the_device(self) -> "TableConstraint":
        if "data_parallel" in (self.kinds or ()) and self.kernels != ("fused",):
            raise ValueError(
                f"kernels ({', '.join(self.kernels)}) beside data_parallel, whose copies lie in the memory of every "
                "rank's device; take kernels out, or data_parallel out of kinds"
            )
        return self


class ShardingConfig(Config):
    """How tables are spread over ranks.

    `reserved` is the share of device and host memory that neither tables nor the dense part may take. `lengths` are
    the mean numbers of a bag's ids or a sequence's events, by the name of the feature or sequence. With `pipeline` the
    next batch's ids travel between ranks while a batch is learned from; None is yes on GPUs and no on CPUs.
    """

    reserved: float = Field(default=0.15, ge=0, lt=1)
    lengths: dict[str, Annotated[float, Field(gt=0)]] = {}
    constraints: dict[str, TableConstraint] = {}
    pipeline: bool | None = None

    def check_names(
        self, *, tables: Collection[str], listed: Collection[str], where: object
    ) -> None:
        """Raise ConfigError when a table, or a bag or sequence (`listed`), is not in the schema."""
        for section, named, known, what in (
            ("constraints", self.constraints, tables, "table"),
            ("lengths", self.lengths, listed, "bag or sequence"),
        ):
            for name in named:
                if name not in known:
                    raise ConfigError(
                        f"sharding.{section}: no {what} {name!r} in {where}{nearest(name, known)}; "
                        f"known here: {', '.join(known) or 'none'}"
                    )
