"""Methods that balance tasks, step by step against textbook loops on a small linear model; what they share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.balancing import DWAConfig, FAMOConfig, GradNormConfig, UncertaintyConfig
from recsys.errors import ConfigError
from recsys.experiment import ObjectiveConfig
from recsys.models import ModelConfig, build_program
from recsys.training.balancing import build_balance
from recsys.training.balancing.famo import FAMO
from recsys.training.balancing.method import Balance, Learned, Plain
from recsys.training.balancing.shared import SharedPart, last_layer, shared_parts
from recsys.training.balancing.surgery import Surgery, cagrad, config
from recsys.training.balancing.weighting import DWA, GradNorm, Uncertainty
from recsys.training.objective import Loss
from tests import kinds
from tests.contract.cases import DEFAULTS

TASKS, ROWS, STEPS, RATE = 3, 16, 6, 0.05
TASK_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


class Linear(nn.Module):
    """Task t's value of x is head_t . (shared x); its loss the mean square of what is missing."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shared = nn.Parameter(torch.randn(4, 6, generator=generator))
        self.heads = nn.Parameter(torch.randn(TASKS, 4, generator=generator))
        self.part = SharedPart("shared", self.shared, None)

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x_BI, y_BT = batch
        return F.mse_loss(x_BI @ self.shared.T @ self.heads.T, y_BT, reduction="none").mean(dim=0)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Loss:
        """What these rows add to the loss of a batch of ROWS."""
        rows_T = torch.full((TASKS,), float(ROWS))
        by_task_T = self.losses(batch) * len(batch[0]) / ROWS
        return Loss((TASK_WEIGHTS * by_task_T).sum(), by_task_T, rows_T)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    scale_T = torch.tensor([0.1, 1.0, 10.0])
    return [
        (
            torch.randn(ROWS, 6, generator=generator),
            scale_T * torch.randn(ROWS, TASKS, generator=generator),
        )
        for _ in range(STEPS)
    ]


def descend(model: Linear) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(RATE * parameter.grad)
            parameter.grad = None


def trained(make: Callable[[Linear], Balance], *, rows: int) -> Linear:
    """A model after a few batches, each in parts of so many rows."""
    model = Linear()
    balance = make(model)
    for step, (x_BI, y_BT) in enumerate(batches()):

        @torch.no_grad()
        def whole(batch: tuple[Tensor, Tensor] = (x_BI, y_BT)) -> Loss:
            return model.loss(batch)

        loss = whole()
        parts = zip(x_BI.split(rows), y_BT.split(rows), strict=True)
        balance.backward((model.loss(part) for part in parts), step, whole=whole)
        descend(model)
        balance.after_step(loss, step, whole)
    return model


