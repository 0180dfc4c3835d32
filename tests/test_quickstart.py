"""`recsys quickstart` as a newcomer runs it: one file in, a report and a served bundle out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from recsys.errors import ConfigError

ROWS = 1500


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    user, item = random.integers(0, 60, ROWS), random.integers(0, 40, ROWS)
    likes = random.normal(size=60)[user] + random.normal(size=40)[item]
    minutes = np.sort(random.integers(0, 6 * 1440, ROWS))
    shown = np.datetime64("2026-10-01T00:00:00") + minutes.astype("timedelta64[m]")
    columns = {
        "user_id": [f"u{number}" for number in user],
        "item_id": item,
        "price": np.exp(random.normal(size=40))[item].round(2),
        "shown_at": [str(value) for value in shown],
        "clicked": (random.random(ROWS) < 1 / (1 + np.exp(-likes))).astype(int),
    }
    file = tmp_path_factory.mktemp("quickstart") / "log.csv"
    pa.csv.write_csv(pa.table(columns), file)
    return file


@pytest.fixture(scope="module")
def served(log: Path) -> Path:
    """The folder of a quickstart that ended with a bundle; the command's output lies beside it."""
    out = log.parent / "out"
    result = CliRunner().invoke(app, ["quickstart", str(log), "--out", str(out), "--no-serve"])
    assert result.exception is None, result.output
    (log.parent / "output").write_text(result.stdout)
    return out


def test_one_command_leads_from_a_file_to_a_report_and_a_bundle(served: Path) -> None:
    said = (served.parent / "output").read_text()
    assert "tasks: clicked" in said
    assert "std. err." in said
    assert f"recsys serve {served / 'bundle'}" in said
    report = json.loads(next((served / "report").glob("*/report.json")).read_text())
    assert report["entries"][0]["name"] == "clicked"
    assert {"schema.toml", "pipeline.toml", "experiment.toml", "encoder", "data", "run"} <= {
        path.name for path in served.iterdir()
    }


def test_the_request_it_writes_is_of_held_out_rows_and_is_answered(served: Path) -> None:
    from serving.ranker import Ranker

    tree = json.loads((served / "request.json").read_text())
    days = json.loads(next((served / "report").glob("*/report.json")).read_text())["days"]
    assert tree["context"]["features"]["shown_at"][:10] in [item["day"] for item in days]
    ranker = Ranker.load(served / "bundle")
    answer = ranker.rank(ranker.wire.decode((served / "request.json").read_bytes()))
    assert sorted(answer.tree["order"].tolist()) == [0, 1, 2, 3, 4]


def test_an_earlier_quickstart_is_replaced_only_when_asked(served: Path, log: Path) -> None:
    again = ["quickstart", str(log), "--out", str(served), "--no-serve"]
    refused = CliRunner().invoke(app, again)
    assert isinstance(refused.exception, ConfigError)
    assert "--force" in str(refused.exception)
    (served / "note.txt").write_text("mine")
    before = (served / "bundle" / "CURRENT").read_text()
    assert CliRunner().invoke(app, [*again, "--force"]).exception is None
    assert (served / "bundle" / "CURRENT").read_text() != before
    assert (served / "note.txt").read_text() == "mine"


def test_a_wrong_label_is_named_before_anything_is_written(log: Path, tmp_path: Path) -> None:
    command = ["quickstart", str(log), "--label", "click", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError)
    assert "'clicked'" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_ends_by_serving_what_it_trained(log: Path, tmp_path: Path) -> None:
    ready = tmp_path / "url"
    command = [sys.executable, "-c", "from recsys.cli import main; main()", "quickstart"]
    options = ["--out", "out", "--port", "0", "--metrics-port", "0", "--ready-file", str(ready)]
    process = subprocess.Popen(
        [*command, str(log), *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 300
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert ready.exists(), process.communicate()[1].decode()
        body = (tmp_path / "out" / "request.json").read_bytes()
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(ready.read_text().strip() + "/v1/rank", content=body, headers=headers)
        assert answer.status_code == 200
        assert len(answer.json()["score"]) == 5
    finally:
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, told
    assert told.rstrip().endswith("serve.stopped")
