"""What the data is: raw columns, keys, tables, features, sequences and tasks, as `schema.toml` states them.

Everything else is derived from here: the Arrow schemas of raw and encoded rows, the order of sparse slots and dense
values, the wire types of the server and the input widths of a model. `recsys.layout` holds those derivations.

Row 0 of every table means "missing", row 1 "unknown".
"""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import ValidationInfo, field_validator, model_validator

from recsys.config import Config, read_toml
from recsys.errors import nearest
from recsys.features import (
    BagFeature,
    BucketFeature,
    CategoricalFeature,
    CrossFeature,
    DatePartFeature,
    ExpressionFeature,
    Feature,
    IdFeature,
    LookupFeature,
    MultiValuedFeature,
    NumberFeature,
    NumericFeature,
    OneColumn,
    OverlapFeature,
    OwnTableFeature,
    TextFeature,
    VectorFeature,
)
from recsys.publish import canonical_json
from recsys.schema_rules import problems
from recsys.schema_sections import (
    ARROW_TYPES,
    MISSING_ROW,
    OTHER_NAMES,
    RESERVED_ROWS,
    TIMESTAMP,
    UNBOUNDED,
    UNKNOWN_ROW,
    IdToken,
    Keys,
    Sequence,
    Side,
    Table,
    Task,
    TimeGapToken,
    dtype_name,
)

__all__ = [
    "ARROW_TYPES",
    "MISSING_ROW",
    "RESERVED_ROWS",
    "TIMESTAMP",
    "UNKNOWN_ROW",
    "BagFeature",
    "BucketFeature",
    "CategoricalFeature",
    "CrossFeature",
    "DatePartFeature",
    "ExpressionFeature",
    "Feature",
    "IdFeature",
    "IdToken",
    "Keys",
    "LookupFeature",
    "MultiValuedFeature",
    "NumberFeature",
    "NumericFeature",
    "OneColumn",
    "OverlapFeature",
    "OwnTableFeature",
    "Schema",
    "Sequence",
    "Side",
    "Table",
    "Task",
    "TextFeature",
    "TimeGapToken",
    "VectorFeature",
    "dtype_name",
    "load_schema",
    "parse_schema",
]


class Schema(Config):
    """The whole of `schema.toml`. Digests and Arrow schemas are derived; nothing else describes the data."""

    columns: dict[str, str]
    keys: Keys = Keys()
    tables: dict[str, Table] = {}
    features: dict[str, Feature]
    sequences: dict[str, Sequence] = {}
    tasks: dict[str, Task]

    @field_validator("columns")
    @classmethod
    def _known_dtypes(cls, columns: dict[str, str]) -> dict[str, str]:
        for name, dtype in columns.items():
            if dtype not in ARROW_TYPES:
                meant = OTHER_NAMES.get(dtype.lower(), dtype)
                raise ValueError(
                    f"column {name!r} has unknown dtype {dtype!r}{nearest(meant, ARROW_TYPES)}; "
                    f"known: {', '.join(ARROW_TYPES)}"
                )
        return columns

    @field_validator("features")
    @classmethod
    def _name_feature_columns(
        cls, features: dict[str, Any], info: ValidationInfo
    ) -> dict[str, Any]:
        keys = info.data.get("keys", Keys())
        return {name: item.named(name, keys) for name, item in features.items()}

    @field_validator("sequences")
    @classmethod
    def _name_token_columns(cls, sequences: dict[str, Sequence]) -> dict[str, Sequence]:
        return {
            name: sequence.model_copy(
                update={
                    "tokens": {
                        token: spec.model_copy(update={"column": spec.column or f"{name}_{token}"})
                        for token, spec in sequence.tokens.items()
                    }
                }
            )
            for name, sequence in sequences.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = next(iter(problems(self)), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def __hash__(self) -> int:
        return hash(self.model_digest)

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    @cached_property
    def all_tables(self) -> dict[str, Table]:
        """Declared tables, then those that features and time gaps bring along."""
        implicit = {
            name: item.own_table
            for name, item in self.features.items()
            if isinstance(item, OwnTableFeature)
        }
        for sequence_name, sequence in self.sequences.items():
            for token, spec in sequence.tokens.items():
                if isinstance(spec, TimeGapToken):
                    implicit[f"{sequence_name}.{token}"] = Table(
                        rows=spec.buckets + RESERVED_ROWS, dim=spec.dim
                    )
        return dict(self.tables) | implicit

    @cached_property
    def unbounded(self) -> tuple[str, ...]:
        """Tables whose encoded ids are 64-bit hashes, which an id map (`recsys.idmap`) turns into rows."""
        return tuple(name for name, item in self.tables.items() if item.id_kind in UNBOUNDED)

    @cached_property
    def managed(self) -> tuple[str, ...]:
        """Those of the unbounded tables whose id maps TorchRec keeps, and changes after every step."""
        return tuple(name for name, item in self.tables.items() if item.id_kind == "zch")

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 over everything that changes encoded rows: dtypes, kinds, transforms, table rows and seeds, labels.

        Widths, sides, targets, pooling and the funnel are left out: tuning them must not invalidate data. So are rows
        and admission of unbounded tables, and whether TorchRec keeps their maps.
        """
        tree = self.model_dump(mode="json")
        for table in tree["tables"].values():
            settings = ["dim", "eviction"]
            if table["ids"] in UNBOUNDED:
                # Rows hold hashes: which of them have a row of the table is the id map's to say.
                settings += ["rows", "min_count"]
                table["ids"] = "unbounded"
            for key in settings:
                table.pop(key, None)
        for feature in tree["features"].values():
            for key in ("side", "user_columns", "serve", "value", "pooling"):
                feature.pop(key, None)
            if feature["kind"] != "vector":
                feature.pop("dim", None)
        for sequence in tree["sequences"].values():
            del sequence["target"]
            for token in sequence["tokens"].values():
                token.pop("dim", None)
        for task in tree["tasks"].values():
            del task["given"]
        return hashlib.sha256(canonical_json(tree)).hexdigest()

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 over the whole schema, order included: what a checkpoint or bundle was made for."""
        # Order is kept (no sorted keys): it decides the layout of a model's inputs.
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def raw_arrow(self, *, labels: bool) -> pa.Schema:
        """Arrow schema of raw rows: all declared columns, or, without labels, just those that a request carries."""
        names: Iterable[str] = self.columns if labels else self.request_columns
        return pa.schema([pa.field(name, ARROW_TYPES[self.columns[name]]) for name in names])

    @cached_property
    def request_columns(self) -> tuple[str, ...]:
        """Raw columns that a served row needs: of features that are not fixed, of tokens, and the time for gaps."""
        names = [
            column
            for item in self.features.values()
            if item.serve == "request"
            for column in item.columns
        ]
        gaps = False
        for sequence in self.sequences.values():
            names += [spec.column for spec in sequence.tokens.values()]
            gaps = gaps or any(isinstance(spec, TimeGapToken) for spec in sequence.tokens.values())
        if gaps and self.keys.time is not None:
            names.append(self.keys.time)
        return tuple(dict.fromkeys(names))

    def to_json(self) -> str:
        """The schema as JSON in declaration order; `parse_schema` reads it back to an equal schema."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))


def load_schema(path: Path) -> Schema:
    """The schema that a `schema.toml` states. Raises ConfigError naming file, key, what was found and what to do."""
    return Schema.parse(read_toml(path), where=str(path))


def parse_schema(text: str, *, where: str) -> Schema:
    """The schema of a JSON text written by `Schema.to_json`."""
    return Schema.parse(json.loads(text), where=where)
