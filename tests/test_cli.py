"""The command line: every stage has --help, a mistake is one sentence and exit code 2, results are JSON on demand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from recsys.cli import app, main

COMMANDS = [
    str(command.name or command.callback.__name__)
    for command in app.registered_commands
    if command.callback
]


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: object
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """The command line in an empty folder, in this process: its start alone takes a second."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["recsys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return command


def test_the_stages_are_all_there() -> None:
    assert COMMANDS == [
        "quickstart",
        "init",
        "simulate",
        "fit",
        "build",
        "check",
        "rows",
        "plan",
        "train",
        "evaluate",
        "doctor",
        "baseline",
        "compare",
        "export",
        "serve",
        "score",
        "architectures",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_argument_without_loading_a_stage(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app([command, "--help"])

    assert ended.value.code == 0
    assert "Usage: " in capsys.readouterr().out


MISTAKES = [
    (["init", "nowhere.csv"], "recsys: nowhere.csv: no such file; check the path"),
    (["fit", "nowhere.toml"], "recsys: nowhere.toml: no such file; check the path"),
    (
        ["build", "pipeline.toml"],
        "recsys: pipeline.toml: unknown key 'sorce' (did you mean 'source'?)",
    ),
    (["check", "pipeline.toml"], "recsys: pipeline.toml: unknown key 'sorce'"),
    (["plan", "nowhere.toml", "--world-size", "8"], "recsys: nowhere.toml: no such file"),
    (["train", "nowhere.toml"], "recsys: nowhere.toml: no such file"),
    (["evaluate", "nowhere"], "recsys: nowhere"),
    (["doctor", "nowhere"], "recsys: nowhere: holds no run"),
    (["baseline", "nowhere.toml"], "recsys: nowhere.toml: no such file"),
    (["compare", "nowhere", "elsewhere"], "recsys: nowhere: no such report"),
    (["export", "nowhere"], "recsys: nowhere"),
    (["serve", "nowhere"], "recsys: nowhere: no such bundle"),
    (
        ["serve", "nowhere", "--host", "0.0.0.0"],
        "recsys: host '0.0.0.0' is reachable from other machines",
    ),
    (["score", "rows.parquet", "scores.parquet"], "recsys: score: give either --bundle or --url"),
    (["score", "rows.parquet", "s.parquet", "--bundle", "b"], "recsys: rows.parquet: no such file"),
    (["score", ".", "s.parquet", "--bundle", "b"], "recsys: .: is a folder; name one Parquet file"),
    (
        ["score", "text.parquet", "s.parquet", "--bundle", "b"],
        "recsys: text.parquet: not a readable Parquet file",
    ),
    (["simulate", "log", "--rows", "0"], "recsys: "),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES]
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    (tmp_path / "pipeline.toml").write_text('[sorce]\npath = "x"\n')
    (tmp_path / "text.parquet").write_text("no parquet")
    ended = run(*arguments)

    assert ended.code == 2
    assert ended.err.startswith(sentence)
    assert ended.err.count("\n") == 1
    assert ended.out == ""


def test_an_interrupted_training_says_what_is_kept_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Ended]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recsys.training.trainer.train", stop)
    (tmp_path / "e.toml").write_text('[data]\ntrain = ["a"]\nvalidation = ["b"]\n')
    command = ("train", "e.toml", "my run", "--set", "train.seed=3")
    nothing = run(*command)
    (tmp_path / "my run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "my run" / "experiment.json").touch()
    started = run(*command)
    (tmp_path / "my run" / "checkpoints" / "CURRENT").touch()
    reached = run(*command)

    assert [ended.code for ended in (nothing, started, reached)] == [130] * 3
    again = "recsys train e.toml 'my run' --set train.seed=3"
    assert (
        nothing.err == f"recsys: interrupted; nothing was written yet; start again with: {again}\n"
    )
    assert "my run holds no checkpoint of it yet; go on with" in started.err
    assert reached.err == (
        f"recsys: interrupted; my run holds its newest checkpoint; go on with: {again} --resume\n"
    )


def test_a_traceback_only_when_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from recsys.cli import main; main()", "check", "nowhere.toml"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    def stderr(*more: str) -> str:
        result = subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stderr

    assert "Traceback" not in stderr()
    assert "Traceback" in stderr("--traceback")


def test_results_are_json_on_demand(run: Callable[..., Ended]) -> None:
    ended = run("architectures", "--json")

    assert {(item["stage"], item["kind"]) for item in json.loads(ended.out)} >= {
        ("mixing", "mmoe"),
        ("mixing", "shared_bottom"),
        ("bottom", "flat"),
    }
