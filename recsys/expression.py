"""Arithmetic over columns, as an `expression` feature writes it: its grammar, and its value with NumPy.

```
expression = sum [ comparison sum ]                     comparison = "<" | "<=" | ">" | ">=" | "==" | "!="
sum        = product { ("+" | "-") product }
product    = signed { ("*" | "/") signed }
signed     = "-" signed | operand
operand    = number | column | function "(" expression { "," expression } ")" | "(" expression ")"
```

A column is a plain identifier, or any name in backticks. A comparison is 1 or 0. Values are float64, NaN is "missing":
an operation on a missing value, or one without a finite result (x / 0, the logarithm of -1), is missing; `if` looks at
the branch it takes. An expression is kept as the steps of a stack machine, so its value needs no recursion.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from recsys.errors import nearest

MAX_LENGTH: Final = 1000
MAX_DEPTH: Final = 50

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """Push a number."""

    number: float


@dataclass(frozen=True)
class Column:
    """Push a column."""

    name: str


@dataclass(frozen=True)
class Call:
    """Take as many values as there are arguments and push what the operation makes of them."""

    operation: str
    arguments: int


@dataclass(frozen=True)
class Expression:
    """A parsed expression: the steps of a stack machine."""

    steps: tuple[Constant | Column | Call, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, in order of appearance."""
        return tuple(dict.fromkeys(step.name for step in self.steps if isinstance(step, Column)))

    def value(self, columns: Mapping[str, Numbers], rows: int) -> Numbers:
        """One number a row, NaN where missing."""
        stack: list[Numbers] = []
        with np.errstate(all="ignore"):
            for step in self.steps:
                match step:
                    case Constant(number):
                        stack.append(np.full(rows, number))
                    case Column(name):
                        stack.append(columns[name])
                    case Call(operation, arguments):
                        taken = [stack.pop() for _ in range(arguments)][::-1]
                        stack.append(_applied(operation, taken))
        (result_B,) = stack
        return result_B


def parse(text: str) -> Expression:
    """The expression that a text states. Raises ValueError naming the position, what was expected and what found."""
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"{len(text)} characters, at most {MAX_LENGTH}; split it into several features"
        )
    return Expression(tuple(_Parser(text).expression()))


@dataclass(frozen=True)
class _Function:
    """What a function computes, and how many arguments it takes (`most` None: any number)."""

    compute: Callable[..., Any]
    least: int = 1
    most: int | None = 1


def _minimum(*values: Numbers) -> Numbers:
    return reduce(np.minimum, values)


def _maximum(*values: Numbers) -> Numbers:
    return reduce(np.maximum, values)


def _clip(value: Numbers, low: Numbers, high: Numbers) -> Numbers:
    return _minimum(_maximum(value, low), high)


def _if(condition: Numbers, then: Numbers, otherwise: Numbers) -> Numbers:
    return np.where(np.isnan(condition), np.nan, np.where(condition != 0, then, otherwise))


FUNCTIONS: Final[Mapping[str, _Function]] = {
    "log": _Function(np.log),
    "log1p": _Function(np.log1p),
    "exp": _Function(np.exp),
    "sqrt": _Function(np.sqrt),
    "abs": _Function(np.abs),
    "round": _Function(np.round),
    "floor": _Function(np.floor),
    "min": _Function(_minimum, 2, None),
    "max": _Function(_maximum, 2, None),
    "clip": _Function(_clip, 3, 3),
    "if": _Function(_if, 3, 3),
}
_COMPARISONS: Final[Mapping[str, Callable[..., Any]]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_ARITHMETIC: Final[Mapping[str, Callable[..., Any]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}


def _applied(operation: str, values: list[Numbers]) -> Numbers:
    if operation in _COMPARISONS:
        left, right = values
        missing = np.isnan(left) | np.isnan(right)
        return np.where(missing, np.nan, _COMPARISONS[operation](left, right))
    compute = _ARITHMETIC.get(operation) or FUNCTIONS[operation].compute
    result_B: Numbers = compute(*values)
    return np.where(np.isfinite(result_B), result_B, np.nan)


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|`(?P<quoted>[^`]+)`"
    r"|(?P<sign><=|>=|==|!=|[-+*/(),<>]))"
)
_OPERAND = "a number, a column, a function or '('"


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


def _tokens(text: str) -> Iterator[_Token]:
    start = 0
    end = len(text.rstrip())
    while start < end:
        match = _TOKEN.match(text, start)
        if match is None or match.lastgroup is None:
            place = start + len(text[start:]) - len(text[start:].lstrip())
            remedy = "close the backtick" if text[place] == "`" else "remove it"
            raise ValueError(
                f"position {place + 1}: {text[place]!r} means nothing here; {remedy} "
                "(a column with unusual characters goes in backticks)"
            )
        yield _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1)
        start = match.end()
    yield _Token("end", "", len(text) + 1)


