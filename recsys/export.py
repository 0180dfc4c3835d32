"""A checkpoint to a bundle, with the proof that both score alike.

The program is written as ONNX with U, N and L dynamic; tables go beside it. Before anything is published the bundle
scores golden requests and validation rows in its own runtime, and must agree with the trained model to 1e-5. Tables
go from file to file by blocks, and both sides of the proof read single rows of theirs: none is ever in memory whole.

Axes: **U** users, **N** candidates, **B** rows, **T** tasks, **L** events of a sequence, **K** width of one event.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.batch import Batch, check_ids
from recsys.bundle import FORMAT_VERSION, KIND, PARITY, Bundle, Parity, assemble, signature
from recsys.calibrate import Calibrators
from recsys.collate import Packed, collate
from recsys.days import open_days
from recsys.encode import Encoder
from recsys.errors import ArtifactError, ConfigError
from recsys.feed import in_order
from recsys.golden import Golden
from recsys.idmap import ID_MAPS, table_rows, write_id_maps
from recsys.layout import encoded_arrow, label_column, observed_column
from recsys.made_up import made_up_rows
from recsys.models import NamedProgram, RankingModel
from recsys.models.experts import fold_norms
from recsys.publish import Published, publication
from recsys.raw import column_of
from recsys.request_rows import RequestColumns, RequestEncoder
from recsys.run import BEST, map_run
from recsys.schema import Schema
from recsys.tensor_files import Block, row_blocks, write_blocks
from recsys.utility import identity_utility

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_GOLDEN_ROWS = 64
_GOLDEN_SEED = 20_260_921
_VALIDATION_ROWS = 8192
_QUANTILES = 21
_EXPORTER_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def export(
    run: Path,
    bundle_root: Path,
    *,
    checkpoint: str = BEST,
    name: str = "default",
    rows: pa.Table | None = None,
) -> Published:
    """Publish the bundle of a run's checkpoint under a root directory.

    `rows` are raw rows to carry as golden requests, beside the made-up ones. Raises ArtifactError for a damaged run or
    day and when the bundle's scores differ from the model's.
    """
    trained = map_run(run, checkpoint=checkpoint)
    data = trained.experiment.data
    days = open_days(
        data.directory,
        data.validation,
        encoder=trained.encoder,
        labels_digest=trained.labels_digest,
    ).with_id_maps(trained.id_maps)
    with closing(in_order(days, batch_size=_VALIDATION_ROWS)) as batches:
        validation = next(batches).encoded
    return write_bundle(
        trained.model,
        trained.encoder,
        bundle_root,
        name=name,
        rows=rows,
        validation=validation,
        lineage={"checkpoint": trained.checkpoint.version, "step": trained.step},
    )


def write_bundle(
    model: RankingModel,
    encoder: Encoder,
    root: Path,
    *,
    name: str = "default",
    rows: pa.Table | None = None,
    validation: pa.Table | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Published:
    """Publish a model with its encoder as a bundle.

    `rows` are raw rows to carry as golden requests; `validation` are encoded rows that parity is proven on too and that
    `reference.json` describes; `lineage` is added to the manifest's metadata. Raises ConfigError for a name that is no
    model name, and ArtifactError when the bundle's scores differ from the model's.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"model name {name!r}: use lower-case letters, digits, '-' and '_', 64 at most"
        )
    schema = encoder.schema
    was_training = model.training
    model.eval()
    try:
        with publication(
            root, kind=KIND, metadata=_metadata(encoder, name) | dict(lineage or {})
        ) as draft:
            _write_tables(model, draft.path / "tables")
            encoder.write(draft.path / "encoder")
            id_maps = model.embeddings.id_maps
            write_id_maps(
                draft.path / ID_MAPS, {name: item.admitted for name, item in id_maps.items()}
            )
            _write_program(model, schema, draft.path / "program")
            Calibrators.identity(schema).write(draft.path / "calibrators.json")
            identity_utility(schema).write(draft.path / "utility.json")
            _write_reference(model, schema, validation, draft.path / "reference.json")
            _golden(model, encoder, rows).write(draft.path / "golden", schema.task_names)
            _prove_parity(
                model, assemble(Published(draft.path, KIND, draft.metadata, {}, "")), validation
            )
    finally:
        model.train(was_training)
    assert draft.published is not None
    logger.info("export path=%s name=%s", draft.published.path, name)
    return draft.published


