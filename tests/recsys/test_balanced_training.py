"""Balancing methods inside the loop: what they leave alone, resumption, precision, and losses that are no number."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.days import open_days
from recsys.errors import ConfigError, TrainingError
from recsys.experiment import ObjectiveConfig, load_experiment
from recsys.feed import in_order
from recsys.models import ModelConfig, build_model
from recsys.training.accumulation import build_backward
from recsys.training.balancing.method import Plain
from recsys.training.forward import Forward
from recsys.training.objective import Loss, build_objective
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import (
    TOML,
    assert_bit_equal,
    experiment_of,
    killed_after,
    records_of,
    weights_of,
)

BALANCE = {
    "uncertainty": '{ kind = "uncertainty", lr = 0.1 }',
    "dwa": '{ kind = "dwa", every = 3 }',
    "gradnorm": '{ kind = "gradnorm" }',
    "pcgrad": '{ kind = "pcgrad" }',
    "cagrad": '{ kind = "cagrad" }',
    "config": '{ kind = "config" }',
    "famo": '{ kind = "famo", lr = 0.5 }',
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("data"))
    (found.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return found


def balanced(kind: str) -> str:
    return f"objective.balance={BALANCE[kind]}"


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [("plain", ("pcgrad", "cagrad", "config", "famo")), ("torchrec", ("pcgrad", "famo"))],
)
def test_tables_and_towers_keep_the_sums_gradient(
    data: SmallData, tmp_path: Path, backend: str, kinds: tuple[str, ...]
) -> None:
    # Clipping looks at all gradients together, so it is kept out of the way.
    options = (
        "train.steps=1",
        "optimizer.clip_norm=1e9",
        f"model.embeddings.backend={backend}",
    )
    train(experiment_of(data, *options), tmp_path / "plain")
    plain = weights_of(tmp_path / "plain")
    tables = set(data.schema.all_tables)
    for kind in kinds:
        train(experiment_of(data, *options, balanced(kind)), tmp_path / kind)
        changed = differing(plain, weights_of(tmp_path / kind))
        assert not changed & tables
        assert not [name for name in changed if name.startswith("heads.")]
        assert {"mixing.bank.weights.0", "mixing.bank.biases.0"} <= changed, kind


@pytest.mark.parametrize(
    "kind",
    [
        "uncertainty",
        "dwa",
        "famo",
        pytest.param("gradnorm", marks=pytest.mark.slow),
        pytest.param("pcgrad", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_to_equal_weights_and_records(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    experiment = experiment_of(data, "train.checkpoint_every=3", "train.steps=9", balanced(kind))
    train(experiment, tmp_path / "whole")
    with killed_after(monkeypatch, 7):
        train(experiment, tmp_path / "resumed")
    train(experiment, tmp_path / "resumed", resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed"))
    assert records_of(tmp_path / "whole") == records_of(tmp_path / "resumed")
    weights = [record.get("weight_by_task") for record in records_of(tmp_path / "whole")]
    assert len({str(item) for item in weights if item is not None}) > 1


def test_a_method_that_forgot_what_it_learned_is_noticed(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(
        data, "train.checkpoint_every=3", "train.steps=9", balanced("uncertainty")
    )
    train(experiment, tmp_path / "whole")
    with killed_after(monkeypatch, 7):
        train(experiment, tmp_path / "resumed")
    with monkeypatch.context() as patch:
        forgetful = "recsys.training.balancing.weighting.Uncertainty.load_state"
        patch.setattr(forgetful, lambda self, state: None)
        train(experiment, tmp_path / "resumed", resume=True)
    assert differing(weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed"))


@pytest.mark.parametrize("kind", ["gradnorm", "config", "famo"])
def test_bf16_trains(data: SmallData, tmp_path: Path, kind: str) -> None:
    options = ("train.steps=3", "train.precision=bf16", balanced(kind))
    train(experiment_of(data, *options), tmp_path / "run")
    assert all(torch.isfinite(weight).all() for weight in weights_of(tmp_path / "run").values())


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    data = small_data(tmp_path, rows={"2026-01-01": 120, "2026-01-02": 60, "2026-01-03": 60})
    (tmp_path / "experiment.toml").write_text(TOML, encoding="utf-8")
    days = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    encoded = next(in_order(days, batch_size=10_000)).encoded
    # Finite, but its square is not.
    label = np.where(np.arange(encoded.num_rows) % 2, 1e30, -1e30).astype(np.float32)
    position = encoded.column_names.index("label:watch")
    data.publish(
        "2026-01-01", encoded.set_column(position, encoded.schema.field(position), [label])
    )
    for kind in ("cagrad", "config", "famo"):
        with pytest.raises(TrainingError, match=r"(?s)step 0.*watch (inf|nan).*row keys \d+"):
            train(experiment_of(data, balanced(kind), "train.max_skipped_steps=0"), tmp_path / kind)


def test_a_model_that_shares_nothing_is_told(data: SmallData, tmp_path: Path) -> None:
    text = (data.root / "schema.toml").read_text(encoding="utf-8")
    (data.root / "free.toml").write_text(text.replace(', given = "click"', ""), encoding="utf-8")
    experiment = load_experiment(
        data.root / "experiment.toml",
        overrides=[
            "train.steps=2",
            'model.mixing={ kind = "single_task", hidden = [8] }',
            balanced("config"),
        ],
    )
    # The funnel makes the purchase's loss train the click's layers.
    assert train(experiment, tmp_path / "funnel").steps == 2
    free = experiment.model_copy(update={"schema_file": data.root / "free.toml"})
    with pytest.raises(ConfigError, match="shares nothing there"):
        train(free, tmp_path / "free")


class Curious(Plain):
    """Asks for the whole batch's loss first, as FAMO does."""

    def backward(self, shares: Iterable[Loss], step: int, *, whole: Callable[[], Loss]) -> None:
        self.foreseen = whole()
        super().backward(shares, step, whole=whole)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_repeated_loss_is_the_same_and_leaves_no_trace(data: SmallData, parts: int) -> None:
    """With dropout, and with running statistics that move once a part."""
    tree = {
        "embeddings": {"backend": "plain"},
        "mixing": {"kind": "home", "experts": 2},
        "heads": {"kind": "towers", "dropout": 0.5},
    }
    model = build_model(data.schema, ModelConfig.parse(tree, where="model"), seed=0).train()
    days = open_days(data.directory, ["2026-01-01"], encoder=data.encoder)
    batch = next(in_order(days, batch_size=100)).batch
    fresh = {name: item.clone() for name, item in model.program.named_buffers()}
    model.embeddings.set_learning_rate(0.0)
    objective = build_objective(data.schema, ObjectiveConfig())
    forward = Forward(model, objective, precision="float32")
    weights_T = objective.task_weights_T
    began = torch.get_rng_state()
    build_backward(forward, Plain(weights_T), parts=parts)(batch, 0)
    kept = {name: item.clone() for name, item in model.program.named_buffers()}
    generator = torch.get_rng_state()

    torch.set_rng_state(began)
    for name, item in model.program.named_buffers():
        item.copy_(fresh[name])
    curious = Curious(weights_T)
    backward = build_backward(forward, curious, parts=parts)
    repeat = backward.repeat(batch)
    first = backward(batch, 0)
    assert torch.equal(first.by_task_T, curious.foreseen.by_task_T)
    second = repeat()
    assert torch.equal(first.by_task_T, second.by_task_T)
    assert not second.total.requires_grad
    assert differing(kept, dict(model.program.named_buffers())) == set()
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.equal(first.by_task_T, forward.loss(batch).by_task_T)
