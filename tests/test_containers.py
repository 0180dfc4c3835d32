"""The container files describe what the repository holds. Needs no engine; `docker compose` judges where it runs."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import require

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_built_here_and_drops_every_privilege(name: str) -> None:
    service = COMPOSE["services"][name]
    assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_reachable_from_this_machine_only(name: str) -> None:
    ports = COMPOSE["services"][name].get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_what_a_service_names_is_declared(name: str) -> None:
    service = COMPOSE["services"][name]
    assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
    sources = [volume.rpartition(":/")[0] for volume in service.get("volumes", [])]
    assert {source for source in sources if source.isidentifier()} <= COMPOSE["volumes"].keys()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_copies_what_exists_and_runs_without_root(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1].isdigit()
    copied = [
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for source in sources.split()
    ]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    assert all((ROOT / source).exists() and f"!{source}" in ignored for source in copied)


def test_the_serving_image_installs_no_training_packages() -> None:
    text = (ROOT / "deploy" / "Dockerfile.serve").read_text(encoding="utf-8")
    assert re.findall(r"\.\[(\w+)\]", text) == ["serve"]


def test_the_serving_image_starts_a_command_that_exists() -> None:
    import typer

    from recsys.cli import app

    text = (ROOT / "deploy" / "Dockerfile.serve").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ENTRYPOINT \[(.+)\]$", text, re.MULTILINE)
    _, name, _, *options = re.findall(r'"([^"]+)"', command)
    parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    known = {flag for parameter in parameters for flag in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


def test_compose_accepts_the_file() -> None:
    require("docker-compose")
    command = ["docker", "compose", "--profile", "train", "config", "--quiet"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
