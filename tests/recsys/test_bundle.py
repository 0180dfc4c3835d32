"""A bundle loads without torch, scores as the model does, and refuses any damage."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from recsys.bundle import KIND, Bundle, Parity, load_bundle, map_table
from recsys.calibrate import Calibrators, read_calibrators, task_scores
from recsys.errors import ArtifactError, ConfigError
from recsys.layout import entry_names
from recsys.publish import MANIFEST, Published, publication, resolve
from recsys.request_rows import RequestColumns, RequestEncoder
from recsys.utility import identity_utility, read_utility
from tests.bundles import columnless_user_bundle, full_bundle, full_encoder, full_rows, full_schema

ALLOWED_SUFFIXES = {".json", ".arrow", ".safetensors", ".onnx"}


def _copy(published: Published, directory: Path) -> None:
    ignore = shutil.ignore_patterns(MANIFEST)
    shutil.copytree(published.path, directory, dirs_exist_ok=True, ignore=ignore)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(full_bundle())


def test_a_bundle_loads_and_scores_without_torch_or_model_code() -> None:
    program = f"""
import sys
from pathlib import Path
from serving.ranker import Ranker
ranker = Ranker.load(Path({str(full_bundle())!r}))
ranker.rank({{"candidates": {{"ids": [1], "features": {{"price": [2.0]}}}}}})
heavy = {{"torch", "torchrec", "fbgemm_gpu", "ray", "recsys.models", "recsys.training", "recsys.batch", "onnx"}}
print(sorted(heavy & sys.modules.keys()))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_bundle_holds_only_formats_that_cannot_carry_code() -> None:
    files = [file for file in full_bundle().rglob("*") if file.is_file() and file.name != "CURRENT"]
    assert {file.suffix for file in files} == ALLOWED_SUFFIXES
    # A pickle begins with its protocol, a zip archive of pickles with PK.
    assert not [
        file
        for file in files
        if file.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    ]


def test_every_file_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    published = resolve(full_bundle(), kind=KIND)
    names = [*published.files, "MANIFEST.json"]
    assert len(names) > 12
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(published.path, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=Path(name).name.replace(".", r"\.")):
            load_bundle(copy)
        shutil.rmtree(copy)


def test_a_table_of_another_training_is_refused_by_the_golden_requests(tmp_path: Path) -> None:
    published = resolve(full_bundle(), kind=KIND)
    with publication(tmp_path, kind=KIND, metadata=published.metadata) as draft:
        _copy(published, draft.path)
        file = draft.path / "tables" / "tag.safetensors"
        rows = safetensors.numpy.load_file(file)["weight"]
        safetensors.numpy.save_file({"weight": np.roll(rows, 1, axis=0)}, file)
    with pytest.raises(ArtifactError, match="golden requests score otherwise"):
        load_bundle(tmp_path)


def test_parts_of_two_exports_are_refused(tmp_path: Path) -> None:
    published = resolve(full_bundle(), kind=KIND)
    other = resolve(columnless_user_bundle(), kind=KIND)
    for part in ("encoder", "program"):
        with publication(tmp_path / part, kind=KIND, metadata=published.metadata) as draft:
            _copy(published, draft.path)
            shutil.rmtree(draft.path / part)
            shutil.copytree(other.path / part, draft.path / part)
        with pytest.raises(ArtifactError, match=r"two exports|another schema"):
            load_bundle(tmp_path / part)


def test_another_format_and_a_missing_bundle_are_refused(tmp_path: Path) -> None:
    published = resolve(full_bundle(), kind=KIND)
    metadata = dict(published.metadata) | {"format_version": 99}
    with publication(tmp_path / "new", kind=KIND, metadata=metadata) as draft:
        _copy(published, draft.path)
    with pytest.raises(ArtifactError, match="bundle format 99"):
        load_bundle(tmp_path / "new")
    with pytest.raises(ArtifactError, match="no such bundle"):
        load_bundle(tmp_path / "nowhere")


def test_tables_are_mapped_read_only(bundle: Bundle) -> None:
    assert not bundle.tables["item"].flags.writeable
    assert not bundle.tables["item"].flags.owndata


def test_a_table_of_another_shape_or_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "item.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros((3, 4), np.float32)}, file)
    assert map_table(file, (3, 4)).shape == (3, 4)
    with pytest.raises(ArtifactError, match=r"\[3, 4\], the schema says F32 \[4, 3\]"):
        map_table(file, (4, 3))
    file.write_bytes(b"not a table")
    with pytest.raises(ArtifactError, match="not a readable table"):
        map_table(file, (3, 4))


