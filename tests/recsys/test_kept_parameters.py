"""A model of other tasks begins with what each of its tasks has learned, and with what all share."""

from itertools import cycle

import pytest
import torch
from torch import Tensor

from recsys.experiment import OptimizerConfig
from recsys.models import Program, bottoms, heads, mixings
from recsys.training.kept_parameters import Asked
from recsys.training.moved_parts import move_moments
from recsys.training.optim import DenseOptimizer
from tests.recsys.warm_programs import (
    begun,
    blocks,
    config,
    equal,
    learned,
    logits,
    logits_without,
    schema,
)

each_mixing = pytest.mark.parametrize("mixing", mixings)
each_heads = pytest.mark.parametrize("head", heads)
# In these every task hears of all tasks' experts, of a new one's too.
COUPLED = ("cross_stitch", "ple", "adatt")


@each_mixing
@each_heads
@pytest.mark.parametrize("tasks", [("a", "c", "b"), ("b", "d", "a")])
def test_old_tasks_keep_their_logits_when_one_is_added(
    mixing: str, head: str, tasks: tuple[str, ...]
) -> None:
    before = Asked(config(mixing, head), schema("a", "b"))
    old = learned(before)
    expected = logits(old)

    new, kept = begun(old, before, Asked(before.model, schema(*tasks)))

    added = next(task for task in tasks if task not in "ab")
    # An oracle that knows of no parts: without the new task's experts all is as it was.
    assert equal(logits_without(new, added), expected, of=("a", "b"))
    assert equal(logits(new), expected, of=("a", "b")) == (mixing not in COUPLED)
    assert not kept.fresh
    assert not kept.dropped
    reasons = {reason for item in kept.parts.values() for reason in item.fresh.values()}
    assert reasons == {f"task {added} is new"}


@each_mixing
@each_heads
def test_old_tasks_keep_their_logits_when_one_is_left_out(mixing: str, head: str) -> None:
    before = Asked(config(mixing, head), schema("c", "a", "b"))
    old = learned(before)

    new, kept = begun(old, before, Asked(before.model, schema("b", "a")))

    assert equal(logits(new), logits_without(old, "c"), of=("a", "b"))
    assert set(kept.kept) == {name for name in kept.kept if name not in kept.in_part}
    reasons = {reason for item in kept.parts.values() for reason in item.dropped.values()}
    assert reasons == {"task c is gone"}
    gone = ("weights.0", "biases.0") if head == "aitm" else ()
    assert kept.dropped == tuple(f"heads.transfers.c.{name}" for name in gone)


@each_mixing
@pytest.mark.parametrize(("bottom", "head"), list(zip(bottoms, cycle(heads), strict=False)))
def test_tasks_in_another_order_give_the_old_logits_in_that_order(
    mixing: str, bottom: str, head: str
) -> None:
    before = Asked(config(mixing, head, bottom=bottom), schema("a", "b", "d"))
    old = learned(before)

    new, kept = begun(old, before, Asked(before.model, schema("d", "b", "a")))

    assert equal(logits(new), logits(old), of=("a", "b", "d"))
    assert set(kept.kept) >= {name for name in new.state_dict() if "transfers" not in name}
    assert not kept.parts
    assert not kept.fresh


def test_parts_that_keep_their_places_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "owned", lambda program: {})
    for mixing in mixings:
        before = Asked(config(mixing), schema("a", "b"))
        old = learned(before)
        new, _ = begun(old, before, Asked(before.model, schema("b", "a")))
        assert not equal(logits(new), logits(old), of=("a", "b"))


def test_each_task_keeps_its_view_of_the_inputs_when_one_is_added() -> None:
    before = Asked(config("mmoe", bottom="dtrn"), schema("a", "b"))
    old = learned(before)

    new, _ = begun(old, before, Asked(before.model, schema("b", "c", "a")))

    found = blocks(old.layout, users=4, rows=12, events=4)
    torch.testing.assert_close(new.bottom(found)[:, [2, 0]], old.bottom(found))


@each_mixing
@each_heads
def test_moments_go_with_their_parts(mixing: str, head: str) -> None:
    """One more step of a new model is one more step of the old one, for the tasks that both have."""
    before = Asked(config(mixing, head), schema("a", "b"))
    old = learned(before)
    optimizer = _optimizer(old)
    for _ in range(3):
        _step(old, optimizer)
    same = Asked(before.model, schema("b", "a"))
    more = Asked(before.model, schema("b", "c", "a"))
    for after in (same, more) if mixing not in COUPLED else (same,):
        new, kept = begun(old, before, after)
        its_own = _optimizer(new)
        move_moments(kept.moved, optimizer.state(), new, its_own)
        _step(new, its_own)
        stepped, again = begun(old, before, before)
        once_more = _optimizer(stepped)
        move_moments(again.moved, optimizer.state(), stepped, once_more)
        _step(stepped, once_more)
        assert not equal(logits(stepped), logits(old), of=("a", "b"))
        assert equal(logits(new), logits(stepped), of=("a", "b"))


