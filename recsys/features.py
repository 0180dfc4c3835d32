"""The kinds of `[features]`, one frozen class each. What a kind reads is its `columns`, its value `recsys.derived`'s.

Every kind is one of five encodings: the row of an id (`IdFeature`), a bag of ids (`BagFeature`), the row of a number
in a table of the feature's own (`BucketFeature`, `DatePartFeature`), one dense number (`NumberFeature`), or a dense
vector (`VectorFeature`).
"""

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from recsys.config import Config
from recsys.expression import Expression, parse
from recsys.schema_sections import RESERVED_ROWS, Keys, Side, Table

DatePart = Literal["hour", "weekday", "day_of_month", "month", "hour_of_week"]
# How many values a part of a date has.
DATE_PARTS: Mapping[DatePart, int] = {
    "hour": 24,
    "weekday": 7,
    "day_of_month": 31,
    "month": 12,
    "hour_of_week": 168,
}


def _is_none(value: object) -> bool:
    return value is None


class _Feature(Config):
    """What every feature may say."""

    side: Side = "candidate"

    def named(self, name: str, keys: Keys) -> Self:
        """The feature with the settings that its name and the keys decide where it does not say them."""
        return self


class OneColumn(_Feature):
    """A feature of one raw column. A `fixed` one is trained as given and is the constant `value` in the server."""

    column: str = ""
    serve: Literal["request", "fixed"] = "request"
    value: bool | int | float | str | None = None
    user_columns: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _fixed_has_value(self) -> Self:
        if (self.serve == "fixed") != (self.value is not None):
            raise ValueError(
                'serve = "fixed" and value = ... belong together; give both or neither'
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return (self.column,)

    def named(self, name: str, keys: Keys) -> Self:
        return self.model_copy(update={"column": self.column or name})


class _SeveralColumns(_Feature):
    """A feature of several raw columns. A request carries `user_columns` once, though the feature is candidate-side."""

    user_columns: tuple[str, ...] = ()
    serve: ClassVar[Literal["request"]] = "request"
    value: ClassVar[None] = None


class _Number(Config):
    """One dense number: signed log1p if asked, z-score over the training rows, clipped. Missing becomes 0."""

    transform: Literal["none", "log1p"] = "none"
    normalize: Literal["zscore", "none"] = "zscore"
    clip: float | None = Field(default=5.0, gt=0)


class CategoricalFeature(OneColumn):
    """One id a row, looked up in a table."""

    kind: Literal["categorical"]
    table: str


class MultiValuedFeature(OneColumn):
    """A bag of ids a row, pooled. Null and the empty list are both the empty bag, whose vector is zero.

    `weights` names a list column aligned with the ids: sum of w e, or for the mean that over the sum of w.
    """

    kind: Literal["multi_valued"]
    table: str
    pooling: Literal["mean", "sum"] = "mean"
    weights: str | None = Field(default=None, exclude_if=_is_none)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.weights is None else (self.column, self.weights)


class NumericFeature(_Number, OneColumn):
    """A column's number."""

    kind: Literal["numeric"]


class BucketFeature(OneColumn):
    """A number cut at `edges`, or else at the training rows' quantiles, looked up in a table of the feature's name."""

    kind: Literal["bucket"]
    buckets: int = Field(default=32, ge=2, le=65_536)
    edges: tuple[float, ...] | None = Field(default=None, min_length=1, exclude_if=_is_none)
    dim: int = Field(default=8, ge=1, le=4096)

    @model_validator(mode="before")
    @classmethod
    def _count_buckets(cls, tree: Any) -> Any:
        edges = tree.get("edges") if isinstance(tree, Mapping) else None
        if not edges or not isinstance(edges, tuple):
            return tree  # where edges are something else, their own field says so
        count = len(edges) + 1
        if tree.get("buckets", count) != count:
            raise ValueError("edges and buckets are both given; give edges, or buckets to fit them")
        return {**tree, "buckets": count}

    @field_validator("edges")
    @classmethod
    def _increasing(cls, edges: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for left, right in pairwise(edges or ()):
            if not left < right:
                raise ValueError(f"edges must increase, found {left:g} before {right:g}; sort them")
        return edges

    @property
    def own_table(self) -> Table:
        return Table(rows=self.buckets + RESERVED_ROWS, dim=self.dim)


class DatePartFeature(OneColumn):
    """A part of a time, `utc_offset_hours` from UTC, looked up in a table of the feature's own name."""

    kind: Literal["date_part"]
    part: DatePart
    utc_offset_hours: float = Field(default=0.0, ge=-14, le=14)
    dim: int = Field(default=4, ge=1, le=4096)
    side: Side = "context"

    @property
    def own_table(self) -> Table:
        return Table(rows=DATE_PARTS[self.part] + RESERVED_ROWS, dim=self.dim)

    def named(self, name: str, keys: Keys) -> Self:
        return self.model_copy(update={"column": self.column or keys.time or ""})


class VectorFeature(OneColumn):
    """A list of `dim` numbers a row, as it is or of length 1 (`l2`). Null becomes zeros."""

    kind: Literal["vector"]
    dim: int = Field(ge=1, le=4096)
    normalize: Literal["none", "l2"] = "none"


class TextFeature(OneColumn):
    """The n-grams of a text's words or characters, hashed: a bag of at most `max_ids` ids a row, pooled."""

    kind: Literal["text"]
    table: str
    ngrams: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(default=(1, 2), min_length=1)
    unit: Literal["word", "character"] = "word"
    lowercase: bool = True
    max_ids: int = Field(default=64, ge=1, le=4096)
    pooling: Literal["mean", "sum"] = "mean"

    @field_validator("ngrams")
    @classmethod
    def _lengths_increase(cls, ngrams: tuple[int, ...]) -> tuple[int, ...]:
        if sorted(set(ngrams)) != list(ngrams):
            raise ValueError(
                f"ngrams are lengths that increase, such as [1, 2], found {list(ngrams)}"
            )
        return ngrams


class CrossFeature(_SeveralColumns):
    """The combination of several columns' values as one id. A null in any of them is the missing row."""

    kind: Literal["cross"]
    columns: tuple[str, ...] = Field(min_length=2)
    table: str


class LookupFeature(_Number, _SeveralColumns):
    """The number that a map column holds at a row's key. An absent key and a null are missing."""

    kind: Literal["lookup"]
    column: str = ""
    key: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, self.key)

    def named(self, name: str, keys: Keys) -> Self:
        return self.model_copy(update={"column": self.column or name})


class OverlapFeature(_Number, _SeveralColumns):
    """How much two sets of ids share: their common ids, the first set's share of common ids, or the Jaccard index."""

    kind: Literal["overlap"]
    columns: tuple[str, ...] = Field(min_length=2, max_length=2)
    measure: Literal["count", "share", "jaccard"] = "count"


class ExpressionFeature(_Number, _SeveralColumns):
    """Arithmetic over number columns; `recsys.expression` has the grammar."""

    kind: Literal["expression"]
    expression: str

    @field_validator("expression")
    @classmethod
    def _parses(cls, expression: str) -> str:
        if not parse(expression).columns:
            raise ValueError("the expression reads no column; name at least one")
        return expression

    @cached_property
    def parsed(self) -> Expression:
        return parse(self.expression)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.parsed.columns


IdFeature = CategoricalFeature | CrossFeature
BagFeature = MultiValuedFeature | TextFeature
OwnTableFeature = BucketFeature | DatePartFeature
NumberFeature = NumericFeature | LookupFeature | OverlapFeature | ExpressionFeature
Feature = Annotated[
    IdFeature | BagFeature | OwnTableFeature | NumberFeature | VectorFeature,
    Field(discriminator="kind"),
]
