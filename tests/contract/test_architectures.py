"""What every registered architecture promises. A new one is tested by being registered."""

import io
import math
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor

from recsys.batch import Batch, from_encoded
from recsys.layout import slots
from recsys.models import describe, registries
from recsys.models.experts import fold_norms
from recsys.models.ranker import NamedProgram
from recsys.schema import Schema
from tests import kinds
from tests.contract.cases import (
    DEFAULTS,
    VARIANTS,
    Case,
    batch,
    blocks,
    different,
    encoded_rows,
    loss,
)

each_case = pytest.mark.parametrize("case", [*DEFAULTS, *VARIANTS], ids=str)
each_different = pytest.mark.parametrize("case", different(DEFAULTS), ids=str)


@pytest.fixture(scope="module")
def schema() -> Schema:
    return kinds.schema()


def _without_lists(found: Batch) -> Batch:
    """The batch with every bag and every sequence empty."""
    single = torch.tensor([slot.kind == "single" for slot in slots(kinds.schema())])
    kept_N = single.repeat_interleave(found.lengths_FB.sum(dim=1))
    assert found.weights_N is not None
    return replace(
        found,
        values_N=found.values_N[kept_N],
        weights_N=found.weights_N[kept_N],
        lengths_FB=found.lengths_FB * single[:, None],
    )


@each_case
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_logits_have_a_row_and_a_task_axis_and_are_finite(case: Case, rows: int) -> None:
    model = case.model()
    for found in (batch(rows), _without_lists(batch(rows))):
        logits_BT = model(found)
        assert logits_BT.shape == (rows, 3)
        assert logits_BT.isfinite().all()


@each_case
def test_a_batch_without_rows_has_no_logits_and_a_zero_gradient(case: Case, schema: Schema) -> None:
    """What a rank does when a last batch has fewer rows than there are ranks: its part in the others' steps."""
    model, nothing = case.model(), from_encoded(encoded_rows(7).slice(0, 0), schema)
    logits_BT = model(nothing)
    assert logits_BT.shape == (0, 3)
    loss(logits_BT, nothing, schema).backward()  # type: ignore[no-untyped-call]
    for name, item in model.program.named_parameters():
        assert item.grad is not None, name
        assert not item.grad.any(), name


@each_case
def test_a_row_scores_alone_as_among_others(case: Case) -> None:
    model, table = case.model().eval(), encoded_rows(40)
    together = model(from_encoded(table, kinds.schema()))
    for row in (0, 13, 39):
        alone = model(from_encoded(table.slice(row, 1), kinds.schema()))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


@each_case
def test_scores_follow_a_permutation_of_rows(case: Case) -> None:
    model, table = case.model().eval(), encoded_rows(40)
    order = np.random.default_rng(3).permutation(40)
    moved = model(from_encoded(table.take(order), kinds.schema()))
    original = model(from_encoded(table, kinds.schema()))
    torch.testing.assert_close(moved, original[torch.from_numpy(order)], rtol=0, atol=1e-6)


@each_case
def test_padding_does_not_change_scores(case: Case) -> None:
    program = case.model().eval().program
    short = blocks(program.layout, users=3, rows=9, events=4)
    pad = torch.nn.functional.pad
    longer = replace(
        short,
        tokens={name: pad(item, (0, 0, 0, 3)) for name, item in short.tokens.items()},
        valid={name: pad(item, (0, 3)) for name, item in short.valid.items()},
    )
    torch.testing.assert_close(program(longer), program(short), rtol=0, atol=1e-6)


@each_case
def test_every_parameter_learns_within_three_steps(case: Case, schema: Schema) -> None:
    model, found = case.model(), batch(64)
    random = torch.Generator().manual_seed(1)
    labels_BT = torch.randint(0, 2, found.labels_BT.shape, generator=random).float()
    found = replace(found, labels_BT=labels_BT, observed_BT=torch.ones_like(found.observed_BT))
    optimizer = torch.optim.SGD(model.program.parameters(), lr=0.1)
    learned: set[str] = set()
    before = {name: table.clone() for name, table in model.embeddings.table_weights().items()}
    for _ in range(3):
        loss(model(found), found, schema).backward()  # type: ignore[no-untyped-call]
        learned |= {
            name
            for name, item in model.program.named_parameters()
            if item.grad is not None and item.grad.any()
        }
        optimizer.step()
        optimizer.zero_grad()
    assert learned == {name for name, _ in model.program.named_parameters()}
    after = model.embeddings.table_weights()
    assert all((after[name] != table).any() for name, table in before.items())


@each_different
def test_it_overfits_64_planted_rows(case: Case, schema: Schema) -> None:
    model, found = case.model(), batch(64)
    optimizer = torch.optim.Adam(model.program.parameters(), lr=3e-3)
    model.embeddings.set_learning_rate(0.1)
    first = loss(model(found), found, schema).item()
    for _ in range(150):
        total = loss(model(found), found, schema)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert total.item() < min(0.1, first / 5)


@each_case
def test_a_bf16_step_trains_and_gives_float32_logits(case: Case, schema: Schema) -> None:
    model, found = case.model(), batch(64)
    optimizer = torch.optim.Adam(model.program.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            logits_BT = model(found)
        assert logits_BT.dtype == torch.float32
        total = loss(logits_BT, found, schema)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0]
    in_float32 = model(found)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(found), in_float32, rtol=0.05, atol=0.05)