class _Parser:
    """Recursive descent; each method yields the steps of one rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._index = 0
        self._depth = 0

    def expression(self) -> Iterator[Constant | Column | Call]:
        """The whole text."""
        yield from self._comparison()
        token = self._next
        if token.text in _COMPARISONS and token.kind == "sign":
            self._fail(
                "comparisons do not chain; write one inside the other with if(...) or min(...)"
            )
        if token.kind != "end":
            self._fail(f"expected an operator or the end, found {token}")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._index]

    def _fail(self, problem: str, token: _Token | None = None) -> NoReturn:
        raise ValueError(f"position {(token or self._next).position}: {problem}")

    def _taken(self, *signs: str) -> str | None:
        """The next token if it is one of these signs, which is thereby passed; else None."""
        token = self._next
        if token.kind != "sign" or token.text not in signs:
            return None
        self._index += 1
        return token.text

    def _comparison(self) -> Iterator[Constant | Column | Call]:
        yield from self._sum()
        if sign := self._taken(*_COMPARISONS):
            yield from self._sum()
            yield Call(sign, 2)

    def _sum(self) -> Iterator[Constant | Column | Call]:
        yield from self._product()
        while sign := self._taken("+", "-"):
            yield from self._product()
            yield Call(sign, 2)

    def _product(self) -> Iterator[Constant | Column | Call]:
        yield from self._signed()
        while sign := self._taken("*", "/"):
            yield from self._signed()
            yield Call(sign, 2)

    def _signed(self) -> Iterator[Constant | Column | Call]:
        negative = False
        while self._taken("-"):
            negative = not negative
        if negative:
            yield Constant(0.0)
        yield from self._operand()
        if negative:
            yield Call("-", 2)

    def _operand(self) -> Iterator[Constant | Column | Call]:
        token = self._next
        self._index += 1
        if token.kind == "number":
            yield Constant(float(token.text))
        elif token.kind == "quoted":
            yield Column(token.text)
        elif token.kind == "name" and self._taken("("):
            yield from self._call(token)
        elif token.kind == "name":
            yield Column(token.text)
        elif token.kind == "sign" and token.text == "(":
            yield from self._nested()
            self._close()
        else:
            self._fail(f"expected {_OPERAND}, found {token}", token)

    def _nested(self) -> Iterator[Constant | Column | Call]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(
                f"more than {MAX_DEPTH} brackets inside each other; split it into several features"
            )
        yield from self._comparison()
        self._depth -= 1

    def _close(self) -> None:
        if not self._taken(")"):
            self._fail(f"expected an operator or ')', found {self._next}")

    def _call(self, name: _Token) -> Iterator[Constant | Column | Call]:
        function = FUNCTIONS.get(name.text)
        if function is None:
            self._fail(
                f"no function {name.text!r}{nearest(name.text, FUNCTIONS)}; known: {', '.join(FUNCTIONS)}",
                name,
            )
        arguments = 1
        yield from self._nested()
        while self._taken(","):
            yield from self._nested()
            arguments += 1
        self._close()
        if arguments < function.least or (function.most or arguments) < arguments:
            wanted = f"{function.least}{'' if function.most else ' or more'}"
            self._fail(f"{name.text} takes {wanted} argument(s), found {arguments}", name)
        yield Call(name.text, arguments)
