"""A step in parts is the step of the whole batch, tables and their optimizer included; the model sees one at a time."""

from pathlib import Path

import pytest
import torch

from recsys.errors import ConfigError
from recsys.experiment import Experiment, load_experiment
from recsys.run import open_run
from recsys.training.accumulation import _cuts
from recsys.training.trainer import Training, train
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import TOML
from tests.recsys.test_workers import assert_close, losses_of, state_of

# Sums over rows in another order differ by rounding.
TOLERANCE = 1e-5
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


def test_an_update_of_the_tables_a_part_would_be_noticed(data: SmallData, tmp_path: Path) -> None:
    """Steps of a third of the rows with a third of the rates: what a loop around whole steps would do."""
    whole = trained(data, tmp_path / "whole", "train.steps=3")
    rates = ("optimizer.embedding_lr=0.0333", "optimizer.dense_lr=0.00333")
    often = trained(data, tmp_path / "often", "data.batch_size=22", "train.steps=9", *rates)

    sums = [state_of(run)["table_optimizer/item"] for run in (whole, often)]
    assert (sums[0] - sums[1]).abs().max() > 100 * TOLERANCE


def test_the_program_sees_one_part_at_a_time(data: SmallData, tmp_path: Path) -> None:
    seen: list[int] = []
    with_parts = experiment_of(data, "train.accumulate=4", "train.steps=2")
    train(with_parts, tmp_path / "run")
    training = Training(open_run(tmp_path / "run"))
    training.model.program.mixing.register_forward_pre_hook(  # type: ignore[operator]
        lambda module, inputs: seen.append(inputs[0].shape[0])
    )
    with torch.no_grad():
        batch = next(training.feed.batches()).batch
    training.advance(batch)

    assert seen == [16] * 4


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


@pytest.mark.parametrize("kind", ["gradnorm", "pcgrad", "cagrad", "config", "famo"])
def test_methods_that_look_at_a_whole_batchs_gradients_are_refused(
    data: SmallData, tmp_path: Path, kind: str
) -> None:
    asked = experiment_of(
        data, f'objective.balance={{ kind = "{kind}" }}', "train.accumulate=2", "train.steps=1"
    )
    with pytest.raises(ConfigError, match=r"train.accumulate is 2, and this method of"):
        train(asked, tmp_path / "run")


def test_parts_cover_all_rows_once_and_may_be_empty() -> None:
    assert list(_cuts(7, 3)) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert [cut.stop - cut.start for cut in _cuts(1, 3)] == [0, 0, 1]
