"""DTRN against its paper: parameter counts, a plain loop in float64, and what may depend on which task."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import ConfigError
from recsys.experiment import load_experiment
from recsys.export import export
from recsys.models import ModelConfig, build_program
from recsys.models.bottoms.dtrn import DTRN, Refinement
from recsys.models.bottoms.interests import CommonNorms, ConditionalNorms, ConditionalTransformer
from recsys.models.inputs import Blocks, InputLayout, SequenceLayout, input_layout
from recsys.schema import Schema
from recsys.training.trainer import train
from tests.contract.cases import blocks as random_blocks
from tests.recsys.small_data import small_data

TASKS = 3
WIDTH = 6

# Sequences of different widths and lengths; one has no target, one the name of a dictionary's method.
TREE: dict[str, Any] = {
    "columns": {
        "user": "string",
        "item": "int64",
        "category": "string",
        "price": "float32",
        "age": "float32",
        "seen_item": "list<int64>",
        "seen_category": "list<string>",
        "searched": "list<int64>",
        "items_item": "list<int64>",
        "label_a": "int8",
        "label_b": "int8",
        "label_c": "int8",
    },
    "tables": {
        "user": {"rows": 8, "dim": 3},
        "item": {"rows": 8, "dim": 4},
        "category": {"rows": 8, "dim": 2},
    },
    "features": {
        "user": {"kind": "categorical", "table": "user", "side": "user"},
        "age": {"kind": "numeric", "side": "user"},
        "category": {"kind": "categorical", "table": "category"},
        "item": {"kind": "categorical", "table": "item"},
        "price": {"kind": "numeric"},
    },
    "sequences": {
        "seen": {
            "item": {"table": "item", "column": "seen_item"},
            "category": {"table": "category", "column": "seen_category"},
            "max_length": 5,
            "target": {"item": "item"},
        },
        "searches": {"item": {"table": "item", "column": "searched"}, "max_length": 3},
        "items": {
            "item": {"table": "item", "column": "items_item"},
            "max_length": 4,
            "target": {"item": "item"},
        },
    },
    "tasks": {name: {"label": f"label_{name}"} for name in "abc"},
}


def schema() -> Schema:
    return Schema.parse(TREE, where="schema.toml")


def layout() -> InputLayout:
    return input_layout(schema())


def config(**options: object) -> DTRN.Config:
    return DTRN.Config.parse(
        {"kind": "dtrn", "width": WIDTH, "pooling_hidden": 5, **options}, where="test"
    )


def fresh(**options: object) -> DTRN:
    torch.manual_seed(0)
    return DTRN(config(**options), layout=layout(), tasks=TASKS).eval()


def built(**options: object) -> DTRN:
    """A bottom whose parameters are all far from their initial symmetry."""
    found = fresh(**options)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return found


def inputs(*, users: int = 3, rows: int = 7, events: int = 3) -> Blocks:
    return random_blocks(layout(), users=users, rows=rows, events=events, seed=3)


def slices(bottom: DTRN) -> Tensor:
    """[T, N, I]: what each task gets of the inputs."""
    found: Tensor = bottom(inputs()).transpose(0, 1)
    return found


def conditional(bottom: DTRN) -> ConditionalNorms:
    norms = bottom.interests.norms
    assert isinstance(norms, ConditionalNorms)
    return norms


def test_golden_parameter_counts() -> None:
    # T = 3, S = 2, K = 16, d_ff = 32, H = 32, both embeddings 8 wide.
    norms = ConditionalNorms(16, tasks=3, sequences=2, task_width=8, sequence_width=8, hidden=32)
    transformer = ConditionalTransformer(16, attention_heads=2, hidden=32, dropout=0.0)
    found = [sum(item.numel() for item in module.parameters()) for module in (norms, transformer)]
    counted = ConditionalNorms.parameter_count(
        16, tasks=3, sequences=2, task_width=8, sequence_width=8, hidden=32
    )
    block = ConditionalTransformer.parameter_count(16, hidden=32)
    assert found == [counted, block]
    assert sum(found) == 4_856
    # A transformer of its own for each task and sequence instead.
    assert 3 * 2 * (block + CommonNorms.parameter_count(16)) == 13_344
    assert Refinement.parameter_count(12, 3) == 112


def test_a_refinement_of_twelve_fields_has_112_parameters_a_task() -> None:
    wide = replace(
        layout(), candidate={f"f{number}": item for number, item in _nine_fields()}, user={}
    )
    wide = replace(wide, user_width=0, candidate_width=18)
    refinement = Refinement(wide, config(), tasks=3, sequences=3)
    assert sum(item.numel() for item in refinement.parameters()) == 3 * 112


def _nine_fields() -> list[tuple[int, Any]]:
    columns = layout().candidate["item"]
    return [(number, replace(columns, start=2 * number, width=2)) for number in range(9)]


@pytest.mark.parametrize("refine", [True, False])
def test_every_tasks_input_is_the_papers(refine: bool) -> None:
    bottom, blocks = built(refine=refine), inputs()
    expected = dtrn_by_hand(bottom, blocks)
    np.testing.assert_allclose(bottom(blocks).detach().numpy(), expected, rtol=2e-5, atol=2e-5)


def test_scale_and_shift_have_a_place_for_every_task_sequence_and_norm() -> None:
    assert built().interests.norms().shape == (TASKS, 3, 2, 2, WIDTH)


def test_tasks_start_alike_as_an_ordinary_transformer() -> None:
    bottom, ordinary = fresh(), fresh(condition=False)
    ordinary.load_state_dict(bottom.state_dict(), strict=False)
    alike = slices(bottom)
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))
    torch.testing.assert_close(alike, slices(ordinary))
    with torch.no_grad():
        conditional(bottom).outer.weight.normal_()
    assert (slices(bottom)[0] != slices(bottom)[1]).any()


@pytest.mark.parametrize("task", range(TASKS))
def test_a_tasks_embedding_changes_and_learns_from_its_own_slice_alone(task: int) -> None:
    bottom = built()
    before, embedding = slices(bottom), conditional(bottom).task_embedding
    (gradient,) = torch.autograd.grad(before[task].square().sum(), [embedding])
    assert [bool(item.any()) for item in gradient] == [own == task for own in range(TASKS)]
    with torch.no_grad():
        embedding[task] += torch.randn_like(embedding[task])
    changed = [bool(item.any()) for item in slices(bottom) != before]
    assert changed == [own == task for own in range(TASKS)]


def test_swapped_tasks_have_swapped_inputs() -> None:
    bottom, swapped = built(), built()
    assert swapped.refinement is not None
    order = [2, 1, 0]
    own = [
        conditional(swapped).task_embedding,
        swapped.refinement.weight,
        swapped.refinement.bias,
        *swapped.refinement.squeeze.parameters(),
    ]
    with torch.no_grad():
        for parameter in own:
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(slices(swapped), slices(bottom)[order])


def test_norms_do_not_depend_on_the_size_of_the_embeddings() -> None:
    norms = conditional(built())
    before = norms()
    with torch.no_grad():
        norms.task_embedding.mul_(50)
        norms.sequence_embedding.mul_(50)
    torch.testing.assert_close(norms(), before)


def test_what_stands_in_padding_changes_nothing() -> None:
    bottom, blocks = built(), inputs()
    filled = {
        name: torch.where(blocks.valid[name][:, :, None], tokens, 9.0)
        for name, tokens in blocks.tokens.items()
    }
    longer = {name: F.pad(tokens, (0, 0, 0, 4), value=-7.0) for name, tokens in filled.items()}
    masks = {name: F.pad(valid, (0, 4)) for name, valid in blocks.valid.items()}
    assert any((~valid).any() and valid.any() for valid in blocks.valid.values())
    assert (bottom(replace(blocks, tokens=filled)) == bottom(blocks)).all()
    torch.testing.assert_close(
        bottom(replace(blocks, tokens=longer, valid=masks)), bottom(blocks), rtol=1e-6, atol=1e-6
    )


def test_a_user_without_events_has_no_interests() -> None:
    bottom, blocks = built(), inputs()
    none = {name: torch.zeros_like(valid) for name, valid in blocks.valid.items()}
    interests_NTSK = bottom.interests(replace(blocks, valid=none))
    assert interests_NTSK.shape == (7, TASKS, 3, WIDTH)
    assert (interests_NTSK == 0).all()


def test_a_fresh_refinement_returns_its_input() -> None:
    refined, plain = fresh(), fresh(refine=False)
    plain.load_state_dict(refined.state_dict(), strict=False)
    assert (refined(inputs()) == plain(inputs())).all()


def test_a_single_column_is_not_refined() -> None:
    bottom, blocks = built(), inputs()
    found, user_width = bottom(blocks), layout().user_width
    age, price = layout().user["age"].start, user_width + layout().candidate["price"].start
    assert (found[:, :, age] == blocks.rows_of(blocks.user_UI)[:, None, age]).all()
    assert (found[:, :, price] == blocks.candidate_NI[:, None, price - user_width]).all()
    user = layout().user["user"].start
    assert (found[:, 0, user] != found[:, 1, user]).all()


def test_sequences_are_encoded_once_a_user() -> None:
    bottom, sizes = built(), list[int]()
    bottom.interests.transformer.register_forward_hook(
        lambda _module, given, _out: sizes.append(given[0].shape[0])
    )
    bottom(inputs(users=2, rows=64))
    assert sizes == [2, 2, 2]


def test_a_schema_without_sequences_is_refused_in_one_sentence() -> None:
    tree = {
        "columns": {"x": "float32", "y": "int8"},
        "features": {"x": {"kind": "numeric"}},
        "tasks": {"y": {"label": "y"}},
    }
    with pytest.raises(ConfigError, match=r'^model.bottom \(dtrn\): .* kind = "flat"$'):
        program_of(Schema.parse(tree, where="schema.toml"), {"kind": "dtrn"})


def test_flat_too_attends_to_a_sequence_of_any_name() -> None:
    assert program_of(schema(), {"kind": "flat", "sequence": "target_attention"}).bottom.width > 0


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="width 6 is no multiple of attention_heads 4"):
        config(attention_heads=4)


EXPERIMENT = """
[data]
train = ["2026-01-01", "2026-01-02"]
validation = "2026-01-03"
batch_size = 64
[model]
embeddings = { backend = "plain" }
bottom = { kind = "dtrn", width = 8, dropout = 0.1 }
mixing = { kind = "ple", levels = [[16], [8]] }
heads = { kind = "aitm", hidden = [8] }
[train]
threads = 1
"""


@pytest.mark.slow
def test_dtrn_under_ple_and_aitm_trains_and_exports(tmp_path: Path) -> None:
    small_data(tmp_path)
    file = tmp_path / "experiment.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    train(load_experiment(file), tmp_path / "run")
    # The export itself proves that its scores are the model's.
    export(tmp_path / "run", tmp_path / "bundle")


def program_of(schema: Schema, bottom: dict[str, object]) -> Any:
    tree = {"bottom": bottom, "mixing": {"kind": "mmoe", "experts": 2, "expert_hidden": [8]}}
    return build_program(schema, ModelConfig.parse(tree, where="test"), seed=0)


# The paper by loops over rows, tasks, sequences and events, in float64.

Array = NDArray[np.float64]


def dtrn_by_hand(bottom: DTRN, blocks: Blocks) -> Array:
    assert blocks.user_of_row_N is not None
    rows = []
    for row, user in enumerate(blocks.user_of_row_N.tolist()):
        candidate = array(blocks.candidate_NI[row])
        features = [
            *fields_of(array(blocks.user_UI[user]), layout().user.values()),
            *fields_of(candidate, layout().candidate.values()),
        ]
        rows.append(
            [
                refined(
                    bottom,
                    task,
                    features,
                    [
                        interest_by_hand(bottom, task, number, sequence, blocks, user, candidate)
                        for number, sequence in enumerate(layout().sequences.values())
                    ],
                )
                for task in range(TASKS)
            ]
        )
    return np.array(rows)


def refined(bottom: DTRN, task: int, features: list[Array], interests: list[Array]) -> Array:
    parts = [*features, *interests]
    module = bottom.refinement
    if module is None:
        return np.concatenate(parts)
    fields = [part for part in parts if len(part) > 1]
    z = np.array([part.mean() for part in fields])
    inner, inner_bias = (
        array(module.squeeze.weights[0][task]),
        array(module.squeeze.biases[0][task]),
    )
    h = np.maximum(inner @ z + inner_bias, 0)
    weights = 2 / (1 + np.exp(-(array(module.weight[task]) @ h + array(module.bias[task]))))
    of_field = iter(weights)
    return np.concatenate([part * next(of_field) if len(part) > 1 else part for part in parts])


def interest_by_hand(
    bottom: DTRN,
    task: int,
    number: int,
    sequence: SequenceLayout,
    blocks: Blocks,
    user: int,
    candidate: Array,
) -> Array:
    module: Any = bottom.interests
    count = int(blocks.valid[sequence.name][user].sum())
    if not count:
        return np.zeros(WIDTH)
    weight, bias = array(module.projections[number].weight), array(module.projections[number].bias)
    position = array(module.position_embedding)
    events = [
        weight @ array(blocks.tokens[sequence.name][user, at]) + bias + position[count - 1 - at]
        for at in range(count)
    ]
    norms = conditional_norms(module.norms, task, number)
    encoded = block_by_hand(module.transformer, events, norms)
    if not sequence.targets:
        return np.asarray(np.mean(encoded, axis=0))
    as_event = np.zeros(sequence.width)
    for token, columns in sequence.targets.items():
        into = sequence.tokens[token].start
        as_event[into : into + columns.width] = candidate[columns.start :][: columns.width]
    q = weight @ as_event + bias
    pooling = module.pooling
    assert pooling is not None
    scores = []
    for y in encoded:
        joined = np.concatenate([q, y, q - y, q * y])
        h = np.maximum(array(pooling.inner.weight) @ joined + array(pooling.inner.bias), 0)
        scores.append(float((array(pooling.outer.weight) @ h)[0]))
    return sum_of(softmax(np.array(scores)), encoded)


def conditional_norms(norms: Any, task: int, number: int) -> Array:
    """[J, 2, K] of a task and a sequence."""
    c = np.concatenate([array(norms.task_embedding[task]), array(norms.sequence_embedding[number])])
    c /= math.sqrt(float(c @ c))
    u = np.maximum(array(norms.inner.weight) @ c + array(norms.inner.bias), 0)
    delta = (array(norms.outer.weight) @ u + array(norms.outer.bias)).reshape(2, 2, WIDTH)
    return np.stack([1 + delta[:, 0], delta[:, 1]], axis=1)


def block_by_hand(
    module: ConditionalTransformer, events: Sequence[Array], norms: Array
) -> list[Array]:
    weight, bias = array(module.query_key_value.weight), array(module.query_key_value.bias)
    query, key, value = (
        [weight[part : part + WIDTH] @ y + bias[part : part + WIDTH] for y in events]
        for part in (0, WIDTH, 2 * WIDTH)
    )
    size = WIDTH // module.attention_heads
    encoded = []
    for at, y in enumerate(events):
        mixed = np.zeros(WIDTH)
        for start in range(0, WIDTH, size):
            own = slice(start, start + size)
            scores = np.array([query[at][own] @ other[own] for other in key]) / math.sqrt(size)
            mixed[own] = sum_of(softmax(scores), [other[own] for other in value])
        attended = array(module.attended.weight) @ mixed + array(module.attended.bias)
        a = layer_norm(y + attended, norms[0])
        h = np.maximum(array(module.inner.weight) @ a + array(module.inner.bias), 0)
        fed = array(module.outer.weight) @ h + array(module.outer.bias)
        encoded.append(layer_norm(a + fed, norms[1]))
    return encoded


def layer_norm(z: Array, norm: Array) -> Array:
    return np.asarray(norm[0] * (z - z.mean()) / np.sqrt(z.var() + 1e-5) + norm[1])


def softmax(scores: Array) -> Array:
    exponents = np.exp(scores - scores.max())
    return np.asarray(exponents / exponents.sum())


def sum_of(weights: Array, values: Sequence[Array]) -> Array:
    return np.asarray(sum(w * v for w, v in zip(weights, values, strict=True)))


def fields_of(block: Array, columns: Any) -> list[Array]:
    return [block[item.start :][: item.width] for item in columns]


def array(tensor: Tensor) -> Array:
    return np.array(tensor.tolist(), dtype=np.float64)