def test_a_new_part_has_no_direction_yet_and_the_scale_of_the_kept_ones() -> None:
    before = Asked(config("mmoe"), schema("a", "b"))
    old = learned(before)
    optimizer = _optimizer(old)
    _step(old, optimizer)
    new, kept = begun(old, before, Asked(before.model, schema("b", "c", "a")))
    its_own = _optimizer(new)

    move_moments(kept.moved, optimizer.state(), new, its_own)

    was, now = optimizer.state(), its_own.state()
    for quantity, expected in (
        ("exp_avg", torch.zeros(())),
        ("exp_avg_sq", was["heads.weight/exp_avg_sq"].mean()),
    ):
        found, before_TH = now[f"heads.weight/{quantity}"], was[f"heads.weight/{quantity}"]
        assert torch.equal(found[[2, 0]], before_TH)
        torch.testing.assert_close(found[1], expected.expand_as(found[1]))
    assert now["heads.weight/step"] == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"label": "seconds", "kind": "regression"}, "task b of kind regression, was binary"),
        ({"label": "purchased", "given": "d"}, "task b given d, was given a"),
        ({"label": "purchased"}, "task b given nothing, was given a"),
    ],
)
@each_heads
def test_a_task_that_means_something_else_begins_anew(
    head: str, changed: dict[str, str], reason: str
) -> None:
    others = {"c": {"label": "purchased", "given": "a"}, "d": {"label": "clicked"}}
    before = Asked(config("cgc", head), schema("a", "b", "c", "d", **others))
    old = learned(before)

    new, kept = begun(
        old, before, Asked(before.model, schema("a", "b", "c", "d", **others, b=changed))
    )

    assert equal(logits(new), logits(old), of=("a", "c", "d"))
    weights_TH = new.state_dict()["heads.weight"], old.state_dict()["heads.weight"]
    assert [bool((now == was).all()) for now, was in zip(*weights_TH, strict=True)] == [
        True,
        False,
        True,
        True,
    ]
    assert kept.parts["heads.weight"].fresh == {"task b": reason}
    if head == "aitm" and "given" in changed:
        assert kept.fresh["heads.transfers.b.weights.0"] == reason


def test_a_transfer_begins_anew_with_the_task_that_it_reads() -> None:
    others = {"b": {"label": "purchased", "given": "c"}, "c": {"label": "clicked", "given": "a"}}
    before = Asked(config("mmoe", "aitm"), schema("a", "b", "c", **others))
    others |= {"c": {"label": "clicked"}}

    _, kept = begun(learned(before), before, Asked(before.model, schema("a", "b", "c", **others)))

    reason = "task c given nothing, was given a"
    assert kept.fresh["heads.transfers.b.weights.0"] == reason
    assert kept.parts["heads.weight"].fresh == {"task c": reason}


def test_experts_of_a_group_are_kept_by_their_numbers() -> None:
    before = Asked(config("cgc", task_experts=2), schema("a", "b"))
    after = Asked(config("cgc", task_experts={"a": 3, "b": 1}), schema("a", "b"))

    new, kept = begun(old := learned(before), before, after)

    was_EHI, now_EHI = (item.state_dict()["mixing.level.banks.0.weights.0"] for item in (old, new))
    # a has one expert more, b one less; the shared ones stand behind both.
    assert torch.equal(now_EHI[[0, 1, 3, 4, 5]], was_EHI[[0, 1, 2, 4, 5]])
    told = kept.parts["mixing.level.banks.0.weights.0"]
    assert told.fresh == {"task a expert 3": "a new expert or group"}
    assert told.dropped == {"task b expert 2": "an expert or group that is gone"}
    gates = kept.parts["mixing.level.gates.0.weight"]
    assert gates.fresh == {"task a on task a expert 3": "a new expert or group"}


def test_gates_of_tasks_are_not_those_of_another_level() -> None:
    before = Asked(config("ml_mmoe", experts=2, levels=((6,),)), schema("a", "b"))
    after = Asked(config("ml_mmoe", experts=2, levels=((6,), (6,))), schema("a", "b"))

    _, kept = begun(learned(before), before, after)

    assert kept.fresh == {"mixing.gates.0.weight": "its parts are not those of what they were"}
    assert "mixing.gates.1.weight" in kept.new


def test_a_task_in_another_category_begins_anew() -> None:
    groups = ({"one": ("a", "b"), "two": ("d",)}, {"one": ("a",), "two": ("d", "b")})
    before, after = (Asked(config("home", groups=item), schema("a", "b", "d")) for item in groups)

    new, kept = begun(old := learned(before), before, after)

    assert equal(logits(new), logits(old), of=("a", "d"))
    told = kept.parts["mixing.specific.bank.weights.0"]
    assert set(told.fresh) == {"task b in group two expert 1", "task b in group two expert 2"}
    assert set(told.dropped) == {"task b in group one expert 1", "task b in group one expert 2"}
    assert "mixing.meta.bank.weights.0" not in kept.parts


def _optimizer(program: Program) -> DenseOptimizer:
    return DenseOptimizer(program.named_parameters(), OptimizerConfig(dense_lr=0.05))


def _step(program: Program, optimizer: DenseOptimizer) -> None:
    """A step on what tasks a and b say of some rows."""
    found: Tensor = program(blocks(program.layout, users=4, rows=12, events=4))
    places = [program.task_names.index(task) for task in "ab"]
    (found[:, places] - torch.tensor([1.0, -1.0])).square().mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step(0.05)
