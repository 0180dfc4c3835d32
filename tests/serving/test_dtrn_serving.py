"""A bundle with bottom dtrn in the server's path: a user's sequences are encoded once a request."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from recsys.bundle import Bundle, Program, load_bundle
from recsys.export import write_bundle
from recsys.fitting import fit
from recsys.models import ModelConfig, build_model
from recsys.schema import Schema
from serving.ranker import Ranker
from tests.bundles import full_rows, full_schema, trembling
from tests.serving.requests import full_request

MODEL = {
    "embeddings": {"backend": "plain"},
    "bottom": {"kind": "dtrn", "width": 8},
    "mixing": {"kind": "mmoe", "experts": 2, "expert_hidden": [8]},
    "heads": {"kind": "towers", "hidden": [4]},
}
CANDIDATES = 500
# Two LayerNorms a sequence; nothing else in the model has any.
NORMS = 4


@dataclass(frozen=True)
class Watching:
    """A program's session that notes how many rows its LayerNorms, which only the sequences' transformer has, get."""

    session: onnxruntime.InferenceSession
    norms: Sequence[str]
    rows: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, bundle: Bundle) -> "Watching":
        model = onnx.load(bundle.published.path / "program" / "program.onnx")
        norms = [
            node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"
        ]
        model.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in norms
        )
        return cls(onnxruntime.InferenceSession(model.SerializeToString()), norms)

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        found = self.session.run([*names, *self.norms], feeds)
        self.rows.extend(len(norm) for norm in found[len(names) :])
        return list(found[: len(names)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An exported model of two sequences: one is pooled by each candidate, the other to its mean.

    The export proves that the program scores as the model does, two candidates a user and a user a row.
    """
    tree = full_schema().model_dump(exclude_none=True, exclude_defaults=True)
    tree["sequences"]["liked"] = {"item": {"table": "item", "column": "likes"}, "max_length": 3}
    schema = Schema.parse(tree, where="schema.toml")
    encoder = fit(schema, [full_rows(200, seed=1)])
    fresh = build_model(schema, ModelConfig.parse(MODEL, where="test"), seed=0)
    model = trembling(fresh, seed=0, deviation=0.35)
    root = tmp_path_factory.mktemp("dtrn")
    write_bundle(model, encoder, root, validation=encoder.encode(full_rows(64, seed=2)))
    return load_bundle(root)


def test_a_request_encodes_its_users_sequences_once_whatever_its_candidates(
    bundle: Bundle,
) -> None:
    watching = Watching.of(bundle)
    assert len(watching.norms) == NORMS
    ranker = Ranker(replace(bundle, program=Program(watching)))
    ranker.rank(full_request(CANDIDATES))
    assert watching.rows == [1] * NORMS
    # The same count of rows, each with a user of its own, is what the watch would see of a program that repeats them.
    watching.rows.clear()
    ranker.score_rows(full_rows(CANDIDATES, seed=3))
    assert watching.rows == [CANDIDATES] * NORMS


def test_many_candidates_score_as_a_request_for_each(bundle: Bundle) -> None:
    ranker, request = Ranker(bundle), full_request(CANDIDATES)
    together = ranker.rank(request).ranked.scores.raw
    features = request["candidates"]["features"]
    for row in range(CANDIDATES):
        of_one = {name: [values[row]] for name, values in features.items()}
        alone = ranker.rank(request | {"candidates": {"features": of_one}}).ranked.scores.raw
        for entry, values in together.items():
            # Float32 products of another size are summed in another order.
            assert alone[entry][0] == pytest.approx(values[row], abs=1e-5), (row, entry)
