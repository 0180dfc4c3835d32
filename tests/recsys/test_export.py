"""An export proves that the bundle scores as the model does, or publishes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from recsys.bundle import Parity, load_bundle, signature
from recsys.collate import collate
from recsys.errors import ArtifactError, ConfigError
from recsys.experiment import load_experiment
from recsys.export import eager_logits, export, write_bundle
from recsys.models import NamedProgram, build_model
from recsys.publish import resolve
from recsys.run import load_run
from recsys.training.trainer import train
from tests.bundles import MODEL, full_bundle, full_encoder, full_model, full_schema
from tests.recsys.small_data import raw_rows, small_data


@pytest.mark.parametrize(
    ("users", "candidates", "events"), [(1, 1, 1), (1, 5, 3), (3, 7, 50), (8, 8, 2)]
)
def test_the_program_equals_the_model_for_any_number_of_users_candidates_and_events(
    users: int, candidates: int, events: int
) -> None:
    bundle, model = load_bundle(full_bundle()), full_model()
    inputs = signature(bundle.schema)["inputs"]
    generator = torch.Generator().manual_seed(users)
    sizes = {"U": users, "N": candidates, "L": events}
    feeds = {name: _random_input(entry, sizes, generator) for name, entry in inputs.items()}
    with torch.no_grad():
        expected = NamedProgram(model.program).eval()(*feeds.values()).numpy()
    fed = {name: tensor.numpy() for name, tensor in feeds.items() if name in bundle.program.inputs}
    found = bundle.program.session.run(["logits_NT"], fed)[0]
    assert found.shape == (candidates, 3)
    assert Parity.between(expected, found, bundle.schema).holds


def _random_input(
    entry: dict[str, Any], sizes: dict[str, int], generator: torch.Generator
) -> Tensor:
    shape = [sizes.get(axis, axis) for axis in entry["axes"]]
    if entry["dtype"] == "int64":
        return torch.randint(sizes["U"], shape, generator=generator)
    if entry["dtype"] == "bool":
        return torch.arange(sizes["L"]).expand(shape) < torch.randint(
            1, sizes["L"] + 1, (sizes["U"], 1), generator=generator
        )
    return torch.randn(shape, generator=generator)


def test_the_manifest_says_what_the_bundle_is_of() -> None:
    published = resolve(full_bundle(), kind="bundle", verify="digests")
    schema = full_schema()
    assert published.metadata["name"] == "feed"
    assert published.metadata["tasks"] == ["click", "purchase", "watch"]
    assert published.metadata["schema_digest"] == schema.model_digest
    assert published.metadata["encoder_digest"] == full_encoder().digest


def test_the_reference_describes_labels_and_scores_of_the_validation_rows() -> None:
    bundle = load_bundle(full_bundle())
    assert bundle.reference["rows"] == 300
    for task in bundle.schema.task_names:
        quantiles = bundle.reference["tasks"][task]["logit_quantiles"]
        assert len(quantiles) == 21
        assert quantiles == sorted(quantiles)
    assert 0.1 < bundle.reference["tasks"]["click"]["label_mean"] < 0.5


def test_the_program_names_no_path_of_this_machine() -> None:
    content = (resolve(full_bundle(), kind="bundle").path / "program" / "program.onnx").read_bytes()
    for path in (str(Path.cwd()), "site-packages", ".py"):
        assert path.encode() not in content


class _OtherwiseWhenExported(nn.Module):
    """A planted defect: a branch that only the exporter takes."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x_NTH: Tensor) -> Tensor:
        logits_NT: Tensor = self.heads(x_NTH)
        return logits_NT + 1e-4 if torch.compiler.is_exporting() else logits_NT


def test_a_program_that_scores_otherwise_is_not_published(tmp_path: Path) -> None:
    model = build_model(full_schema(), MODEL, seed=1)
    model.program.heads = _OtherwiseWhenExported(model.program.heads)  # type: ignore[assignment]
    with pytest.raises(ArtifactError, match="nothing was published"):
        write_bundle(model, full_encoder(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_name_is_refused(tmp_path: Path) -> None:
    model = full_model()
    with pytest.raises(ConfigError, match="lower-case"):
        write_bundle(model, full_encoder(), tmp_path, name="../evil")
    assert list(tmp_path.iterdir()) == []


def test_the_runtime_runs_the_program_on_one_thread() -> None:
    options: onnxruntime.SessionOptions = load_bundle(
        full_bundle()
    ).program.session.get_session_options()
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1


EXPERIMENT = """
[data]
train = ["2026-01-01"]
validation = "2026-01-03"
batch_size = 64
[model]
embeddings = { backend = "plain" }
mixing = { kind = "shared_bottom", hidden = [4] }
heads = { kind = "towers", hidden = [4] }
[train]
steps = 4
threads = 1
"""


def test_a_run_exports_its_best_checkpoint_with_parity_on_validation_rows(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    (tmp_path / "experiment.toml").write_text(EXPERIMENT, encoding="utf-8")
    train(load_experiment(tmp_path / "experiment.toml"), tmp_path / "run")
    rows = raw_rows(10, seed=9)
    published = export(tmp_path / "run", tmp_path / "bundle", name="small", rows=rows)
    bundle, trained = load_bundle(tmp_path / "bundle"), load_run(tmp_path / "run")
    assert published.metadata["checkpoint"] == trained.checkpoint.version
    assert published.metadata["step"] == trained.step
    assert (bundle.name, bundle.version) == ("small", published.version)
    assert bundle.reference["rows"] > 0
    encoded = data.encoder.encode(rows)
    expected = eager_logits(trained.model, bundle.schema, collate(encoded, bundle.schema))
    columns = bundle.request_columns
    found = bundle.logits(
        rows.select([*columns.user, *columns.context]),
        rows.select(columns.candidate),
        user_of_row_N=np.arange(10),
    )
    assert Parity.between(expected, found, bundle.schema).holds
    # Given rows are golden requests too, before those that were made up.
    assert bundle.golden.user.column("user_id")[:10].to_pylist() == rows["user_id"].to_pylist()
    with pytest.raises(ArtifactError, match="holds no run"):
        export(tmp_path / "nowhere", tmp_path / "bundle")