def gradients(model: Linear, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [T] and each task's own gradients [T, 4, 6] and [T, T, 4], one forward and backward a task."""
    losses, of_shared, of_heads = [], [], []
    for t in range(TASKS):
        model.zero_grad()
        loss = model.losses(batch)[t]
        loss.backward()  # type: ignore[no-untyped-call]
        assert model.shared.grad is not None
        assert model.heads.grad is not None
        losses.append(loss.detach())
        of_shared.append(model.shared.grad.clone())
        of_heads.append(model.heads.grad.clone())
    model.zero_grad()
    return torch.stack(losses), torch.stack(of_shared), torch.stack(of_heads)


def weigh(weights_T: Tensor, gradients_T: Tensor) -> Tensor:
    return torch.einsum("t,tij->ij", weights_T, gradients_T)


def assert_trains(make: Callable[[Linear], Balance], theirs: Linear) -> None:
    """Hold a method to another loop's result, batch by batch and in parts of 6, 6 and 4 rows."""
    for rows in (ROWS, 6):
        ours = trained(make, rows=rows)
        torch.testing.assert_close(ours.shared, theirs.shared, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.heads, theirs.heads, rtol=1e-4, atol=1e-5)


def textbook_adam(value: Tensor, moments: dict[str, Any], gradient: Tensor, lr: float) -> None:
    moments["n"] = moments.get("n", 0) + 1
    moments["m"] = 0.9 * moments.get("m", 0) + 0.1 * gradient
    moments["v"] = 0.999 * moments.get("v", 0) + 0.001 * gradient**2
    mean = moments["m"] / (1 - 0.9 ** moments["n"])
    value -= lr * mean / ((moments["v"] / (1 - 0.999 ** moments["n"])).sqrt() + 1e-8)


def test_uncertainty_equals_a_plain_loop() -> None:
    theirs, s, moments = Linear(), torch.zeros(TASKS), dict[str, Any]()
    for batch in batches():
        losses, shared, heads = gradients(theirs, batch)
        weights = TASK_WEIGHTS * torch.exp(-s) / 2
        theirs.shared.grad, theirs.heads.grad = weigh(weights, shared), weigh(weights, heads)
        descend(theirs)
        textbook_adam(s, moments, (1 - torch.exp(-s) * losses) / 2, 0.3)
        s.clamp_(-0.5, 0.5)
    section = UncertaintyConfig(lr=0.3, limit=0.5)
    assert_trains(lambda _: Uncertainty(section, task_weights_T=TASK_WEIGHTS), theirs)
    assert (s.abs() == 0.5).any()


def test_dwa_equals_a_plain_loop() -> None:
    theirs, history = Linear(), list[Tensor]()
    for step, batch in enumerate(batches()):
        losses, shared, heads = gradients(theirs, batch)
        weights = TASK_WEIGHTS.clone()
        if step >= 4:
            means = [torch.stack(history[start : start + 2]).mean(dim=0) for start in (0, 2)]
            shares = torch.exp(means[1] / means[0] / 0.7)
            weights *= TASKS * shares / shares.sum()
        theirs.shared.grad, theirs.heads.grad = weigh(weights, shared), weigh(weights, heads)
        descend(theirs)
        history.append(losses)
    section = DWAConfig(temperature=0.7)
    assert_trains(lambda _: DWA(section, task_weights_T=TASK_WEIGHTS, steps_per_epoch=2), theirs)


def test_gradnorm_equals_a_plain_loop() -> None:
    theirs, factor, moments, first = Linear(), torch.ones(TASKS), dict[str, Any](), None
    for batch in batches():
        losses, shared, heads = gradients(theirs, batch)
        weights = TASK_WEIGHTS * factor
        theirs.shared.grad, theirs.heads.grad = weigh(weights, shared), weigh(weights, heads)
        descend(theirs)
        first = losses if first is None else first
        norms = shared.flatten(1).norm(dim=1)
        rates = losses / first / (losses / first).mean()
        factor.requires_grad_()
        weighted = factor * norms
        aim = (weighted.mean() * rates**0.8).detach()
        (slope,) = torch.autograd.grad((weighted - aim).abs().sum(), factor)
        factor = factor.detach()
        textbook_adam(factor, moments, slope, 0.1)
        factor *= TASKS / factor.sum()
    section = GradNormConfig(alpha=0.8, lr=0.1)
    assert_trains(
        lambda model: GradNorm(section, task_weights_T=TASK_WEIGHTS, last_layer=model.part), theirs
    )


def test_famo_equals_a_plain_loop() -> None:
    theirs, logits, moments = Linear(), torch.zeros(TASKS), dict[str, Any]()
    for batch in batches():
        losses, shared, heads = gradients(theirs, batch)
        z = torch.softmax(logits, dim=0)
        weights = TASK_WEIGHTS * TASKS * (z / losses) / (z / losses).sum()
        theirs.shared.grad, theirs.heads.grad = weigh(weights, shared), weigh(TASK_WEIGHTS, heads)
        descend(theirs)
        fallen = losses.log() - theirs.losses(batch).detach().log()
        logits.requires_grad_()
        (slope,) = torch.autograd.grad(torch.softmax(logits, dim=0) @ fallen, logits)
        logits = logits.detach()
        textbook_adam(logits, moments, slope + 0.01 * logits, 0.2)
    section = FAMOConfig(lr=0.2, decay=0.01)
    assert_trains(
        lambda model: FAMO(section, parts=[model.part], task_weights_T=TASK_WEIGHTS), theirs
    )


@pytest.mark.parametrize(
    "method", [config, lambda gramian: cagrad(gramian, 0.4)], ids=["config", "cagrad"]
)
def test_surgery_touches_shared_parameters_alone(method: Callable[[Any], Any]) -> None:
    theirs = Linear()
    for batch in batches():
        _, shared, heads = gradients(theirs, batch)
        flat = (TASK_WEIGHTS[:, None] * shared.flatten(1)).double().numpy()
        theirs.shared.grad = torch.from_numpy(method(flat @ flat.T) @ flat).float().view(4, 6)
        theirs.heads.grad = weigh(TASK_WEIGHTS, heads)
        descend(theirs)
    assert_trains(
        lambda model: Surgery(
            [model.part], lambda gramian, step: method(gramian), task_weights_T=TASK_WEIGHTS
        ),
        theirs,
    )


def constant(values: list[float], observed: list[float] | None = None) -> Loss:
    by_task_T = torch.tensor(values)
    return Loss(by_task_T.sum(), by_task_T, torch.tensor(observed or [100.0] * len(values)))


def repeating(loss: Loss) -> Callable[[], Loss]:
    return lambda: loss


def test_at_its_optimum_the_exponential_of_the_log_variance_is_the_loss() -> None:
    loss = constant([0.2, 1.0, 4.0, 1e-6])
    balance = Uncertainty(UncertaintyConfig(lr=0.05), task_weights_T=torch.ones(4))
    for step in range(1500):
        balance.after_step(loss, step, repeating(loss))
    found = balance.log_variance.value_T.exp()
    assert found[:3].tolist() == pytest.approx([0.2, 1.0, 4.0], rel=1e-3)
    # A loss of nearly nothing stops at the limit.
    assert float(found[3].log()) == -3.0


def test_dwas_weights_sum_to_the_tasks_and_are_ones_in_the_first_two_epochs() -> None:
    balance = DWA(DWAConfig(), task_weights_T=torch.ones(3), steps_per_epoch=2)
    for step in range(8):
        factors = balance.factors(step)
        assert float(factors.sum()) == pytest.approx(3.0)
        assert (factors == 1).all() == (step < 4)
        # The first falls fast, the second slowly, the third is never observed.
        loss = constant([2.0**-step, 0.9**step, 0.0], [10.0, 10.0, 0.0])
        balance.after_step(loss, step, repeating(loss))
    assert factors[0] < factors[1] < factors[2]


def test_gradnorms_weights_sum_to_the_tasks_and_equal_tasks_keep_one() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    part = SharedPart("layer", parameter, None)
    for scale_T in (torch.ones(3), torch.tensor([1.0, 10.0, 100.0])):
        balance = GradNorm(GradNormConfig(), task_weights_T=torch.ones(3), last_layer=part)
        for step in range(20):
            by_task_T = scale_T * parameter.square().sum()
            loss = Loss(by_task_T.sum(), by_task_T, torch.full((3,), 10.0))
            balance.backward([loss], step, whole=repeating(loss))
            balance.after_step(loss, step, repeating(loss))
            assert float(balance.factor.value_T.sum()) == pytest.approx(3.0)
        factors = balance.factor.value_T.tolist()
        if scale_T[2] == 1:
            assert factors == pytest.approx([1.0] * 3)
        else:
            assert factors[0] > factors[2] > 0
            assert factors[1] > factors[2]


def test_famos_mixture_is_on_the_simplex_of_the_tasks_that_take_part() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parts = [SharedPart("layer", parameter, None)]
    balance = FAMO(FAMOConfig(lr=1.0), parts=parts, task_weights_T=torch.tensor([1.0, 1.0, 1.0, 0]))
    before, after = constant([1.0, 1.0, 0.0, 1.0], [9, 9, 0, 9]), constant([0.5, 1.0, 0.0, 1.0])
    for step in range(3):
        balance.after_step(before, step, lambda: after)
    mixture = balance.mixture(before)
    assert float(mixture.sum()) == pytest.approx(1.0)
    assert mixture[2:].tolist() == [0.0, 0.0]
    # The task whose loss did not fall gets more.
    assert mixture[1] > mixture[0]
    assert float(balance.factors(before).sum()) == pytest.approx(2.0)
    assert balance.factors(constant([0.0] * 4, [0.0] * 4)).tolist() == [0.0] * 4


def test_tasks_without_observed_rows_teach_a_method_nothing() -> None:
    loss = constant([1.5, 0.0], [10.0, 0.0])
    uncertainty = Uncertainty(UncertaintyConfig(), task_weights_T=torch.ones(2))
    gradnorm = GradNorm(
        GradNormConfig(),
        task_weights_T=torch.ones(2),
        last_layer=SharedPart("layer", nn.Parameter(torch.ones(2)), None),
    )
    for balance in (uncertainty, gradnorm):
        balance.after_step(loss, 0, repeating(loss))
    assert uncertainty.log_variance.value_T[0] > 0
    assert uncertainty.log_variance.value_T[1] == 0
    assert gradnorm.factor.value_T.tolist() == [1.0, 1.0]


def test_what_was_learned_continues_bit_for_bit() -> None:
    first, second = (Learned(torch.zeros(3), lr=0.1, decay=0.01) for _ in range(2))
    slopes = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for slope in slopes[:3]:
        first.step(slope)
    second.load_state({name: item.clone() for name, item in first.state().items()})
    for slope in slopes[3:]:
        first.step(slope)
        second.step(slope)
    assert torch.equal(first.value_T, second.value_T)


def program_of(
    mixing: dict[str, Any], *, change: Callable[[Any], Any] = lambda schema: schema
) -> Any:
    tree = {"embeddings": {"backend": "plain"}, "mixing": mixing}
    return build_program(change(kinds.schema()), ModelConfig.parse(tree, where="model"), seed=0)


def funnel_free(schema: Any) -> Any:
    """Three tasks none of which is part of another."""
    tasks = {name: task.model_copy(update={"given": None}) for name, task in schema.tasks.items()}
    return schema.model_copy(update={"tasks": tasks})


def test_mmoe_shares_its_experts_and_no_gate() -> None:
    program = program_of({"kind": "mmoe", "experts": 2, "expert_hidden": [8]}, change=funnel_free)
    parts = shared_parts(program, kind="pcgrad")
    assert [(part.name, part.index_R) for part in parts] == [
        ("mixing.bank.weights.0", None),
        ("mixing.bank.biases.0", None),
    ]
    assert last_layer(parts).name == "mixing.bank.weights.0"


def test_of_a_bank_with_tasks_own_experts_only_the_shared_ones_are_shared() -> None:
    section = {"kind": "cgc", "task_experts": 1, "shared_experts": 2, "expert_hidden": [8]}
    parts = {
        part.name: part
        for part in shared_parts(program_of(section, change=funnel_free), kind="pcgrad")
    }
    (weights,) = (
        part
        for name, part in parts.items()
        if name.endswith("bank.weights.0") or "banks.0.weights" in name
    )
    assert weights.parameter.shape[0] == 5
    assert weights.index_R is not None
    assert len(weights.index_R) == 2


def test_a_funnel_shares_the_parents_experts_with_its_child() -> None:
    section = {"kind": "single_task", "hidden": [8]}
    (weights, biases) = shared_parts(program_of(section), kind="pcgrad")
    for part in (weights, biases):
        assert part.index_R is not None
        assert part.index_R.tolist() == [list(kinds.schema().task_names).index("click")]


@pytest.mark.parametrize(
    "case", [case for case in DEFAULTS if case.stage == "mixing"], ids=lambda case: str(case)
)
def test_every_mixing_but_single_task_shares_weights(case: Any) -> None:
    program = build_program(funnel_free(kinds.schema()), case.config, seed=0)
    before = torch.get_rng_state()
    if case.kind == "single_task":
        with pytest.raises(
            ConfigError, match=r'"famo" balances what tasks share .* another mixing'
        ):
            shared_parts(program, kind="famo")
        return
    found = last_layer(shared_parts(program, kind="famo"))
    assert found.name.startswith("mixing.")
    assert found.parameter.ndim >= 2
    assert torch.equal(before, torch.get_rng_state())


def every_kind() -> list[str]:
    return ["none", "uncertainty", "dwa", "gradnorm", "pcgrad", "cagrad", "config", "famo"]


@pytest.mark.parametrize("kind", every_kind())
def test_a_single_task_is_trained_plainly(kind: str) -> None:
    section = ObjectiveConfig.parse({"balance": {"kind": kind}}, where="objective").balance
    balance = build_balance(
        section,
        program_of({"kind": "mmoe"}),
        task_weights_T=torch.ones(1),
        steps_per_epoch=1,
        total_steps=5,
        seed=0,
    )
    assert isinstance(balance, Plain)


def test_dwa_without_a_third_period_says_that_it_is_idle(caplog: pytest.LogCaptureFixture) -> None:
    program = program_of({"kind": "mmoe"})
    for total_steps, says in ((5, False), (4, True)):
        caplog.clear()
        build_balance(
            DWAConfig(every=2),
            program,
            task_weights_T=torch.ones(3),
            steps_per_epoch=100,
            total_steps=total_steps,
            seed=0,
        )
        assert ("never reweighs; set objective.balance.every" in caplog.text) == says


def test_unknown_methods_and_settings_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"balance\.kind: unknown 'pcgrd' \(did you mean 'pcgrad'"
    ):
        ObjectiveConfig.parse({"balance": {"kind": "pcgrd"}}, where="objective")
    with pytest.raises(ConfigError, match=r"unknown key 'balance\.temprature' .*'temperature'"):
        ObjectiveConfig.parse({"balance": {"kind": "dwa", "temprature": 1.0}}, where="objective")
    with pytest.raises(ConfigError, match=r"balance\.radius"):
        ObjectiveConfig.parse({"balance": {"kind": "cagrad", "radius": 1.0}}, where="objective")
