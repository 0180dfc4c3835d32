"""Every kind of feature from a file of raw rows to equal scores in the model, the bundle and over HTTP."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build, fit
from pipelines.contract import check
from pipelines.raw_rows import write_rows
from recsys.calibrate import Calibrators, task_scores
from recsys.collate import collate
from recsys.evaluation.evaluate import evaluate
from recsys.experiment import load_experiment
from recsys.export import eager_logits, export
from recsys.raw import read_rows
from recsys.run import load_run
from recsys.training.trainer import train
from serving.client import score_rows_over_http
from serving.ranker import Ranker
from tests import kinds
from tests.serving.requests import running

PIPELINE = """
schema_file = "schema.toml"
fit_on = ["train"]
[source]
path = "log.parquet"
format = "parquet"
[split]
by = "hash"
parts = { train = 0.7, validation = 0.2, test = 0.1 }
"""
EXPERIMENT = """
[data]
directory = "data"
train = ["train"]
validation = "validation"
test = ["test"]
batch_size = 64
window_rows = 100
[model]
embeddings = { backend = "BACKEND" }
mixing = { kind = "mmoe", experts = 2, expert_hidden = [8] }
heads = { kind = "towers", hidden = [4] }
[optimizer]
embedding_lr = 0.1
[train]
steps = 12
threads = 1
"""


@pytest.mark.parametrize("backend", ["plain", pytest.param("torchrec", marks=pytest.mark.slow)])
def test_scores_are_the_models_from_a_file_to_an_http_answer(tmp_path: Path, backend: str) -> None:
    raw = kinds.rows(600, seed=3)
    pq.write_table(raw, tmp_path / "log.parquet")
    (tmp_path / "schema.toml").write_text(kinds.toml(), encoding="utf-8")
    (tmp_path / "experiment.toml").write_text(EXPERIMENT.replace("BACKEND", backend))
    pipeline = tmp_path / "pipeline.toml"
    pipeline.write_text(PIPELINE)
    assert check(pipeline).problems == []
    encoder = fit(pipeline, tmp_path / "encoder")
    build(pipeline, tmp_path / "data", encoder=tmp_path / "encoder")
    train(load_experiment(tmp_path / "experiment.toml"), tmp_path / "run")
    assert evaluate(tmp_path / "run", tmp_path / "report").render()
    write_rows(pipeline, tmp_path / "rows.parquet", days=["test"])
    rows = read_rows(tmp_path / "rows.parquet")
    export(tmp_path / "run", tmp_path / "bundle", rows=rows.slice(0, 20))
    ranker = Ranker.load(tmp_path / "bundle")
    here = ranker.score_rows(rows)
    with running(ranker) as url:
        remote = score_rows_over_http(rows, url)
    expected = task_scores(
        eager_logits(
            load_run(tmp_path / "run").model,
            encoder.schema,
            collate(encoder.encode_inputs(rows), encoder.schema),
        ),
        encoder.schema,
        calibrators=Calibrators.identity(encoder.schema),
    )
    for entry, values in (dict(expected.p) | dict(expected.value)).items():
        name = f"{'value' if entry in expected.value else 'p'}:{entry}"
        assert np.ptp(values) > 1e-3
        np.testing.assert_allclose(here.column(name), values, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(remote.column(name), values, rtol=1e-5, atol=1e-5)
    assert pa.types.is_map(rows.schema.field("item_seconds").type)