@each_case
def test_saved_and_loaded_it_scores_the_same_bits(case: Case, tmp_path: Path) -> None:
    saved, loaded = case.model(seed=0).eval(), case.model(seed=1).eval()
    assert (saved(batch(20)) != loaded(batch(20))).any()
    safetensors.torch.save_file(saved.program.state_dict(), tmp_path / "program")
    safetensors.torch.save_file(saved.embeddings.table_weights(), tmp_path / "tables")
    loaded.program.load_state_dict(safetensors.torch.load_file(tmp_path / "program"))
    loaded.embeddings.load_table_weights(safetensors.torch.load_file(tmp_path / "tables"))
    assert (saved(batch(20)) == loaded(batch(20))).all()


@each_case
def test_weights_are_a_function_of_the_seed_and_nothing_else(case: Case) -> None:
    state = torch.get_rng_state()
    first = case.model(seed=5)
    assert (torch.get_rng_state() == state).all()
    torch.rand(3)
    second, other = case.model(seed=5), case.model(seed=6)
    for (name, mine), same in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert (mine == same).all(), name
    assert (first(batch(5)) != other(batch(5))).any()


@each_case
def test_parameter_count_is_the_formula(case: Case) -> None:
    program, config = case.model().program, case.config
    parts = {"bottom": program.bottom, "mixing": program.mixing, "heads": program.heads}
    sizes: dict[str, dict[str, Any]] = {
        "bottom": {"layout": program.layout, "tasks": 3},
        "mixing": {"width": program.bottom.width, "tasks": program.task_names},
        "heads": {"width": program.mixing.width, "tasks": kinds.schema().tasks},
    }
    for stage, part in parts.items():
        section = getattr(config, stage)
        formula = registries[stage][section.kind].parameter_count(section, **sizes[stage])
        module = cast(torch.nn.Module, part)
        assert sum(item.numel() for item in module.parameters()) == formula, stage


@pytest.mark.parametrize("case", different([*DEFAULTS, *VARIANTS[1:3]]), ids=str)
def test_the_exported_program_scores_as_eager_does(case: Case) -> None:
    program = NamedProgram(case.model().program).eval()
    folded = deepcopy(program)
    fold_norms(folded)
    session = _exported(folded, _tensors(program, users=2, rows=5, events=3))
    for users, rows, events in ((1, 1, 1), (1, 3, 5), (4, 64, 2)):
        tensors = _tensors(program, users=users, rows=rows, events=events)
        feeds = {name: item.numpy() for name, item in zip(program.names, tensors, strict=True)}
        (logits_NT,) = session.run(["logits_NT"], feeds)
        found = blocks(program.program.layout, users=users, rows=rows, events=events)
        expected = program.program(found).detach().numpy()
        np.testing.assert_allclose(logits_NT, expected, rtol=1e-5, atol=1e-5)


def _tensors(program: NamedProgram, *, users: int, rows: int, events: int) -> tuple[Tensor, ...]:
    found = blocks(program.program.layout, users=users, rows=rows, events=events)
    assert found.user_of_row_N is not None
    parts = [found.user_UI, found.candidate_NI, found.user_of_row_N]
    for name in found.tokens:
        parts += [found.tokens[name], found.valid[name]]
    return tuple(parts)


def _exported(program: NamedProgram, tensors: tuple[Tensor, ...]) -> onnxruntime.InferenceSession:
    axes = {"user_UI": {0: "U"}, "candidate_NI": {0: "N"}, "user_of_row_N": {0: "N"}}
    shapes = tuple(
        axes.get(name) or {0: "U", 1: "L_" + name.partition(".")[2]} for name in program.names
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            tensors,
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=list(program.names),
            output_names=["logits_NT"],
            verbose=False,
        )
    assert exported is not None
    file = io.BytesIO()
    exported.save(cast(str, file))
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def test_every_registered_architecture_describes_itself() -> None:
    found = describe()
    assert [(item.stage, item.kind) for item in found] == [
        (case.stage, case.kind) for case in DEFAULTS
    ]
    assert all(item.summary.endswith(".") and item.source.startswith("recsys.") for item in found)


@pytest.mark.parametrize("kind", registries["heads"])
def test_heads_keep_a_funnels_order_if_they_say_so(kind: str) -> None:
    model = Case("heads", kind).model().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.program.parameters():
            parameter.normal_(std=0.5, generator=generator)
    click_B, purchase_B, _ = model(batch(64)).unbind(1)
    # What may be out of order is so under some parameters: else the penalty on it would be refused for nothing.
    assert bool((purchase_B <= click_B).all()) == registries["heads"][kind].keeps_order


@pytest.mark.parametrize("kind", registries["mixing"])
def test_equal_inputs_for_all_tasks_equal_the_one_input(kind: str) -> None:
    mixing = Case("mixing", kind).model().eval().program.mixing
    width = Case("mixing", kind).model().program.bottom.width
    x_BI = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    same_BTI = x_BI[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(mixing(same_BTI), mixing(x_BI), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", registries["mixing"])
def test_a_probe_sees_experts_and_gates_and_changes_nothing(kind: str) -> None:
    from recsys.models.probe import Probe

    model = Case("mixing", kind).model().eval()
    expected = model(batch(6))
    probe = Probe()
    with probe.attached(model.program.mixing):
        assert (model(batch(6)) == expected).all()
    assert probe.levels
    for level, item in zip(probe.levels, model.program.mixing.watched(), strict=True):
        assert level.out_BEH is not None
        assert level.pre_BEH is not None
        assert level.out_BEH.shape[:2] == (6, len(level.groups))
        assert (level.out_BEH == item.bank.activation(level.pre_BEH)).all()
        if level.gate_BTE is not None:
            sums = level.gate_BTE.sum(dim=-1)
            torch.testing.assert_close(sums, torch.ones_like(sums))
    probe.levels.clear()
    model(batch(6))
    assert not probe.levels
