"""The moving average of dense weights: by hand, in checkpoints, in what is validated, and after a kill."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recsys.days import open_days
from recsys.evaluation.evaluate import outcomes_of
from recsys.evaluation.metrics import evaluate_tasks
from recsys.experiment import Experiment, load_experiment
from recsys.publish import read_version, versions
from recsys.run import CHECKPOINT_KIND, load_run
from recsys.tensor_files import read_tensors
from recsys.training.averages import Averages
from recsys.training.selection import numbers_of
from recsys.training.trainer import train
from tests.recsys.small_data import SmallData, small_data
from tests.recsys.test_training import TOML, killed_after, records_of
from tests.recsys.test_workers import last_validation

DECAY = 0.8
STEPS = 6
HOME = (
    'model.mixing={ kind = "home", experts = 2, meta_hidden = [8], task_hidden = [8] }',
    f"train.steps={STEPS}",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=100",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    found = small_data(tmp_path_factory.mktemp("data"))
    (found.root / "experiment.toml").write_text(TOML, encoding="utf-8")
    return found


def experiment_of(data: SmallData, *overrides: str) -> Experiment:
    return load_experiment(data.root / "experiment.toml", overrides=(*HOME, *overrides))


@pytest.fixture(scope="module")
def runs(data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training without averages and with them."""
    folder = tmp_path_factory.mktemp("runs")
    train(experiment_of(data), folder / "plain")
    train(experiment_of(data, f"train.ema={DECAY}"), folder / "averaged")
    return folder / "plain", folder / "averaged"


def programs(run: Path, name: str = "program") -> list[dict[str, Tensor]]:
    """What is stored after each step."""
    root = run / "checkpoints"
    by_step = {
        int(read_version(root / version, kind=CHECKPOINT_KIND).metadata["step"]): version
        for version in versions(root)
    }
    return [
        read_tensors(root / by_step[step] / f"{name}.safetensors") for step in range(1, STEPS + 1)
    ]


def test_averages_are_those_of_a_hand() -> None:
    """With decay 1/2 weights 1, 2, 4 have the averages 1, (1/2 + 2) / (3/2), (1/4 + 2/2 + 4) / (7/4)."""
    module = nn.Linear(1, 1, bias=False)
    averages = Averages(module, decay=0.5)
    found = []
    for step, weight in enumerate((1.0, 2.0, 4.0)):
        nn.init.constant_(module.weight, weight)
        averages.after_step(step)
        with averages.in_place():
            found.append(module.weight.item())
        assert module.weight.item() == weight
    assert found == pytest.approx([1.0, 5 / 3, 3.0], rel=1e-6)


def test_a_checkpoints_program_is_the_average_of_all_steps_before(
    runs: tuple[Path, Path],
) -> None:
    """Running statistics too. The weights of every step come from the run without averages."""
    plain, averaged = map(programs, runs)
    assert any("running_var" in name for name in plain[0])
    for step in range(STEPS):
        shares = [DECAY ** (step - before) for before in range(step + 1)]
        for name, found in averaged[step].items():
            terms = [share * plain[i][name].double() for i, share in enumerate(shares)]
            expected = torch.stack(terms).sum(dim=0) / sum(shares)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_training_itself_does_not_notice(runs: tuple[Path, Path]) -> None:
    plain, averaged = runs
    for expected, found in zip(programs(plain), programs(averaged, "trained_program"), strict=True):
        assert all(torch.equal(found[name], item) for name, item in expected.items())
    assert (
        not (plain / "checkpoints" / versions(plain / "checkpoints")[-1])
        .joinpath("trained_program.safetensors")
        .exists()
    )


def test_what_is_validated_is_what_a_reader_of_the_checkpoint_gets(
    data: SmallData, runs: tuple[Path, Path]
) -> None:
    records = [last_validation(run) for run in runs]
    assert records[0]["entries"] != records[1]["entries"]
    run = load_run(runs[1], checkpoint="CURRENT")
    days = open_days(data.directory, ["2026-01-03"], encoder=run.encoder)
    outcomes = outcomes_of(run.model, days, batch_size=run.experiment.evaluation.batch_size)
    found = {entry.name: numbers_of(entry) for entry in evaluate_tasks(outcomes, run.schema.tasks)}
    assert records[1]["entries"] == {
        name: pytest.approx(numbers, rel=1e-6) for name, numbers in found.items()
    }


def test_a_killed_run_goes_on_bit_for_bit(
    data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: tuple[Path, Path]
) -> None:
    asked = experiment_of(data, f"train.ema={DECAY}")
    with killed_after(monkeypatch, 3):
        train(asked, tmp_path / "run")
    train(asked, tmp_path / "run", resume=True)
    for name in ("program", "trained_program"):
        whole, resumed = programs(runs[1], name)[-1], programs(tmp_path / "run", name)[-1]
        assert all(torch.equal(resumed[key], item) for key, item in whole.items())
    assert records_of(tmp_path / "run") == records_of(runs[1])


def test_without_a_decay_nothing_is_kept() -> None:
    averages = Averages(nn.Linear(2, 2), decay=None)
    averages.after_step(0)
    assert not averages.present
