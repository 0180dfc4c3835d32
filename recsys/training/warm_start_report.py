"""What a warm start kept of another run and what it began anew, as JSON for machines and lines for people."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recsys.parent import Parent
from recsys.training.kept_parameters import Kept
from recsys.training.row_origins import Fresh, Origin

FORMAT_VERSION = 1
_SHOWN_NAMES = 4


@dataclass(frozen=True)
class WarmStart:
    """What a run begins with: rows and parameters that are kept come with their optimizer's state.

    `state_anew` is the reason why that of all tables begins anew nevertheless.
    """

    parent: Parent
    origins: Mapping[str, Origin | Fresh]
    state_anew: str | None
    dense: Kept
    old_tables: tuple[str, ...]

    @property
    def keeps_nothing(self) -> bool:
        fresh = all(isinstance(origin, Fresh) for origin in self.origins.values())
        return fresh and not self.dense.kept

    @property
    def dropped_tables(self) -> list[str]:
        return sorted(set(self.old_tables) - self.origins.keys())

    def to_json(self) -> dict[str, Any]:
        dense = self.dense
        return {
            "format_version": FORMAT_VERSION,
            "checkpoint": self.parent.checkpoint,
            "tables": {name: _numbers(origin) for name, origin in self.origins.items()},
            "dropped_tables": self.dropped_tables,
            "table_optimizer_anew": self.state_anew,
            "dense": {
                "kept": dense.kept,
                "parts": {name: asdict(item) for name, item in dense.parts.items()},
                "fresh": dense.fresh,
                "new": dense.new,
                "dropped": dense.dropped,
            },
        }

    def render(self) -> str:
        parent, dense = self.parent, self.dense
        lines = [
            f"warm start from {parent.run}, checkpoint {parent.checkpoint}, step {parent.step:,}"
        ]
        lines += [f"  table {name}: {_told(origin)}" for name, origin in self.origins.items()]
        lines += [f"  table {name}: dropped" for name in self.dropped_tables]
        if self.state_anew is not None:
            lines.append(f"  tables: the optimizer's state begins anew ({self.state_anew})")
        in_part = f", {len(dense.in_part)} of them in part" if dense.in_part else ""
        lines.append(f"  dense: {len(dense.kept)} tensors kept{in_part}, with AdamW's moments")
        parts = dense.parts.items()
        begun = [(name, reason) for name, item in parts for reason in item.fresh.values()]
        left = [(name, reason) for name, item in parts for reason in item.dropped.values()]
        lines += _by_reason(begun, "parts begin anew")
        lines += _by_reason(left, "parts dropped")
        lines += _by_reason(dense.fresh.items(), "begins anew")
        lines += [f"  dense: {_listed(dense.new)}: new"] * bool(dense.new)
        lines += [f"  dense: {_listed(dense.dropped)}: dropped"] * bool(dense.dropped)
        return "\n".join(lines)


def _numbers(origin: Origin | Fresh) -> dict[str, Any]:
    """Ids that a table keeps, gets and gives up, where they are known, or why it begins anew."""
    if isinstance(origin, Fresh):
        return {"kept": None, "new": None, "evicted": None, "anew": origin.reason}
    return {"kept": origin.kept, "new": origin.new, "evicted": origin.evicted, "anew": None}


def _told(origin: Origin | Fresh) -> str:
    if isinstance(origin, Fresh):
        return f"begins anew ({origin.reason})"
    if origin.kept is None:
        return "all rows kept"
    return f"{origin.kept:,} ids kept, {origin.new:,} new, {origin.evicted:,} evicted"


def _by_reason(reasons: Iterable[tuple[str, str]], what: str) -> list[str]:
    """A line a reason, with the names of what it holds for."""
    names: dict[str, dict[str, None]] = {}
    for name, reason in reasons:
        names.setdefault(reason, {})[name] = None
    return [f"  dense: {_listed(found)}: {what} ({reason})" for reason, found in names.items()]


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _SHOWN_NAMES
    return ", ".join(found[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
