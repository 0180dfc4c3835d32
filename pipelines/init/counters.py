"""Earlier rates of users and items: the strongest simple inputs there are, counted as of each row's time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.init import names
from pipelines.init.columns import Column
from pipelines.init.features import Inputs
from pipelines.init.roles import Roles

_ROWS_A_KEY = 3
# So many rows at the usual rate are added to what was counted, so that a first click is no rate of 100 %.
_PRIOR_ROWS = 10


@dataclass(frozen=True)
class CounterChoice:
    """A column made by [counters]: how many earlier rows of the same `by`, of those for which `where` is true."""

    name: str
    by: str
    where: Mapping[str, Any] | None


def add_counters(
    inputs: Inputs,
    roles: Roles,
    *,
    what: str,
    where: Mapping[str, Any],
    every: Mapping[str, Any] | None,
    rate: float,
) -> tuple[CounterChoice, ...]:
    """Counters of users and items that come up again, and their features among the inputs.

    `where` is the rule of what happened (called `what`), `every` that of the rows among which it can happen (None: of
    all), and `rate` how often it usually does.
    """
    found: list[CounterChoice] = []
    for key, side in ((roles.item, {}), (roles.user, {"side": "user"})):
        if (
            key is None
            or roles.time is None
            or key.rows / max(key.estimated_distinct, 1) < _ROWS_A_KEY
        ):
            continue
        rows = CounterChoice(_name(f"{key.name}_rows", inputs), key.name, every)
        happened = CounterChoice(_name(f"{key.name}_{what}", inputs), key.name, where)
        found += [rows, happened]
        _add_features(inputs, key, rows.name, happened.name, rate=rate, side=side)
    return tuple(found)


def _name(name: str, inputs: Inputs) -> str:
    # An expression reads names without a hyphen.
    return names.clean(f"{name[:48]}_before".replace("-", "_"), {*inputs.columns, *inputs.features})


def _add_features(
    inputs: Inputs, key: Column, rows: str, happened: str, *, rate: float, side: Mapping[str, str]
) -> None:
    expected = float(f"{_PRIOR_ROWS * rate:.2g}")
    expression = f"({happened} + {expected}) / ({rows} + {_PRIOR_ROWS})"
    inputs.features[names.clean(f"{key.name}_rate", inputs.features)] = {
        "kind": "expression",
        "expression": expression,
        **side,
    }
    inputs.features[rows] = {"kind": "numeric", "transform": "log1p", **side}
