"""Request and response types, derived from the Schema: strict, unknown fields refused, nothing coerced.

A request carries raw values: the user's and the context's once, the candidates' in columns.

```json
{"model": {"name": "feed"},
 "user": {"id": "u1", "features": {"country": "PT", "clicks_item": [7, 9]}},
 "context": {"features": {"hour": 13}},
 "candidates": {"ids": ["i1", "i2"], "features": {"price": [1.5, null], "category": ["a", "b"]}},
 "options": {"tasks": ["click"], "top_k": 10}}
```

Null is a value: what the encoder takes a missing value for. A feature left out counts as null and is named in the
answer's `imputed`, or is refused with `on_missing = "fail_request"`. A map is an object, a vector an array of numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from recsys.errors import RequestError
from recsys.layout import entry_names
from recsys.request_rows import RequestColumns
from recsys.schema import Schema
from serving.column_types import ListSizes, column_type, not_finite
from serving.decoding import (
    count_keys,
    decode,
    place_of,
    pointer,
    refusal,
    refuse_duplicate_keys,
)

Name = Annotated[str, Meta(max_length=128)]
Id = Annotated[str, Meta(max_length=256)] | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class ModelPin(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which model answers. A version that is not loaded is refused with 409."""

    name: Name | UnsetType = UNSET
    version: Name | UnsetType = UNSET


class Envelope(msgspec.Struct, frozen=True):
    """The part of a request that says which model's types it has; the rest is passed over."""

    model: ModelPin | UnsetType = UNSET


class Probability(msgspec.Struct, frozen=True):
    """Per candidate: `raw` is the sigmoid of the model's logit, `p` the calibrated probability."""

    raw: list[float | None]
    p: list[float | None]


class Value(msgspec.Struct, frozen=True):
    """Per candidate: a regression task's prediction, in the label's units."""

    value: list[float | None]


class ModelName(msgspec.Struct, frozen=True):
    """The model that answered. `digest` covers every byte of its bundle."""

    name: str
    version: str
    digest: str


class UtilityName(msgspec.Struct, frozen=True):
    """The formula behind `score`."""

    name: str
    version: int
    formula: str


class CandidateError(msgspec.Struct, frozen=True):
    """Why the candidate at `index` has status 1 and null scores."""

    index: int
    code: Literal["NON_FINITE_SCORE"]


class Degraded(msgspec.Struct, frozen=True):
    """How many of the candidates were scored."""

    scored: int
    total: int


_ENVELOPE = msgspec.json.Decoder(Envelope)


def decode_pin(raw: bytes) -> ModelPin:
    """The model that a JSON body asks for. Raises RequestError."""
    pin = decode(_ENVELOPE, raw).model
    return ModelPin() if pin is UNSET else pin


