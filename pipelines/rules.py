"""Rules about one column: labels, filters and the `where` of a history."""

import datetime
import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, model_validator

from recsys.config import Config
from recsys.errors import ConfigError
from recsys.schema import TIMESTAMP, dtype_name

_INT64 = range(-(1 << 63), 1 << 63)


def _one_value(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str | datetime.date):
        raise ValueError(f"write one text, number, boolean or date, found {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"write a finite number, found {value}")
    return value


Literal = Annotated[
    bool | int | float | str | datetime.datetime | datetime.date, BeforeValidator(_one_value)
]


class Rule(Config):
    """True, false or (for a null value) null for each row. Several conditions must hold together."""

    column: str
    equals: Literal | None = None
    in_: tuple[Literal, ...] | None = Field(default=None, alias="in")
    at_least: Literal | None = None
    above: Literal | None = None
    at_most: Literal | None = None
    below: Literal | None = None
    not_null: bool = False
    negate: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.not_null and self.in_ is None and not self._comparisons:
            raise ValueError(
                "a rule needs one of equals, in, at_least, above, at_most, below, not_null"
            )
        if self.in_ == ():
            raise ValueError("in = [] is never true; list at least one value")
        return self

    @property
    def _comparisons(self) -> dict[str, Literal]:
        found = {
            "equal": self.equals,
            "greater_equal": self.at_least,
            "greater": self.above,
            "less_equal": self.at_most,
            "less": self.below,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def made_of(self) -> tuple[str, ...]:
        """The columns that decide the answer."""
        return (self.column,)

    @property
    def text(self) -> str:
        """The rule as a reader would say it, for reports: `not age at_least 18`."""
        names = ("equals", "in_", "at_least", "above", "at_most", "below")
        said = [
            f"{name.rstrip('_')} {_shown(getattr(self, name))}"
            for name in names
            if getattr(self, name) is not None
        ]
        said += ["not_null"] if self.not_null else []
        return f"{'not ' if self.negate else ''}{self.column} {' and '.join(said)}"


def check_rule(rule: Rule, found: pa.DataType, where: str) -> None:
    """Nothing, when every value of the rule fits a column of that type; raises ConfigError otherwise."""
    values = [*rule._comparisons.values(), *(rule.in_ or ())]
    for value in values:
        _scalar(value, found, rule.column, where)
    ordered = rule._comparisons.keys() - {"equal"}
    if ordered and (pa.types.is_string(found) or pa.types.is_boolean(found)):
        raise ConfigError(
            f"{where}: column {rule.column!r} is {dtype_name(found)}, which has no order for at_least, above, "
            "at_most or below; declare a number under [columns] of the schema"
        )


def evaluate(rule: Rule, values: pa.Array, *, where: str) -> pa.Array:
    """The rule's answer for each value of its column, a boolean or null. Raises ConfigError as `check_rule` does."""
    if pa.types.is_null(values.type):
        # Where a file says no type there is no value to compare.
        is_there_only = rule.in_ is None and not rule._comparisons
        unknown = pa.scalar(rule.negate if is_there_only else None, pa.bool_())
        return pa.repeat(unknown, len(values))
    check_rule(rule, values.type, where)
    answers = [
        pc.call_function(name, [values, _scalar(value, values.type, rule.column, where)])
        for name, value in rule._comparisons.items()
    ]
    if rule.in_ is not None:
        scalars = [_scalar(value, values.type, rule.column, where) for value in rule.in_]
        known = pa.array(_held([scalar.as_py() for scalar in scalars], values.type), values.type)
        answers.append(pc.if_else(values.is_valid(), pc.is_in(values, value_set=known), None))
    if rule.not_null:
        answers.append(values.is_valid())
    answer = answers[0]
    for other in answers[1:]:
        answer = pc.and_(answer, other)
    return pc.invert(answer) if rule.negate else answer


def _held(values: Sequence[Any], dtype: pa.DataType) -> Sequence[Any]:
    """Those of the values that a type can hold: an integer is never 2.5, nor beyond its width."""
    if not pa.types.is_integer(dtype):
        return values
    signed = pa.types.is_signed_integer(dtype)
    limits = range(-(1 << (dtype.bit_width - 1)) if signed else 0, 1 << (dtype.bit_width - signed))
    whole = [int(value) for value in values if float(value).is_integer()]
    return [value for value in whole if value in limits]


def _scalar(value: Literal, found: pa.DataType, column: str, where: str) -> pa.Scalar:
    """A rule's value in a type that compares exactly with the column's."""
    types = pa.types
    if types.is_boolean(found) and isinstance(value, bool):
        return pa.scalar(value)
    if types.is_string(found) and isinstance(value, str):
        return pa.scalar(value)
    if types.is_timestamp(found) and isinstance(value, datetime.date):
        return pa.scalar(value).cast(TIMESTAMP)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if types.is_integer(found) and (isinstance(value, float) or value in _INT64):
            return pa.scalar(value)
        if types.is_floating(found):
            # The nearest value of the column's own width: a float32 column can equal 0.1.
            return pa.scalar(float(value), found)
    raise ConfigError(
        f"{where}: {value!r} cannot be compared with column {column!r}, which is {dtype_name(found)}; "
        "write a value of that type, or declare the column's dtype under [columns] of the schema"
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
