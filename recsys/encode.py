"""Raw rows to ids and normalised numbers: the only place where that happens, in training and in the server.

`recsys.fitting` makes an `Encoder` from training rows; here it is applied, saved and loaded. Everything is vectorised
over rows, and a row's encoding does not depend on the rows beside it.

On disk (a publication of kind "encoder"): `encoder.json` with the schema, the statistics and the lineage, and
`vocabulary/<table>.arrow` with each fitted table's values in row order from row 2 on.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys import derived
from recsys.derived import Source
from recsys.errors import ArtifactError, DataError
from recsys.hashing import hash_ids
from recsys.layout import BlockSide, dense_column, encoded_arrow, kept_column, weights_column
from recsys.publish import Published, canonical_json, publication, resolve
from recsys.raw import column_of, flat_list, float32_of, newest
from recsys.schema import (
    MISSING_ROW,
    RESERVED_ROWS,
    BagFeature,
    BucketFeature,
    DatePartFeature,
    Feature,
    IdFeature,
    IdToken,
    NumberFeature,
    Schema,
    Table,
    VectorFeature,
    parse_schema,
)
from recsys.targets import group, sample_weight, targets
from recsys.vocabulary import Vocabulary, read_vocabulary, write_vocabulary

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a numeric feature over the training rows, after its transform."""

    mean: float
    std: float


