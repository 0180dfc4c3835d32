"""Every bottom under every mixing and every head is served as it was trained, through the ranker that a server has."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.calibrate import Calibrators, task_scores
from recsys.collate import collate
from recsys.export import eager_logits, write_bundle
from recsys.models import ModelConfig, build_model, registries
from serving.ranker import SCORED, Ranker
from tests.bundles import full_encoder, full_rows, full_schema, trembling
from tests.serving.requests import full_request


def narrow(kind: str, stage: Any) -> dict[str, Any]:
    """The section of a stage with its own defaults, but every layer 8 wide."""
    lists = {
        name: field.default
        for name, field in stage.Config.model_fields.items()
        if isinstance(field.default, tuple)
    }
    return {"kind": kind} | {name: _eights(widths) for name, widths in lists.items()}


def _eights(widths: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_eights(item) if isinstance(item, tuple) else 8 for item in widths)


@pytest.mark.slow
@pytest.mark.parametrize("heads", registries["heads"])
@pytest.mark.parametrize("mixing", registries["mixing"])
@pytest.mark.parametrize("bottom", registries["bottom"])
def test_every_combination_is_served_as_it_was_trained(
    bottom: str, mixing: str, heads: str, tmp_path: Path
) -> None:
    chosen = {"bottom": bottom, "mixing": mixing, "heads": heads}
    tree = {stage: narrow(kind, registries[stage][kind]) for stage, kind in chosen.items()}
    config = ModelConfig.parse({"embeddings": {"backend": "plain"}} | tree, where=str(chosen))
    schema, encoder, rows = full_schema(), full_encoder(), full_rows(100, seed=9)
    model = trembling(build_model(schema, config, seed=0), seed=0, deviation=0.35)

    # The export refuses to publish what scores otherwise than the model, by more than 1e-5.
    write_bundle(model, encoder, tmp_path, validation=encoder.encode(rows))

    ranker = Ranker.load(tmp_path)
    assert (ranker.rank(full_request(7)).ranked.status == SCORED).all()
    # A server knows no position: the feature takes its constant.
    place = rows.column_names.index("position")
    held = rows.set_column(place, "position", pa.array([1] * 100, pa.int32()))
    logits_BT = eager_logits(model.eval(), schema, collate(encoder.encode_inputs(held), schema))
    expected = task_scores(logits_BT, schema, calibrators=Calibrators.identity(schema))
    table = ranker.score_rows(rows)
    for entry, values in (dict(expected.raw) | dict(expected.value)).items():
        kind = "value" if entry in expected.value else "raw"
        np.testing.assert_allclose(table.column(f"{kind}:{entry}"), values, rtol=1e-5, atol=1e-5)
