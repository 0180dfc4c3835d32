"""A step in parts is the step of the whole batch, tables and their optimizer included; the model sees one at a time."""

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.experiment import Experiment, load_experiment
from recsys.run import open_run
from recsys.training.accumulation import _cuts
from recsys.training.balancing.surgery import Surgery
from recsys.training.journal import read_records
from recsys.training.objective import Loss
from recsys.training.trainer import Training, train
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import TOML
from tests.recsys.test_workers import assert_close, losses_of, state_of

# Sums over rows in another order differ by rounding.
TOLERANCE = 1e-5
# Two tasks are left, and nothing of the funnel.
TWO = "objective.weights={ purchase = 0 }"
HOME = 'model.mixing={ kind = "home", experts = 2, meta_hidden = [8], task_hidden = [8] }'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("data"))
    # Dropout would draw other numbers.
    text = TOML.replace(", expert_dropout = 0.1", "").replace("log_every = 4", "log_every = 1")
    (found.root / "experiment.toml").write_text(text, encoding="utf-8")
    return found


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    return load_experiment(data.root / "experiment.toml", overrides=overrides)


def balanced(kind: str) -> str:
    return f'objective.balance={{ kind = "{kind}" }}'


def weights_of(run: Path) -> list[dict[str, float]]:
    records = read_records(run / "metrics.jsonl")
    return [record["weight_by_task"] for record in records if record["kind"] == "training"]


def trained(data: SmallData, run: Path, *overrides: str) -> Path:
    train(experiment_of(data, *overrides), run)
    return run


@pytest.mark.parametrize(
    ("backend", "more"),
    [
        ("plain", ()),
        ("torchrec", ()),
        ("torchrec", ('objective.balance={ kind = "uncertainty" }',)),
        ("torchrec", ('model.bottom={ kind = "dtrn" }', "objective.order_penalty=0")),
    ],
    ids=["plain", "torchrec", "uncertainty", "dtrn"],
)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(
    data: SmallData, tmp_path: Path, backend: str, more: tuple[str, ...]
) -> None:
    """550 rows in batches of 64: the last one, of 38 rows, is no multiple of three."""
    alike = (f"model.embeddings.backend={backend}", "train.steps=9", *more)
    whole = trained(data, tmp_path / "whole", *alike)
    parts = trained(data, tmp_path / "parts", "train.accumulate=3", *alike)

    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=TOLERANCE)
    assert_close(state_of(parts), state_of(whole), TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "backend", "more"),
    [
        ("gradnorm", "torchrec", ()),
        ("pcgrad", "torchrec", ()),
        # A task's own experts lie beside the shared ones in one tensor.
        ("cagrad", "plain", ('model.mixing={ kind = "cgc", expert_hidden = [8] }',)),
        ("config", "plain", ()),
        ("famo", "torchrec", ()),
        ("pcgrad", "plain", (TWO,)),
        ("famo", "plain", (TWO,)),
    ],
)
def test_tasks_gradients_are_combined_once_a_batch(
    data: SmallData, tmp_path: Path, kind: str, backend: str, more: tuple[str, ...]
) -> None:
    """Three tasks, one given another, or two; what a method has learned and its weights are alike, too."""
    alike = (balanced(kind), f"model.embeddings.backend={backend}", "train.steps=5", *more)
    whole = trained(data, tmp_path / "whole", *alike)
    parts = trained(data, tmp_path / "parts", "train.accumulate=3", *alike)

    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=TOLERANCE)
    for found, expected in zip(weights_of(parts), weights_of(whole), strict=True):
        assert found == pytest.approx(expected, rel=10 * TOLERANCE)
    assert_close(state_of(parts), state_of(whole), TOLERANCE)


def test_a_combination_of_each_parts_gradients_would_be_noticed(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = (balanced("config"), "train.steps=1", "train.accumulate=3")
    batch = trained(data, tmp_path / "batch", *alike)
    backward = Surgery.backward

    def combine_often(self: Surgery, shares: Iterable[Loss], step: int, **rest: Any) -> None:
        for share in shares:
            backward(self, [share], step, **rest)

    monkeypatch.setattr(Surgery, "backward", combine_often)
    part = trained(data, tmp_path / "part", *alike)

    name = "program/mixing.bank.weights.0"
    assert (state_of(part)[name] - state_of(batch)[name]).abs().max() > 100 * TOLERANCE


def test_an_update_of_the_tables_a_part_would_be_noticed(data: SmallData, tmp_path: Path) -> None:
    """Steps of a third of the rows with a third of the rates: what a loop around whole steps would do."""
    whole = trained(data, tmp_path / "whole", "train.steps=3")
    rates = ("optimizer.embedding_lr=0.0333", "optimizer.dense_lr=0.00333")
    often = trained(data, tmp_path / "often", "data.batch_size=22", "train.steps=9", *rates)

    sums = [state_of(run)["table_optimizer/item"] for run in (whole, often)]
    assert (sums[0] - sums[1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(("kind", "passes"), [("none", 1), ("pcgrad", 1), ("famo", 3)])
def test_the_program_sees_one_part_at_a_time(
    data: SmallData, tmp_path: Path, kind: str, passes: int
) -> None:
    """FAMO asks for a batch's losses before and after; none keeps a part's tensors while the next is computed."""
    seen: list[int] = []
    kept: list[weakref.ref[Tensor]] = []
    with_parts = experiment_of(data, "train.accumulate=4", "train.steps=2", balanced(kind))
    train(with_parts, tmp_path / "run")
    training = Training(open_run(tmp_path / "run"))

    def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert not [ref for ref in kept if ref() is not None]
        seen.append(inputs[0].shape[0])
        # The towers need it for their backward pass.
        kept.append(weakref.ref(output))

    training.model.program.get_submodule("mixing").register_forward_hook(watch)
    training.advance(next(training.feed.batches()).batch)

    assert seen == [16] * 4 * passes


def test_a_normalisation_sees_each_part_by_itself(data: SmallData, tmp_path: Path) -> None:
    """HoME's running statistics move once a part: 1 - 0.9^2 of the way to a constant mean in a step of two parts."""
    whole, parts = (
        trained(data, tmp_path / str(count), f"train.accumulate={count}", "train.steps=1", HOME)
        for count in (1, 2)
    )
    means = [
        state_of(run)["program/mixing.meta.bank.norm.running_mean"].norm() for run in (whole, parts)
    ]
    assert float(means[1] / means[0]) == pytest.approx(1.9, rel=0.05)


def test_parts_of_less_rows_than_a_normalisation_needs_are_refused(
    data: SmallData, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size is 64 in 4 parts .* at least 128 rows"):
        train(experiment_of(data, HOME, "train.accumulate=4"), tmp_path / "run")


def test_parts_cover_all_rows_once_and_may_be_empty() -> None:
    assert list(_cuts(7, 3)) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert [cut.stop - cut.start for cut in _cuts(1, 3)] == [0, 0, 1]
