"""What serving runs: a trained model as encoder, tables and one ONNX program, with neither torch nor model code.

A bundle is a publication of kind "bundle":

```
MANIFEST.json          size and SHA-256 of every file; name, schema and encoder digests, tasks
encoder/               a copy of the encoder
tables/<table>.safetensors   float32 [rows, dim], memory-mapped read-only
id_maps/<table>.arrow  of unbounded tables (`recsys.idmap`), memory-mapped too
program/program.onnx   the tower: blocks in, logits out
program/program.json   its signature
calibrators.json  utility.json  reference.json   each with a format version
golden/                raw requests and their expected logits, replayed at load
```

Program inputs: `user_UI` [U, *], `candidate_NI` [N, *], `user_of_row_N` int64 [N] and, per sequence s, `tokens.s`
[U, L, K] and `valid.s` bool [U, L]; output `logits_NT` [N, T]. U, N and L are dynamic. There is no pickle anywhere.
"""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pyarrow as pa
from numpy.typing import NDArray

from recsys.calibrate import Calibrators, read_calibrators
from recsys.collate import collate
from recsys.encode import Encoder, read_encoder
from recsys.errors import ArtifactError
from recsys.gather import Float32Array, SideBlocks, SideLayout, gather
from recsys.golden import Golden, read_golden
from recsys.idmap import ID_MAPS, IdMap, read_id_maps, table_rows
from recsys.layout import BlockSide
from recsys.measures import probability
from recsys.publish import Published, resolve
from recsys.request_rows import RequestColumns, RequestEncoder
from recsys.schema import Schema
from recsys.utility import Utility, read_utility

KIND = "bundle"
FORMAT_VERSION = 1
PARITY = 1e-5


@dataclass(frozen=True)
class Parity:
    """Largest differences between two sets of scores. Logits count relative to their size beyond 1."""

    logit: float
    probability: float

    @classmethod
    def between(cls, expected_NT: Float32Array, found_NT: Float32Array, schema: Schema) -> "Parity":
        expected, found = expected_NT.astype(np.float64), found_NT.astype(np.float64)
        logit = np.abs(expected - found) / np.maximum(1.0, np.abs(expected))
        binary = [task.kind == "binary" for task in schema.tasks.values()]
        apart = np.abs(probability(expected) - probability(found))[:, binary]
        return cls(float(logit.max(initial=0.0)), float(apart.max(initial=0.0)))

    @property
    def holds(self) -> bool:
        # A NaN on either side is no parity: comparisons with it are false.
        return self.logit <= PARITY and self.probability <= PARITY


@dataclass(frozen=True)
class Program:
    """The ONNX program in its runtime, one thread a call. Calls from several threads run side by side."""

    session: onnxruntime.InferenceSession

    @classmethod
    def load(cls, file: Path) -> "Program":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                file.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        # The runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise ArtifactError(
                f"{file}: the runtime refuses it ({error}); export again"
            ) from error
        return cls(session)

    @cached_property
    def inputs(self) -> frozenset[str]:
        """Inputs that the graph has; one that no operation reads may have been dropped by the exporter."""
        return frozenset(item.name for item in self.session.get_inputs())

    def logits(
        self, user: SideBlocks, candidate: SideBlocks, user_of_row_N: NDArray[np.int64]
    ) -> Float32Array:
        feeds: dict[str, Any] = {
            "user_UI": user.block_BI,
            "candidate_NI": candidate.block_BI,
            "user_of_row_N": user_of_row_N,
        }
        feeds |= {f"tokens.{name}": item for name, item in user.tokens.items()}
        feeds |= {f"valid.{name}": item for name, item in user.valid.items()}
        used = {name: item for name, item in feeds.items() if name in self.inputs}
        logits_NT: Float32Array = self.session.run(["logits_NT"], used)[0]
        return logits_NT


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle. Immutable; its methods may be called from several threads."""

    published: Published
    encoder: Encoder
    tables: Mapping[str, Float32Array]
    id_maps: Mapping[str, IdMap]
    program: Program
    calibrators: Calibrators
    utility: Utility
    reference: Mapping[str, Any]
    golden: Golden

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @property
    def name(self) -> str:
        return str(self.published.metadata["name"])

    @property
    def version(self) -> str:
        return self.published.version

    @property
    def digest(self) -> str:
        return self.published.digest

    @cached_property
    def request_columns(self) -> RequestColumns:
        return RequestColumns.of(self.schema)

    def blocks(self, raw: pa.Table, *, side: BlockSide, rows: int) -> SideBlocks:
        """One side's blocks of raw request rows; candidates come with the columns they share with their user.

        Raises DataError naming column, row and what was found.
        """
        if not self._layouts[side].slots and not self._layouts[side].dense:
            return SideBlocks(np.empty((rows, 0), np.float32), {}, {})
        encoded = self._request_encoder.encode(raw, side=side, rows=rows)
        return self.encoded_blocks(table_rows(encoded, self.schema, self.id_maps), side=side)

    def encoded_blocks(self, encoded: pa.Table, *, side: BlockSide) -> SideBlocks:
        """One side's blocks of encoded rows, their ids rows of tables."""
        packed = collate(encoded, self.schema, side=side)
        return gather(packed, self._layouts[side], tables=self.tables)

    def logits(
        self, user: pa.Table, candidates: pa.Table, *, user_of_row_N: NDArray[np.int64]
    ) -> Float32Array:
        """Logits [N, T] of raw candidate rows; each belongs to the raw user row that `user_of_row_N` names.

        A side that no feature reads may be a table without columns. Raises DataError.
        """
        candidate_count = len(user_of_row_N)
        if candidate_count == 0:
            return np.empty((0, len(self.schema.tasks)), np.float32)
        # Arrow counts no rows in a table without columns.
        user_count = user.num_rows or int(user_of_row_N.max()) + 1
        user_blocks = self.blocks(user, side="user", rows=user_count)
        rows = self.request_columns.joined(candidates, user=user, user_of_row_N=user_of_row_N)
        candidate_blocks = self.blocks(rows, side="candidate", rows=candidate_count)
        return self.program.logits(user_blocks, candidate_blocks, user_of_row_N)

    @cached_property
    def _request_encoder(self) -> RequestEncoder:
        return RequestEncoder.of(self.encoder)

    @cached_property
    def _layouts(self) -> dict[BlockSide, SideLayout]:
        sides: tuple[BlockSide, BlockSide] = ("user", "candidate")
        return {side: SideLayout.of(self.schema, side) for side in sides}