@dataclass(frozen=True)
class Encoder:
    """A schema with fitted statistics. `lineage` lists the digests of the encoders that it extends, oldest first."""

    schema: Schema
    moments: Mapping[str, Moments]
    edges: Mapping[str, NDArray[np.float64]]
    vocabularies: Mapping[str, Vocabulary]
    lineage: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides an encoded value."""
        return hashlib.sha256(canonical_json(self._tree())).hexdigest()

    def accepts(self, digest: str) -> bool:
        """Whether rows encoded by the encoder of that digest mean the same under this one: itself or one it extends."""
        return digest == self.digest or digest in self.lineage

    def encode_inputs(self, raw: pa.Table, *, side: BlockSide | None = None) -> pa.Table:
        """Encoded slots and dense values of raw rows, of both sides or of one.

        Raises DataError naming the column, the row and what was found.
        """
        arrays: dict[str, pa.Array] = {}
        for name, item in self.schema.features.items():
            if side is None or (side == "candidate") == (item.side == "candidate"):
                arrays |= self._feature(name, item, Source(raw, self.schema, f"feature {name!r}"))
        if side != "candidate":
            for sequence in self.schema.sequences:
                arrays |= self._tokens(raw, sequence)
        order = encoded_arrow(self.schema, labels=False, side=side)
        return pa.Table.from_arrays([arrays[name] for name in order.names], schema=order)

    def encode(self, raw: pa.Table, *, row_key: NDArray[np.int64] | None = None) -> pa.Table:
        """Encoded rows with labels, weight, group, row key and kept columns, in the order of `layout.encoded_arrow`.

        `row_key` identifies rows across artifacts; without it rows are numbered from 0. Raises DataError.
        """
        keys_B = np.arange(raw.num_rows, dtype=np.int64) if row_key is None else row_key
        order = encoded_arrow(self.schema)
        inputs = self.encode_inputs(raw)
        arrays = dict(zip(inputs.column_names, inputs.columns, strict=True))
        arrays |= targets(raw, self.schema)
        arrays["weight"] = sample_weight(raw, self.schema)
        arrays["group"] = group(raw, self.schema, keys_B)
        arrays["row_key"] = pa.array(keys_B)
        for name in self.schema.keys.kept:
            arrays[kept_column(name)] = column_of(raw, name, self.schema, "keys")
        return pa.Table.from_arrays([arrays[name] for name in order.names], schema=order)

    def save(self, root: Path) -> Published:
        """Publish the encoder under a root directory."""
        metadata = {"digest": self.digest, "data_digest": self.schema.data_digest}
        with publication(root, kind="encoder", metadata=metadata) as draft:
            self.write(draft.path)
        assert draft.published is not None
        return draft.published

    def write(self, directory: Path) -> None:
        """The encoder's files, for artifacts that hold a copy of it."""
        tree = self._tree() | {
            "lineage": self.lineage,
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
        }
        tree["schema"] = json.loads(self.schema.to_json())
        (directory / "vocabulary").mkdir(parents=True)
        (directory / "encoder.json").write_text(
            json.dumps(tree, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        for name, vocabulary in self.vocabularies.items():
            write_vocabulary(directory / "vocabulary" / f"{name}.arrow", vocabulary)

    def _tree(self) -> dict[str, Any]:
        return {
            "data_digest": self.schema.data_digest,
            "moments": {
                name: {"mean": item.mean, "std": item.std} for name, item in self.moments.items()
            },
            "edges": {name: edges.tolist() for name, edges in self.edges.items()},
            "vocabularies": {
                name: vocabulary.digest for name, vocabulary in self.vocabularies.items()
            },
        }

    def _rows(self, table_name: str, values_N: pa.Array) -> NDArray[Any]:
        """Table rows of raw ids, or of an unbounded table their hashes (uint64); null is the missing row."""
        present = (
            values_N.is_valid().to_numpy(zero_copy_only=False) if values_N.null_count else None
        )
        known = values_N if present is None else values_N.drop_null()
        if pa.types.is_boolean(known.type):
            known = known.cast(pa.int64())
        table = self.schema.tables[table_name]
        vocabulary = self.vocabularies.get(table_name)
        rows: NDArray[Any]
        if table_name in self.schema.unbounded:
            rows = _hashes(known, table)
        else:
            rows = _hashed_rows(known, table) if vocabulary is None else vocabulary.rows(known)
        if present is None:
            return rows
        rows_N = np.full(len(values_N), MISSING_ROW, rows.dtype)
        rows_N[present] = rows
        return rows_N

    def _feature(self, name: str, item: Feature, source: Source) -> dict[str, pa.Array]:
        """The encoded columns of one feature."""
        once = source.once(item.columns)
        if once is not None:
            values, index_B = once
            encoded = self._feature(name, item, values)
            return {column: array.take(pa.array(index_B)) for column, array in encoded.items()}
        if isinstance(item, IdFeature):
            return {name: pa.array(self._rows(item.table, derived.ids(item, source)))}
        if isinstance(item, BagFeature):
            bag = derived.bag(item, source)
            arrays = {name: _list_array(bag.offsets, self._rows(item.table, bag.ids_N))}
            if bag.weights_N is not None:
                arrays[weights_column(name)] = _list_array(bag.offsets, bag.weights_N)
            return arrays
        if isinstance(item, DatePartFeature):
            rows = pc.add(derived.date_part(item, source), RESERVED_ROWS)
            return {name: rows.fill_null(MISSING_ROW)}
        if isinstance(item, BucketFeature):
            return {name: pa.array(self._bucket_rows(name, derived.number(item, source)))}
        where = f"{source.where}, column {' and '.join(map(repr, item.columns))}"
        if isinstance(item, VectorFeature):
            numbers_N = float32_of(derived.vector(item, source).ravel(), where)
            numbers = pa.array(numbers_N)
            if item.dim > 1:
                numbers = pa.FixedSizeListArray.from_arrays(numbers, item.dim)
            return {dense_column(name): numbers}
        dense_B = self._dense(name, item, derived.number(item, source))
        return {dense_column(name): pa.array(float32_of(dense_B, where))}

    def _bucket_rows(self, name: str, number_B: NDArray[np.float64]) -> NDArray[np.int64]:
        rows_B = np.searchsorted(self.edges[name], number_B, side="right") + RESERVED_ROWS
        return np.where(np.isnan(number_B), MISSING_ROW, rows_B)

    def _dense(
        self, name: str, item: NumberFeature, number_B: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        moments = self.moments.get(name, Moments(0.0, 1.0))
        with np.errstate(over="ignore"):  # what overflows is clipped, or refused as a float32
            dense_B = (transformed(item, number_B) - moments.mean) / moments.std
        if item.clip is not None:
            dense_B = np.clip(dense_B, -item.clip, item.clip)
        return np.where(np.isnan(dense_B), 0.0, dense_B)

    def _tokens(self, raw: pa.Table, sequence_name: str) -> dict[str, pa.Array]:
        sequence = self.schema.sequences[sequence_name]
        arrays: dict[str, pa.Array] = {}
        first: tuple[str, NDArray[np.int64]] | None = None
        for token, spec in sequence.tokens.items():
            where = f"sequence {sequence_name!r}"
            offsets, flat = flat_list(column_of(raw, spec.column, self.schema, where))
            first = first or (spec.column, np.diff(offsets))
            _require_aligned(where, first, (spec.column, np.diff(offsets)))
            offsets, flat = newest(offsets, flat, sequence.max_length)
            if isinstance(spec, IdToken):
                rows_N = self._rows(spec.table, flat)
            else:
                rows_N = self._gap_rows(raw, offsets, flat, spec.buckets)
            arrays[f"{sequence_name}.{token}"] = _list_array(offsets, rows_N)
        return arrays

    def _gap_rows(
        self, raw: pa.Table, offsets: NDArray[np.int64], events_N: pa.Array, buckets: int
    ) -> NDArray[np.int64]:
        """Row 2 + floor(log2(1 + seconds since the event)); an event after the impression counts as 0 seconds ago."""
        time_column = self.schema.keys.time
        assert time_column is not None
        shown = column_of(raw, time_column, self.schema, "keys.time")
        shown_B = shown.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        shown_N = np.repeat(shown_B, np.diff(offsets))
        seconds_N = (
            np.maximum(
                shown_N - events_N.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), 0
            )
            / 1e6
        )
        rows_N = np.minimum(np.log2(1.0 + seconds_N).astype(np.int64), buckets - 1) + RESERVED_ROWS
        known_N = events_N.is_valid().to_numpy(zero_copy_only=False)
        known_N &= np.repeat(shown.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets))
        return np.where(known_N, rows_N, MISSING_ROW)


def transformed(item: NumberFeature, number_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """A number feature's values after its transform; log1p is signed: sign(x) * log(1 + |x|)."""
    return np.sign(number_B) * np.log1p(np.abs(number_B)) if item.transform == "log1p" else number_B


def load_encoder(path: Path) -> Encoder:
    """The encoder published under a path. Raises ArtifactError when it is missing, damaged or of another format."""
    return read_encoder(resolve(path, kind="encoder", verify="digests").path)


def read_encoder(directory: Path) -> Encoder:
    """The encoder whose files a directory holds, its digest checked."""
    file = directory / "encoder.json"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{file}: format {tree['format_version']}, this release reads {FORMAT_VERSION}; fit again"
            )
        schema = parse_schema(json.dumps(tree["schema"]), where=str(file))
        vocabularies = {
            name: read_vocabulary(directory / "vocabulary" / f"{name}.arrow")
            for name in tree["vocabularies"]
        }
        encoder = Encoder(
            schema,
            {name: Moments(**item) for name, item in tree["moments"].items()},
            {name: np.asarray(edges, np.float64) for name, edges in tree["edges"].items()},
            vocabularies,
            tuple(tree["lineage"]),
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ArtifactError(f"{file}: not a readable encoder ({error}); fit it again") from error
    if encoder.digest != tree["digest"]:
        raise ArtifactError(
            f"{file}: its content does not match its digest; the copy is damaged, fit it again"
        )
    return encoder


def _hashed_rows(values_N: pa.Array, table: Table) -> NDArray[np.int64]:
    hashes_N = hash_ids(values_N, table.seed)
    return (hashes_N % np.uint64(table.rows - RESERVED_ROWS)).astype(np.int64) + RESERVED_ROWS


def _hashes(values_N: pa.Array, table: Table) -> NDArray[np.uint64]:
    """Hashes of ids; 0 stands for a missing one, so an id of hash 0, if there ever is one, takes 1."""
    return np.maximum(hash_ids(values_N, table.seed), np.uint64(1))


def _list_array(offsets: NDArray[np.int64], values_N: NDArray[Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values_N))


def _require_aligned(
    where: str, first: tuple[str, NDArray[np.int64]], other: tuple[str, NDArray[np.int64]]
) -> None:
    differ = np.flatnonzero(first[1] != other[1])
    if len(differ):
        row = differ[0]
        raise DataError(
            f"{where}: column {first[0]!r} has {first[1][row]} events and "
            f"column {other[0]!r} {other[1][row]}; the lists of a sequence must be aligned",
            row=int(row),
        )
