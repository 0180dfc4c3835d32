"""The record of benchmarks/ceiling.py in words and tables."""

from collections.abc import Mapping
from typing import Any

from estimates import markdown

# The shares of the ceiling that a step should reach.
AIMS = {"float32": 0.65, "bf16": 0.50}
# A part of a step below this share explains nothing.
_TELLING = 0.03

# The parts of a step, in words; all of its work that is counted is in its products.
_NAMES = {
    "elementwise": "elementwise work and sums",
    "normalisation": "normalisation and softmax",
    "copies": "copies",
    "optimizer": "clipping and AdamW",
    "overhead": "autograd and dispatch",
}
PARTS = ("products", *_NAMES)


def render(record: Mapping[str, Any]) -> str:
    """The Markdown section of a record: a table a precision, and what keeps each architecture from the aim."""
    entries = record["architectures"]
    text = f"## Share of the matrix-product ceiling\n\n{_introduction(record)}"
    for precision in AIMS:
        rows = [_row(name, entry, precision) for name, entry in entries.items()]
        text += f"\n{_heading(record, precision)}\n\n{markdown(rows, left=['architecture'])}"
    text += "\nWhat keeps each from its ceiling:\n\n"
    return text + "".join(
        f"- **{name}**: {entry['what_keeps']}\n" for name, entry in entries.items()
    )


def what_keeps(entry: Mapping[str, Any]) -> str:
    """One sentence: where an architecture's time goes, in the precision that is furthest from its aim."""
    worst = min(AIMS, key=lambda precision: float(entry[precision]["share"]) / AIMS[precision])
    missed = [precision for precision, aim in AIMS.items() if entry[precision]["share"] < aim]
    verdict = f"misses the aim in {' and '.join(missed)}" if missed else "reaches both aims"
    return f"{verdict}; in {worst} {_where_time_goes(entry[worst])}."


def _where_time_goes(figures: Mapping[str, Any]) -> str:
    """The larger of the two losses first: products below the ceiling, or time without products."""
    parts = figures["parts"]
    rest = sorted(((parts[name], words) for name, words in _NAMES.items()), reverse=True)
    told = ", ".join(f"{words} {_percent(share)}" for share, words in rest if share >= _TELLING)
    operators = ", ".join(f"{name} {_percent(share)}" for name, share in figures["largest"].items())
    between = (
        f"{_percent(1 - parts['products'])} of the time is no product ({told}; most: {operators})"
    )
    products = f"products run at {_percent(_within(figures))} of the ceiling ({_percent(figures['alone'])} alone)"
    first, second = (
        (products, between) if _within(figures) < parts["products"] else (between, products)
    )
    return f"{first}, and {second}"


def _within(figures: Mapping[str, Any]) -> float:
    """The products' rate inside the step as a share of the ceiling: they alone do the work that is counted."""
    return float(figures["share"]) / float(figures["parts"]["products"])


def _introduction(record: Mapping[str, Any]) -> str:
    return (
        f"A training step of the dense part (forward, backward, clipping, AdamW; {record['rows']:,} rows, one thread) "
        "by the rate of `torch.mm` at its best square size, both measured in turns, in process CPU time, medians of "
        f"{record['rounds']} rounds. The work counted is that of the matrix products, as torch dispatches them forward "
        "and backward; all else is loss. *products* is their share of the step's time, *within* their rate in the step "
        "and *alone* without anything between, by the ceiling: `share = products x within`.\n\n"
        f"{record['device']}; Python {record['versions']['python']}, torch {record['versions']['torch']}. "
        f"Aims: {' and '.join(f'{_percent(aim)} in {name}' for name, aim in AIMS.items())}; **bold** reaches its aim.\n"
    )


def _heading(record: Mapping[str, Any], precision: str) -> str:
    ceiling = record["ceiling"][precision]
    return f"{precision}: the ceiling is {ceiling['gflops']:.0f} GFLOP/s, of {ceiling['size']} x {ceiling['size']}."


def _row(name: str, entry: Mapping[str, Any], precision: str) -> dict[str, str]:
    figures = entry[precision]
    share = _percent(figures["share"])
    row = {
        "architecture": name,
        "multiply-adds a row": f"{entry['multiply_adds'] / 1e6:.2f} M",
        "ms": f"{figures['milliseconds']:,.0f}",
        "share": f"**{share}**" if figures["share"] >= AIMS[precision] else share,
        "products": _percent(figures["parts"]["products"]),
        "within": _percent(_within(figures)),
        "alone": _percent(figures["alone"]),
    }
    return row | {name: _percent(figures["parts"][name]) for name in PARTS[1:]}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