def load_bundle(path: Path, *, verify: Literal["sizes", "digests"] = "digests") -> Bundle:
    """The bundle published under a path, its golden requests replayed.

    Raises ArtifactError when a file is missing or damaged, or when the scores differ from those at export.
    """
    published = resolve(path, kind=KIND, verify=verify)
    bundle = assemble(published)
    golden = bundle.golden
    found_NT = bundle.logits(golden.user, golden.candidates, user_of_row_N=golden.user_of_row_N)
    parity = Parity.between(golden.logits_NT, found_NT, bundle.schema)
    if not parity.holds:
        raise ArtifactError(
            f"{published.path}: golden requests score otherwise here (logits differ by {parity.logit:.2g}, "
            f"probabilities by {parity.probability:.2g}, allowed {PARITY:g}); export again on this kind of machine"
        )
    return bundle


def assemble(published: Published) -> Bundle:
    """The bundle of a version's files; golden requests are read, not replayed. Raises ArtifactError."""
    path = published.path
    if published.metadata.get("format_version") != FORMAT_VERSION:
        found = published.metadata.get("format_version")
        raise ArtifactError(
            f"{path}: bundle format {found}, this release reads {FORMAT_VERSION}; export again"
        )
    encoder = read_encoder(path / "encoder")
    schema = encoder.schema
    _require(published, "schema_digest", schema.model_digest)
    _require(published, "encoder_digest", encoder.digest)
    _check_signature(path / "program" / "program.json", schema)
    return Bundle(
        published,
        encoder,
        {
            name: map_table(path / "tables" / f"{name}.safetensors", (table.rows, table.dim))
            for name, table in schema.all_tables.items()
        },
        read_id_maps(path / ID_MAPS, schema),
        Program.load(path / "program" / "program.onnx"),
        read_calibrators(path / "calibrators.json", schema),
        read_utility(path / "utility.json", schema),
        _read_json(path / "reference.json"),
        read_golden(path / "golden", schema.task_names),
    )


def signature(schema: Schema) -> dict[str, Any]:
    """What `program.json` says: inputs with dtype and axes (a letter is dynamic), the output, and its tasks."""
    user, candidate = SideLayout.of(schema, "user"), SideLayout.of(schema, "candidate")
    inputs: dict[str, Any] = {
        "user_UI": {"dtype": "float32", "axes": ["U", user.width]},
        "candidate_NI": {"dtype": "float32", "axes": ["N", candidate.width]},
        "user_of_row_N": {"dtype": "int64", "axes": ["N"]},
    }
    for name in user.sequences:
        width = sum(slot.dim for slot in user.token_slots(name))
        inputs[f"tokens.{name}"] = {"dtype": "float32", "axes": ["U", "L", width]}
        inputs[f"valid.{name}"] = {"dtype": "bool", "axes": ["U", "L"]}
    output = {"logits_NT": {"dtype": "float32", "axes": ["N", len(schema.tasks)]}}
    tree = {"inputs": inputs, "outputs": output, "tasks": list(schema.task_names)}
    return {"format_version": FORMAT_VERSION, **tree}


def map_table(file: Path, shape: tuple[int, int]) -> Float32Array:
    """The float32 tensor `weight` of a safetensors file, mapped read-only: pages are shared by every process.

    Raises ArtifactError when the file is not one, or of another shape.
    """
    try:
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        entry = json.loads(mapped[8:start])["weight"]
        found, dtype, (begin, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
        if (found, dtype) != (shape, "F32") or end - begin != 4 * shape[0] * shape[1]:
            raise ArtifactError(
                f"{file}: {dtype} {list(found)}, the schema says F32 {list(shape)}; export again"
            )
        flat = np.frombuffer(mapped, np.float32, count=shape[0] * shape[1], offset=start + begin)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not a readable table ({error}); export again") from error
    return flat.reshape(shape)


def _require(published: Published, key: str, expected: str) -> None:
    found = published.metadata.get(key)
    if found != expected:
        raise ArtifactError(
            f"{published.path}: its manifest says {key} {found}, its encoder {expected}; the parts are of two exports"
        )


def _check_signature(file: Path, schema: Schema) -> None:
    if _read_json(file) != signature(schema):
        raise ArtifactError(f"{file}: the program was made for another schema; export again")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); export again") from error
    return tree
