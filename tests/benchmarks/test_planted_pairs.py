"""What a model found of planted pairs is measured rightly: by hand-made weights, and on a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import planted_behaviours as planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_behaviours import BEHAVIOURS, INFORMATIVE, TASKS
from planted_pairs import auc_lost, conditioning, found_pairs, interest_weights, ranked

from pipelines.build import build, fit
from recsys.batch import Batch, from_encoded
from recsys.encode import Encoder
from recsys.experiment import load_experiment
from recsys.fitting import fit as fitted
from recsys.models import ModelConfig, RankingModel, build_model
from recsys.models.bottoms.dtrn import DTRN
from recsys.training.trainer import train

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "suites" / "planted_behaviours"
SHAPE = (len(TASKS), len(BEHAVIOURS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pairs")
    for file in SUITE.glob("*.toml"):
        shutil.copy(file, found)
    planted.write(found, rows=2_000)
    return found


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    schema = load_experiment(folder / "experiment.toml").load_schema()
    return fitted(schema, [pq.read_table(folder / "rows.parquet", columns=list(schema.columns))])


@pytest.fixture(scope="module")
def batches(folder: Path, encoder: Encoder) -> list[Batch]:
    rows = pq.read_table(folder / "rows.parquet")
    encoded = encoder.encode(rows.slice(0, 1_500))
    schema = encoder.schema
    return [from_encoded(encoded.slice(start, 500), schema) for start in (0, 500, 1_000)]


def _model(encoder: Encoder, **bottom: object) -> RankingModel:
    config = ModelConfig.parse(
        {
            "embeddings": {"backend": "plain"},
            "bottom": bottom,
            "mixing": {"kind": "shared_bottom", "hidden": [2 * len(BEHAVIOURS)]},
            "heads": {"kind": "towers", "hidden": []},
        },
        where="test",
    )
    return build_model(encoder.schema, config, seed=0).eval()


def test_a_ranking_is_perfect_where_planted_pairs_come_first() -> None:
    planted_TS = np.array(INFORMATIVE, dtype=np.float64)
    assert ranked(planted_TS * 0.3 - 1) == 1.0
    assert ranked(-planted_TS) == 0.0
    assert ranked(np.zeros(SHAPE)) == 0.5


def test_only_sequences_that_a_task_reads_cost_it_auc(
    folder: Path, encoder: Encoder, batches: list[Batch]
) -> None:
    model = _model(encoder, kind="flat", sequence="mean_and_product")
    _place_items(model, encoder, pq.read_table(folder / "rows.parquet"))
    _read_planted_products(model)

    whole_T, lost_TS = auc_lost(model, batches)

    read_TS = np.array(INFORMATIVE, dtype=bool)
    assert (whole_T > 0.7).all()
    assert (lost_TS[read_TS] > 0.02).all()
    assert (lost_TS[~read_TS] == 0).all()
    # Only one behaviour informs these two tasks: without it nothing is left of them.
    for t in (2, 3):
        assert whole_T[t] - lost_TS[t].max() == 0.5


def _place_items(model: RankingModel, encoder: Encoder, rows: pa.Table) -> None:
    """Give each item's embedding its place in the first dimension, zeros in the others."""
    weights = np.zeros((planted.ITEMS + 2, 8), dtype=np.float32)
    row_B = encoder.encode_inputs(rows).column("item_id").to_numpy()
    weights[row_B, 0] = planted.items(0)[rows.column("item_id").to_numpy()]
    model.embeddings.load_table_weights({"item": torch.from_numpy(weights)})


@torch.no_grad()
def _read_planted_products(model: RankingModel) -> None:
    """Each task's logit is the sum over its planted behaviours of mean event times candidate, by hand-made weights."""
    state = model.program.state_dict()
    for tensor in state.values():
        tensor.zero_()
    # Means of four sequences and the candidate stand before the products, each of 8 columns.
    hidden, output = (state[name] for name in ("mixing.bank.weights.0", "heads.weight"))
    for s in range(len(BEHAVIOURS)):
        product = 8 * (len(BEHAVIOURS) + 1 + s)
        for half, sign in enumerate((1.0, -1.0)):  # x = relu(x) - relu(-x)
            hidden[0, 2 * s + half, product] = sign
            output[:, 2 * s + half] = sign * torch.tensor(INFORMATIVE)[:, s]


