"""What JSON carries for each raw column: the wire types of dtypes, and the sizes that features ask of lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from recsys.schema import MultiValuedFeature, Schema, VectorFeature

INTEGER_KEY = r"^(0|-?[1-9][0-9]*)$"

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Bounds refuse NaN and infinity, which a plain tree may hold.
_FLOAT64_MAX = float(np.finfo(np.float64).max)
_FLOAT32 = Annotated[float, Meta(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]
_WEIGHT = Annotated[float, Meta(ge=0, le=_FLOAT32_MAX)]
_SCALARS: Mapping[str, Any] = {
    "bool": bool,
    "float32": _FLOAT32,
    "float64": Annotated[float, Meta(ge=-_FLOAT64_MAX, le=_FLOAT64_MAX)],
    "string": str,
    "timestamp": Annotated[datetime, Meta(tz=True)],
}


@dataclass(frozen=True)
class ListSizes:
    """How many numbers the vectors of a column have; `weights` are pairs of a column of weights and its ids' column."""

    vectors: Mapping[str, int]
    weights: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, schema: Schema) -> "ListSizes":
        features = schema.features.values()
        return cls(
            {item.column: item.dim for item in features if isinstance(item, VectorFeature)},
            tuple(
                dict.fromkeys(
                    (item.weights, item.column)
                    for item in features
                    if isinstance(item, MultiValuedFeature) and item.weights is not None
                )
            ),
        )


def column_type(name: str, dtype: str, sizes: ListSizes) -> Any:
    """The type of one value of a column, null apart.

    A vector and a list of weights hold no null: one missing number is a missing vector. A map is an object, its keys
    as text. Sizes and keys are described here and checked in `serving.inputs`, which can say what was found.
    """
    if name in sizes.vectors:
        size = sizes.vectors[name]
        length: dict[str, Any] = {"minItems": size, "maxItems": size}
        return Annotated[list[_FLOAT32], Meta(extra_json_schema=length)]
    if any(name == weights for weights, _ in sizes.weights):
        return list[_WEIGHT]
    if dtype.startswith("map<"):
        keys: dict[str, Any] = (
            {"propertyNames": {"pattern": INTEGER_KEY}} if "int64" in dtype else {}
        )
        return Annotated[dict[str, _FLOAT32 | None], Meta(extra_json_schema=keys)]
    if dtype.startswith("list<"):
        item = _scalar_type(dtype.removeprefix("list<").removesuffix(">"))
        return list[item | None]  # type: ignore[valid-type]
    return _scalar_type(dtype)


def not_finite(value: Any) -> bool:
    """Whether a value of a plain tree is NaN or an infinity, which no JSON can hold."""
    return isinstance(value, float) and not np.isfinite(value)


def _scalar_type(dtype: str) -> Any:
    if dtype.startswith("int"):
        bits = int(dtype.removeprefix("int"))
        return Annotated[int, Meta(ge=-(2 ** (bits - 1)), le=2 ** (bits - 1) - 1)]
    return _SCALARS[dtype]