@dataclass(frozen=True)
class Wire:
    """The request and response types of one model."""

    schema: Schema
    model: str
    utility: str

    @cached_property
    def columns(self) -> RequestColumns:
        return RequestColumns.of(self.schema)

    @cached_property
    def sizes(self) -> ListSizes:
        return ListSizes.of(self.schema)

    @cached_property
    def entries(self) -> tuple[str, ...]:
        return entry_names(self.schema)

    @cached_property
    def request_type(self) -> type[Any]:
        """The Struct of a rank request."""
        user = self._section("User", self.columns.user, ("id", Id | UnsetType, UNSET))
        context = self._section("Context", self.columns.context)
        ids = ("ids", list[Id] | UnsetType, UNSET)
        candidates = self._section("Candidates", self.columns.candidate, ids)
        fields = [
            ("candidates", candidates),
            ("model", ModelPin | UnsetType, UNSET),
            ("user", user | UnsetType, UNSET),
            ("context", context | UnsetType, UNSET),
            ("options", self._options() | UnsetType, UNSET),
        ]
        return self._struct("RankRequest", fields)

    @cached_property
    def response_type(self) -> type[Any]:
        """The Struct that describes a rank response."""
        names = {f"e{index}": entry for index, entry in enumerate(self.entries)}
        kinds = [Value if self._is_regression(entry) else Probability for entry in names.values()]
        entry_fields = [
            (key, kind | UnsetType, UNSET) for key, kind in zip(names, kinds, strict=True)
        ]
        tasks = self._struct("TaskScores", entry_fields, rename=names)
        fields = [
            ("request_id", str),
            ("model", ModelName),
            ("utility", UtilityName),
            ("order", list[int]),
            ("tasks", tasks),
            ("score", list[float | None]),
            ("status", list[Literal[0, 1]]),
            ("errors", list[CandidateError]),
            ("imputed", list[str]),
            ("degraded", Degraded),
            ("user", self._struct("UserId", [("id", Id)]) | UnsetType, UNSET),
            ("ids", list[Id] | UnsetType, UNSET),
        ]
        return self._struct("RankResponse", fields)

    def decode(self, raw: bytes) -> Any:
        """The request of a JSON body. Raises RequestError with the JSON pointer of the first thing wrong."""
        request = decode(self._decoder, raw)
        refuse_duplicate_keys(raw, count_keys(request))
        return request

    def convert(self, tree: Mapping[str, Any]) -> Any:
        """The request of a plain tree, as strict as JSON. Raises RequestError."""
        try:
            return msgspec.convert(tree, self.request_type)
        except msgspec.ValidationError as error:
            _refuse_not_finite(tree, place_of(error))
            raise refusal(error, self.request_type) from error

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.request_type)

    def _is_regression(self, entry: str) -> bool:
        task = self.schema.tasks.get(entry)
        return task is not None and task.kind == "regression"

    def _options(self) -> type[Any]:
        """Only what is built is listed: any other option or value is refused, never passed over."""
        fields = [
            ("tasks", list[_one_of(self.entries)] | UnsetType, UNSET),  # type: ignore[misc]
            ("utility", _one_of((self.utility,)) | UnsetType, UNSET),
            ("top_k", Annotated[int, Meta(ge=1)] | UnsetType, UNSET),
            ("explain", Literal["none"] | UnsetType, UNSET),
            ("lookup", Literal["none"] | UnsetType, UNSET),
            ("on_missing", Literal["impute", "fail_request"] | UnsetType, UNSET),
            ("on_error", Literal["partial"] | UnsetType, UNSET),
        ]
        return self._struct("Options", fields)

    def _section(self, name: str, columns: tuple[str, ...], *fields: Any) -> type[Any]:
        per_row = name == "Candidates"
        # Column names need not be identifiers.
        names = {f"c{index}": column for index, column in enumerate(columns)}
        values = [
            (key, self._column_type(column, per_row=per_row) | UnsetType, UNSET)
            for key, column in names.items()
        ]
        features = self._struct(f"{name}Features", values, rename=names)
        return self._struct(name, [*fields, ("features", features | UnsetType, UNSET)])

    def _column_type(self, column: str, *, per_row: bool) -> Any:
        value: Any = column_type(column, self.schema.columns[column], self.sizes)
        return list[value | None] if per_row else value | None

    def _struct(
        self, name: str, fields: Any, *, rename: Mapping[str, str] | None = None
    ) -> type[Any]:
        return msgspec.defstruct(
            f"{self.model}_{name}",
            fields,
            rename=rename,
            forbid_unknown_fields=True,
            kw_only=True,
            frozen=True,
        )


def features_of(section: Any) -> dict[str, Any]:
    """The columns that a decoded section carries, by name; those left out are absent."""
    if section is UNSET or section.features is UNSET:
        return {}
    features = section.features
    keys, names = features.__struct_fields__, features.__struct_encode_fields__
    found = {name: getattr(features, key) for key, name in zip(keys, names, strict=True)}
    return {name: value for name, value in found.items() if value is not UNSET}


def _one_of(names: tuple[str, ...]) -> Any:
    return Literal[names]


def _refuse_not_finite(tree: Any, place: Sequence[str | int]) -> None:
    """Name a NaN or infinity by what it is, where the parser only says which bound it breaks."""
    for part in place:
        tree = tree[part]
    values = tree.items() if isinstance(tree, Mapping) else [(None, tree)]
    for key, value in values:
        if "features" in place and not_finite(value):
            raise RequestError(
                f"{value} is not a finite number; give null for a missing value",
                pointer=pointer(*place, *(() if key is None else (key,))),
            )
