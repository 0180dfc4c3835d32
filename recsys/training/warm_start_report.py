"""What a warm start kept of another run and what it began anew, as JSON for machines and lines for people."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recsys.parent import Parent
from recsys.schema import Schema
from recsys.training.kept_parameters import Kept
from recsys.training.row_origins import Fresh, Origin

FORMAT_VERSION = 1
_SHOWN_NAMES = 4


@dataclass(frozen=True)
class TableStart:
    """How a table begins. Of ids that nobody knows, for they are hashed, there are no numbers.

    `anew` is the reason why it has no row of the old one.
    """

    rows: int
    kept: int | None = None
    new: int | None = None
    evicted: int | None = None
    anew: str | None = None

    def render(self) -> str:
        if self.anew is not None:
            return f"begins anew ({self.anew})"
        if self.kept is None:
            return f"all {self.rows:,} rows kept"
        return f"{self.kept:,} ids kept, {self.new:,} new, {self.evicted:,} evicted"


@dataclass(frozen=True)
class WarmStart:
    """What a run began with: rows and parameters that are kept come with their optimizer's state.

    `state_anew` is the reason why that of all tables begins anew nevertheless.
    """

    parent: Parent
    tables: Mapping[str, TableStart]
    dropped_tables: tuple[str, ...]
    state_anew: str | None
    dense: Kept

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "checkpoint": self.parent.checkpoint,
            "tables": {name: asdict(start) for name, start in self.tables.items()},
            "dropped_tables": self.dropped_tables,
            "table_optimizer_anew": self.state_anew,
            "dense": asdict(self.dense),
        }

    def render(self) -> str:
        parent, dense = self.parent, self.dense
        lines = [
            f"warm start from {parent.run}, checkpoint {parent.checkpoint}, step {parent.step:,}"
        ]
        lines += [f"  table {name}: {start.render()}" for name, start in self.tables.items()]
        lines += [f"  table {name}: dropped" for name in self.dropped_tables]
        if self.state_anew is not None:
            lines.append(f"  tables: the optimizer's state begins anew ({self.state_anew})")
        lines.append(f"  dense: {len(dense.kept)} tensors kept, with AdamW's moments")
        reasons = dict.fromkeys(dense.fresh.values())
        for reason in reasons:
            names = [name for name, found in dense.fresh.items() if found == reason]
            lines.append(f"  dense: {_listed(names)}: begins anew ({reason})")
        lines += [f"  dense: {_listed(dense.new)}: new"] * bool(dense.new)
        lines += [f"  dense: {_listed(dense.dropped)}: dropped"] * bool(dense.dropped)
        return "\n".join(lines)


def table_start(origin: Origin | Fresh, table: str, schema: Schema) -> TableStart:
    """How a table of a schema begins by its rows' origin."""
    rows = schema.all_tables[table].rows
    if isinstance(origin, Fresh):
        return TableStart(rows, anew=origin.reason)
    return TableStart(rows, origin.kept, origin.new, origin.evicted)


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _SHOWN_NAMES
    return ", ".join(found[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