def test_a_row_alone_scores_as_among_others_and_for_any_order(bundle: Bundle) -> None:
    golden = bundle.golden
    together_NT = bundle.logits(golden.user, golden.candidates, user_of_row_N=golden.user_of_row_N)
    order_N = np.random.default_rng(0).permutation(len(together_NT))
    shuffled_NT = bundle.logits(
        golden.user,
        golden.candidates.take(pa.array(order_N)),
        user_of_row_N=golden.user_of_row_N[order_N],
    )
    np.testing.assert_allclose(shuffled_NT, together_NT[order_N], rtol=1e-5, atol=1e-6)
    for row in range(0, len(together_NT), 7):
        user = golden.user.slice(int(golden.user_of_row_N[row]), 1)
        alone_NT = bundle.logits(
            user, golden.candidates.slice(row, 1), user_of_row_N=np.zeros(1, np.int64)
        )
        np.testing.assert_allclose(alone_NT[0], together_NT[row], rtol=1e-5, atol=1e-6)


def test_a_fixed_feature_is_constant_whatever_the_rows_hold(bundle: Bundle) -> None:
    columns = RequestColumns.of(full_schema())
    assert "position" not in (*columns.user, *columns.context, *columns.candidate)
    rows = full_rows(20, seed=5)
    encoded = RequestEncoder.of(full_encoder()).encode(rows, rows=20, side="candidate")
    at_one = full_encoder().encode_inputs(
        rows.set_column(
            rows.column_names.index("position"), "position", pa.array([1] * 20, pa.int32())
        )
    )
    assert encoded.column("dense:position").equals(at_one.column("dense:position"))


def test_parity_sees_a_difference_and_a_nan() -> None:
    schema = full_schema()
    logits = np.zeros((4, 3), np.float32)
    assert Parity.between(logits, logits, schema).holds
    off = logits.copy()
    off[2, 1] = 1e-4
    assert not Parity.between(logits, off, schema).holds
    off[2, 1] = np.nan
    assert not Parity.between(logits, off, schema).holds
    # A regression value of a thousand may differ in its seventh digit.
    large = logits.copy()
    large[0, 2] = 1000.0
    near = large.copy()
    near[0, 2] = 1000.001
    assert Parity.between(large, near, schema).holds


def test_a_funnel_step_is_its_conditional_times_its_parent_and_never_above_it() -> None:
    schema = full_schema()
    random = np.random.default_rng(0)
    logits = random.normal(scale=4, size=(500, 3)).astype(np.float32)
    logits[0] = [-1000.0, -1000.0, 0.0]
    logits[1] = [1000.0, 1000.0, 0.0]
    scores = task_scores(logits, schema, calibrators=Calibrators.identity(schema))
    assert entry_names(schema) == ("click", "purchase", "purchase|click", "watch")
    for found in (scores.raw, scores.p):
        product = found["click"] * found["purchase|click"]
        np.testing.assert_allclose(product, found["purchase"], rtol=1e-12)
        assert (found["purchase"] <= found["click"]).all()
        assert all(np.isfinite(values).all() for values in found.values())
    np.testing.assert_array_equal(scores.value["watch"], logits[:, 2])
    click = 1 / (1 + np.exp(-logits[:, 0].astype(float).clip(-700)))
    np.testing.assert_allclose(scores["click"], click, atol=1e-15)


def test_calibrators_and_utility_round_trip_and_refuse_what_they_do_not_know(
    tmp_path: Path,
) -> None:
    schema, file = full_schema(), tmp_path / "file.json"
    Calibrators.identity(schema).write(file)
    assert read_calibrators(file, schema) == Calibrators.identity(schema)
    for change, words in (
        ({"format_version": 2}, "format 2"),
        ({"tasks": {"click": {"kind": "identity"}}}, "the binary tasks are"),
        ({"tasks": {name: {"kind": "isotonic"} for name in ("click", "purchase")}}, "isotonic"),
    ):
        Calibrators.identity(schema).write(file)
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(ArtifactError, match=words):
            read_calibrators(file, schema)
    utility = identity_utility(schema, "purchase|click")
    utility.write(file)
    assert read_utility(file, schema) == utility
    with pytest.raises(ConfigError, match="did you mean 'click'"):
        identity_utility(schema, "clik")
    file.write_text(
        '{"format_version": 1, "name": "default", "version": 1, "formula": "__import__"}'
    )
    with pytest.raises(ArtifactError, match="is no entry"):
        read_utility(file, schema)