def _metadata(encoder: Encoder, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "format_version": FORMAT_VERSION,
        "schema_digest": encoder.schema.model_digest,
        "data_digest": encoder.schema.data_digest,
        "encoder_digest": encoder.digest,
        "tasks": list(encoder.schema.task_names),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
    }


def _write_tables(model: RankingModel, directory: Path) -> None:
    """Write each table into a file of its own, by blocks of rows: memory may hold no table whole."""
    directory.mkdir()
    for table, weight in model.embeddings.readable_weights().items():
        rows, width = weight.shape
        blocks = (
            Block("weight", (block.start, 0), weight[block])
            for block in row_blocks(slice(0, rows), width)
        )
        write_blocks(directory / f"{table}.safetensors", {"weight": (rows, width)}, blocks)


def _write_program(model: RankingModel, schema: Schema, directory: Path) -> None:
    directory.mkdir()
    described = signature(schema)
    (directory / "program.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    onnx.save_model(_onnx_program(model, described["inputs"]), directory / "program.onnx")


def _onnx_program(model: RankingModel, inputs: Mapping[str, Any]) -> onnx.ModelProto:
    """The program as ONNX, its dynamic axes named as in the signature."""
    program = deepcopy(model.program)
    fold_norms(program)
    named = NamedProgram(program).eval()
    assert tuple(inputs) == named.names, "the signature and the program name their inputs alike"
    # Sizes of 2 and more: an exporter may take a size of 1 for a constant.
    sizes = {"U": 2, "N": 3, "L": 4}
    example = tuple(_example(entry, sizes).to(_device(model)) for entry in inputs.values())
    axes = dict.fromkeys(sizes, torch.export.Dim.DYNAMIC)
    dynamic = tuple(
        {index: axes[axis] for index, axis in enumerate(entry["axes"]) if axis in axes}
        for entry in inputs.values()
    )
    with quiet_exporter(), torch.no_grad():
        exported = torch.onnx.export(
            named,
            example,
            dynamo=True,
            input_names=list(inputs),
            output_names=["logits_NT"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert exported is not None
    return _without_traces(exported.model_proto)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hides what the exporter says about its own insides: deprecated calls, absent torchvision, merged constants."""
    loggers = [logging.getLogger(name) for name in _EXPORTER_LOGGERS]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            own = r"(torch|onnxscript|copyreg)\b.*"
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=own)
            warnings.filterwarnings("ignore", category=FutureWarning, module=own)
            yield
    finally:
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)


def _example(entry: Mapping[str, Any], sizes: Mapping[str, int]) -> Tensor:
    shape = [sizes.get(axis, axis) for axis in entry["axes"]]
    if entry["dtype"] == "int64":
        return torch.arange(shape[0]) % sizes["U"]
    return torch.ones(shape, dtype=torch.bool) if entry["dtype"] == "bool" else torch.rand(shape)


def _without_traces(program: onnx.ModelProto) -> onnx.ModelProto:
    """The program without the exporter's notes, which hold this machine's paths."""
    for node in program.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*program.graph.input, *program.graph.output, *program.graph.value_info):
        value.ClearField("metadata_props")
    program.graph.ClearField("metadata_props")
    program.graph.ClearField("doc_string")
    return program


def _golden(model: RankingModel, encoder: Encoder, rows: pa.Table | None) -> Golden:
    """Raw requests of real and made-up rows, each user with several candidates, and the model's own logits."""
    schema = encoder.schema
    raw = made_up_rows(encoder, _GOLDEN_ROWS, seed=_GOLDEN_SEED)
    if rows is not None:
        given = [column_of(rows, name, schema, "export --rows") for name in raw.column_names]
        raw = pa.concat_tables([pa.table(given, schema=raw.schema), raw]).combine_chunks()
    columns = RequestColumns.of(schema)
    user, candidates = raw.select([*columns.user, *columns.context]), raw.select(columns.candidate)
    # Row i and its neighbour i + 1 meet the users i and i - 1: no candidate is scored for its own row's user alone.
    row_N = np.arange(raw.num_rows, dtype=np.int64)
    user_of_row_N = np.where(row_N % 2 == 1, row_N - 1, row_N)
    request_encoder = RequestEncoder.of(encoder)
    user_inputs = request_encoder.encode(user, rows=raw.num_rows, side="user").take(
        pa.array(user_of_row_N)
    )
    joined = columns.joined(candidates, user=user, user_of_row_N=user_of_row_N)
    candidate_inputs = request_encoder.encode(joined, rows=raw.num_rows, side="candidate")
    inputs = _side_by_side(schema, user_inputs, candidate_inputs)
    inputs = table_rows(inputs, schema, model.embeddings.id_maps)
    return Golden(
        user, candidates, user_of_row_N, eager_logits(model, schema, collate(inputs, schema))
    )


def _side_by_side(schema: Schema, *sides: pa.Table) -> pa.Table:
    columns = {name: side.column(name) for side in sides for name in side.column_names}
    order = encoded_arrow(schema, labels=False)
    return pa.table([columns[name] for name in order.names], schema=order)


def eager_logits(model: RankingModel, schema: Schema, packed: Packed) -> NDArray[np.float32]:
    """The trained model's logits [B, T] of packed rows."""
    check_ids(packed, schema)
    rows = len(packed.dense_BD)
    batch = Batch(
        values_N=torch.from_numpy(np.array(packed.values_N)),
        weights_N=None if packed.weights_N is None else torch.from_numpy(packed.weights_N),
        lengths_FB=torch.from_numpy(packed.lengths_FB),
        dense_BD=torch.from_numpy(packed.dense_BD),
        labels_BT=torch.zeros(rows, len(schema.tasks)),
        observed_BT=torch.zeros(rows, len(schema.tasks), dtype=torch.bool),
        weights_B=torch.ones(rows),
        groups_B=torch.zeros(rows, dtype=torch.int64),
        row_key_B=torch.arange(rows),
    )
    # Not inference_mode: fbgemm's CPU lookup exists as an autograd kernel alone.
    with torch.no_grad():
        logits_BT: NDArray[np.float32] = model(batch.to(_device(model))).float().cpu().numpy()
    return logits_BT


def _prove_parity(model: RankingModel, bundle: Bundle, validation: pa.Table | None) -> None:
    """Raise ArtifactError unless the bundle scores golden requests and validation rows as the model does."""
    golden, schema = bundle.golden, bundle.schema
    found_NT = bundle.logits(golden.user, golden.candidates, user_of_row_N=golden.user_of_row_N)
    _require_parity("golden requests", golden.logits_NT, found_NT, schema)
    if validation is not None:
        # One row alone too: sizes of 1 are where exported programs go wrong.
        for what, count in (("validation rows", len(validation)), ("one row alone", 1)):
            rows = validation.slice(0, count)
            expected_BT = eager_logits(model, schema, collate(rows, schema))
            _require_parity(what, expected_BT, _encoded_logits(bundle, rows), schema)


def _encoded_logits(bundle: Bundle, encoded: pa.Table) -> NDArray[np.float32]:
    """The bundle's logits of encoded rows, every row its own user."""
    user = bundle.encoded_blocks(encoded, side="user")
    candidate = bundle.encoded_blocks(encoded, side="candidate")
    return bundle.program.logits(user, candidate, np.arange(encoded.num_rows))


def _require_parity(
    what: str, expected_NT: NDArray[np.float32], found_NT: NDArray[np.float32], schema: Schema
) -> None:
    parity = Parity.between(expected_NT, found_NT, schema)
    logger.info(
        "export.parity of=%r logit=%.2e probability=%.2e", what, parity.logit, parity.probability
    )
    if not parity.holds:
        raise ArtifactError(
            f"export: on {what} the bundle's logits differ from the model's by {parity.logit:.2g} and its "
            f"probabilities by {parity.probability:.2g}, allowed {PARITY:g}; nothing was published"
        )


def _write_reference(
    model: RankingModel, schema: Schema, validation: pa.Table | None, file: Path
) -> None:
    """What served scores are compared with: per task the mean label and quantiles of the logits on validation rows."""
    tasks: dict[str, Any] = {}
    if validation is not None:
        logits_BT = eager_logits(model, schema, collate(validation, schema))
        for index, task in enumerate(schema.task_names):
            observed_B = validation.column(observed_column(task)).to_numpy()
            labels_B = validation.column(label_column(task)).to_numpy()[observed_B]
            quantiles = np.quantile(logits_BT[:, index], np.linspace(0, 1, _QUANTILES))
            tasks[task] = {
                "observed": len(labels_B),
                "label_mean": float(labels_B.mean()) if len(labels_B) else None,
                "logit_quantiles": [float(value) for value in quantiles],
            }
    rows = 0 if validation is None else validation.num_rows
    tree = {"format_version": FORMAT_VERSION, "rows": rows, "tasks": tasks}
    file.write_text(json.dumps(tree, indent=1, allow_nan=False), encoding="utf-8")


def _device(model: RankingModel) -> torch.device:
    return next(model.program.parameters()).device
