"""Expressions: their value against plain Python, and the sentence for each mistake."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.expression import MAX_DEPTH, MAX_LENGTH, parse

Row = dict[str, float | None]
Value = float | None
NAMES = ("a", "b", "größe_2")


@dataclass(frozen=True)
class Node:
    """An expression's text, how tightly it binds, and its value for one row by plain Python."""

    text: str
    binding: int
    value: Callable[[Row], Value]


def operation(
    compute: Callable[..., float], *parts: Callable[[Row], Value]
) -> Callable[[Row], Value]:
    """Null in, null out; no finite result is null too."""

    def value(row: Row) -> Value:
        values = [part(row) for part in parts]
        if None in values:
            return None
        try:
            found = float(compute(*values))
        except (ValueError, ZeroDivisionError, OverflowError):
            return None
        return found if math.isfinite(found) else None

    return value


def branch(condition: Node, then: Node, otherwise: Node) -> Callable[[Row], Value]:
    def value(row: Row) -> Value:
        chosen = condition.value(row)
        return None if chosen is None else then.value(row) if chosen else otherwise.value(row)

    return value


def bracketed(node: Node, binding: int) -> str:
    return node.text if node.binding >= binding else f"({node.text})"


BINARY: dict[str, tuple[int, Callable[[float, float], float]]] = {
    "<": (0, lambda x, y: x < y),
    ">=": (0, lambda x, y: x >= y),
    "!=": (0, lambda x, y: x != y),
    "+": (1, lambda x, y: x + y),
    "-": (1, lambda x, y: x - y),
    "*": (2, lambda x, y: x * y),
    "/": (2, lambda x, y: x / y),
}
FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "log": (1, math.log),
    "sqrt": (1, math.sqrt),
    "abs": (1, abs),
    "floor": (1, math.floor),
    "round": (1, round),
    "min": (2, min),
    "max": (3, max),
    "clip": (3, lambda x, low, high: min(max(x, low), high)),
}


def binary(sign: str, left: Node, right: Node) -> Node:
    binding, compute = BINARY[sign]
    # The right side of an operator of its own rank needs brackets, comparisons on either side.
    text = f"{bracketed(left, binding + (binding == 0))} {sign}{bracketed(right, binding + 1)}"
    return Node(text, binding, operation(compute, left.value, right.value))


def call(name: str, parts: list[Node]) -> Node:
    count, compute = FUNCTIONS[name]
    used = parts[:count]
    text = f"{name}( {', '.join(part.text for part in used)})"
    return Node(text, 4, operation(compute, *(part.value for part in used)))


def negative(node: Node) -> Node:
    return Node(f"-{bracketed(node, 3)}", 3, operation(lambda x: -x, node.value))


LEAVES = st.sampled_from(
    [Node(name, 4, lambda row, name=name: row[name]) for name in NAMES]  # type: ignore[misc]
    + [
        Node("2", 4, lambda row: 2.0),
        Node("0.5", 4, lambda row: 0.5),
        Node("1e-1", 4, lambda row: 0.1),
        Node("`a`", 4, lambda row: row["a"]),
    ]
)
NODES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.builds(binary, st.sampled_from(sorted(BINARY)), below, below),
        st.builds(
            call, st.sampled_from(sorted(FUNCTIONS)), st.lists(below, min_size=3, max_size=3)
        ),
        st.builds(negative, below),
        st.builds(
            lambda c, x, y: Node(f"if({c.text}, {x.text}, {y.text})", 4, branch(c, x, y)),
            below,
            below,
            below,
        ),
    ),
    max_leaves=12,
)
NUMBERS = st.sampled_from([None, 0.0, -1.0, 0.5, 2.0, 2.5, -3.5, 1e200])


@settings(max_examples=200, deadline=None)
@given(node=NODES, rows=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_an_expression_is_worth_what_plain_python_says(
    node: Node, rows: list[tuple[Value, Value, Value]]
) -> None:
    if len(node.text) > MAX_LENGTH:
        return
    columns = {
        name: np.array([math.nan if row[i] is None else row[i] for row in rows], np.float64)
        for i, name in enumerate(NAMES)
    }
    expected = [node.value(dict(zip(NAMES, row, strict=True))) for row in rows]

    found = parse(node.text).value(columns, len(rows))

    assert [None if math.isnan(value) else value for value in found] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 - 2 - 1", 5.0),
        ("8 / 2 / 2", 2.0),
        ("1 + 2 * 3", 7.0),
        ("-2 * -3", 6.0),
        ("2 - -3", 5.0),
        ("(1 + 2) * 3", 9.0),
        ("1 + 1 < 3", 1.0),
        ("if(2 > 3, 10, 20)", 20.0),
        ("log1p(exp(0))", math.log(2)),
        ("round(2.5)", 2.0),
        (".5 + 1.", 1.5),
    ],
)
def test_operators_bind_as_in_arithmetic(text: str, expected: float) -> None:
    assert parse(text).value({}, 1).tolist() == pytest.approx([expected])


def test_columns_are_named_once_in_order_and_may_be_quoted() -> None:
    assert parse("`my price` / log + min(log, views)").columns == ("my price", "log", "views")


def test_a_long_chain_and_deep_brackets_need_no_recursion_of_their_own() -> None:
    assert parse("+".join(["1"] * 499)).value({}, 1).tolist() == [499.0]
    assert parse("-" * 900 + "1").value({}, 1).tolist() == [1.0]
    assert parse("(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH).value({}, 1).tolist() == [7.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "position 1: expected a number, a column, a function or '(', found the end"),
        ("price +", "position 8: expected a number, a column, a function or '(', found the end"),
        ("price + * 2", "position 9: expected a number, a column, a function or '(', found '*'"),
        ("(price", "position 7: expected an operator or ')', found the end"),
        ("price)", "position 6: expected an operator or the end, found ')'"),
        ("price 2", "position 7: expected an operator or the end, found '2'"),
        ("lgo(price)", "position 1: no function 'lgo' (did you mean 'log'?)"),
        ("import(os)", "position 1: no function 'import'"),
        ("price ** 2", "position 8: expected a number"),
        ("price % 2", "position 7: '%' means nothing here"),
        ("price = 2", "position 7: '=' means nothing here"),
        ("a.b", "position 2: '.' means nothing here"),
        ("`price", "position 1: '`' means nothing here; close the backtick"),
        ("min(price)", "position 1: min takes 2 or more argument(s), found 1"),
        ("1 + if(price, 1)", "position 5: if takes 3 argument(s), found 2"),
        ("log(price, 2)", "position 1: log takes 1 argument(s), found 2"),
        ("log()", "position 5: expected a number, a column, a function or '(', found ')'"),
        ("1 < price < 2", "position 11: comparisons do not chain"),
        ("(" * 51 + "1" + ")" * 51, "position 52: more than 50 brackets inside each other"),
        ("1+" * 600 + "1", "1201 characters, at most 1000"),
    ],
)
def test_each_mistake_names_its_position_and_what_was_expected(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert sentence in str(caught.value)
