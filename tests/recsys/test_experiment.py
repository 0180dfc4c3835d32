"""experiment.toml: what it may say, how its mistakes are reported, and how a run keeps it."""

import os
from datetime import date
from pathlib import Path

import pytest

from recsys.day_names import DayRange
from recsys.errors import ConfigError
from recsys.experiment import Experiment, load_experiment
from tests.recsys.small_data import SCHEMA_TOML

TOML = """
[data]
train      = { from = "2026-01-30", to = "2026-02-02" }
validation = "2026-02-03"
test       = ["2026-02-04", "holdout"]
batch_size = 128

[model]
bottom = { kind = "flat" }
mixing = { kind = "mmoe", experts = 4, expert_hidden = [16] }

[objective]
weights = { purchase = 2.0 }

[train]
steps = 10
"""


def written(folder: Path, text: str = TOML) -> Path:
    (folder / "schema.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    file = folder / "experiment.toml"
    file.write_text(text, encoding="utf-8")
    return file


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(written(folder, text), overrides=overrides).load_schema()
    return str(caught.value)


def test_days_are_ranges_names_or_lists(tmp_path: Path) -> None:
    data = load_experiment(written(tmp_path)).data
    assert data.train == DayRange(date(2026, 1, 30), date(2026, 2, 2))
    assert data.validation == ("2026-02-03",)
    assert data.test == ("2026-02-04", "holdout")


def test_dates_may_be_written_without_quotes(tmp_path: Path) -> None:
    text = TOML
    for day in ("2026-01-30", "2026-02-02", "2026-02-03", "2026-02-04"):
        text = text.replace(f'"{day}"', day)
    assert load_experiment(written(tmp_path, text)) == load_experiment(written(tmp_path))


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path))
    assert experiment.schema_file == tmp_path / "schema.toml"
    assert experiment.data.directory == tmp_path / "data"
    assert experiment.data.encoder == tmp_path / "encoder"


def test_overrides_are_typed_as_toml(tmp_path: Path) -> None:
    overrides = (
        "train.steps=200",
        "optimizer.dense_lr = 0.5",
        "data.validation=later",
        'train.precision="bf16"',
        "model.mixing={kind='shared_bottom'}",
        "evaluation.reference.click=clicked_oracle",
    )
    experiment = load_experiment(written(tmp_path), overrides=overrides)
    assert experiment.train.steps == 200
    assert experiment.optimizer.dense_lr == 0.5
    assert experiment.data.validation == ("later",)
    assert experiment.train.precision == "bf16"
    assert experiment.model.mixing.kind == "shared_bottom"
    assert experiment.evaluation.reference == {"click": "clicked_oracle"}


def test_the_json_of_a_run_reads_back_equal_and_moves_with_its_data(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    experiment = load_experiment(written(home))
    (home / "run" / "experiment.json").write_text(
        experiment.to_json(home / "run"), encoding="utf-8"
    )
    assert load_experiment(home / "run" / "experiment.json") == experiment
    os.rename(home, tmp_path / "moved")
    moved = load_experiment(tmp_path / "moved" / "run" / "experiment.json")
    assert moved.data.directory == tmp_path / "moved" / "data"
    assert moved.load_schema().task_names == ("click", "purchase", "watch")


def test_differences_name_keys_and_values(tmp_path: Path) -> None:
    one, other = (
        load_experiment(written(tmp_path), overrides=[f"train.seed={seed}"]) for seed in (0, 1)
    )
    assert one.differences(one) == ()
    assert one.differences(other) == ("train.seed: 0, not 1",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[train]\nsteps", "[train]\nstep", "unknown key 'train.step' (did you mean 'steps'?)"),
        ('kind = "mmoe"', 'kind = "mmeo"', "(did you mean 'mmoe'?)"),
        ("experts = 4", "expert = 4", "(did you mean 'experts'?)"),
        ("steps = 10", 'steps = "ten"', "train.steps"),
        ("steps = 10", "steps = 0", "train.steps"),
        ('to = "2026-02-02"', 'until = "2026-02-02"', "needs from and to"),
        ('to = "2026-02-02"', 'to = "2026-01-01"', "backwards"),
        ('to = "2026-02-02"', 'to = "2026-02-30"', "'2026-02-30' is no day"),
        ('"2026-02-04", "holdout"', "", "names no day"),
        ('"2026-02-04", "holdout"', '"a", "a"', "names a day twice"),
        ('"2026-02-04", "holdout"', '"../a"', "is not the name of a day"),
        (
            'validation = "2026-02-03"',
            'validation = "2026-02-01"',
            "validation and train both name '2026-02-01'",
        ),
        ("purchase = 2.0", "purchse = 2.0", "no task 'purchse'"),
        ("purchase = 2.0", "click = 0.0, purchase = 0.0, watch = 0.0", "every task weighs 0"),
        ("purchase = 2.0", "purchase = -1.0", "objective.weights.purchase"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_path(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TOML
    found = refused(tmp_path, TOML.replace(old, new))
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("click = 'clicked_orcle'", "did you mean 'clicked_oracle'?"),
        ("click = 'user_id'", "column 'user_id' is string"),
        ("watch = 'clicked_oracle'", "task 'watch' is a regression"),
        ("clik = 'clicked_oracle'", "no task 'clik'"),
    ],
)
def test_a_reference_must_be_a_kept_probability_of_a_binary_task(
    tmp_path: Path, reference: str, message: str
) -> None:
    assert message in refused(tmp_path, f"{TOML}\n[evaluation]\nreference = {{ {reference} }}\n")


@pytest.mark.parametrize("override", ["train.steps", "=3", "train..steps=3", "data.batch_size.x=1"])
def test_an_override_that_names_no_value_is_refused(tmp_path: Path, override: str) -> None:
    assert "--set" in refused(tmp_path, TOML, override)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_experiment(tmp_path / "none.toml")
    (tmp_path / "damaged.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_experiment(tmp_path / "damaged.json")


def test_defaults_alone_need_only_days(tmp_path: Path) -> None:
    text = '[data]\ntrain = "train"\nvalidation = "validation"\n'
    assert isinstance(load_experiment(written(tmp_path, text)), Experiment)