@pytest.mark.parametrize("kind", ["flat", "dtrn"])
def test_an_emptied_sequence_scores_as_rows_without_events(
    folder: Path, encoder: Encoder, batches: list[Batch], kind: str
) -> None:
    model = _model(encoder, kind=kind)
    drawn = torch.randn(planted.ITEMS + 2, 8, generator=torch.Generator().manual_seed(0))
    model.embeddings.load_table_weights({"item": drawn})
    whole_T, lost_TS = auc_lost(model, batches)
    rows = pq.read_table(folder / "rows.parquet").slice(0, 1_500)

    for s, name in enumerate(BEHAVIOURS):
        column = rows.schema.get_field_index(f"{name}_item")
        empty = pa.array([[]] * len(rows), rows.schema.field(column).type)
        without = encoder.encode(rows.set_column(column, f"{name}_item", empty))
        expected_T, _ = auc_lost(model, [from_encoded(without, encoder.schema)])
        np.testing.assert_allclose(whole_T - lost_TS[:, s], expected_T, rtol=0, atol=1e-5)
    assert np.abs(lost_TS).min() > 0, "every sequence counts for something"


def test_tasks_alike_show_no_modulation_and_others_their_distance_from_the_mean(
    encoder: Encoder,
) -> None:
    bottom = _model(encoder, kind="dtrn").program.bottom
    assert isinstance(bottom, DTRN)
    assert not np.any(list(conditioning(bottom).values()))

    with torch.no_grad():
        for parameter in bottom.interests.norms.parameters():
            parameter.add_(torch.randn_like(parameter))
    found = conditioning(bottom)
    norms = bottom.interests.norms().detach().numpy()

    for t in range(SHAPE[0]):
        for s in range(SHAPE[1]):
            apart = norms[t, s] - norms[:, s].mean(axis=0)
            assert found["modulation"][t, s] == pytest.approx(np.sqrt((apart**2).sum()), rel=1e-4)
            scales = [np.sqrt((norms[u, s, 1, 0] ** 2).mean()) for u in range(SHAPE[0])]
            assert found["passed"][t, s] == pytest.approx(scales[t] - np.mean(scales), abs=1e-4)


def test_common_norms_show_no_modulation(encoder: Encoder) -> None:
    bottom = _model(encoder, kind="dtrn", condition=False).program.bottom
    assert isinstance(bottom, DTRN)
    for matrix in conditioning(bottom).values():
        assert matrix.shape == SHAPE
        assert not matrix.any()


def test_weights_of_interests_are_the_refinements(encoder: Encoder, batches: list[Batch]) -> None:
    model = _model(encoder, kind="dtrn")
    bottom = model.program.bottom
    assert isinstance(bottom, DTRN)
    assert bottom.refinement is not None
    asked_TF = torch.randn(bottom.refinement.bias.shape)
    with torch.no_grad():
        bottom.refinement.bias.copy_(asked_TF)

    found_TS = interest_weights(model, bottom.refinement, batches)

    # One feature, the item, stands before the interests; the rest of the refinement is zero at first.
    expected_TS = 2 * torch.sigmoid(asked_TF[:, 1:])
    np.testing.assert_allclose(found_TS, expected_TS.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("bottom", "rankings"),
    [
        ('{ kind = "flat" }', {"auc_lost"}),
        ('{ kind = "dtrn", width = 4 }', {"auc_lost", "modulation", "passed", "weight"}),
    ],
)
def test_a_run_is_told_as_json(folder: Path, bottom: str, rankings: set[str]) -> None:
    if not (folder / "data").exists():
        fit(folder / "pipeline.toml", folder / "encoder")
        build(folder / "pipeline.toml", folder / "data", encoder=folder / "encoder")
    changes = (f"model.bottom={bottom}", "train.steps=2", "data.batch_size=256")
    run = folder / f"run-{len(rankings)}"
    train(load_experiment(folder / "experiment.toml", overrides=changes), run)

    found = json.loads(json.dumps(found_pairs(run, rows=600)))

    assert found["rows"] == 600
    assert set(found["rankings"]) == rankings
    assert list(found["auc"]) == list(TASKS)
    for ranking in found["rankings"].values():
        assert np.shape(ranking["by_pair"]) == SHAPE
        assert 0 <= ranking["auc"] <= 1
