"""What tests may ask for by name, and the marks that ask for them.

A test that needs something a machine may lack calls `require("promtool")`, or carries the mark `ray`, `gpu` or
`browser`. Where the thing is missing the test is skipped with the reason; where the environment variable
RECSYS_REQUIRE (names, separated by commas) lists it, that skip is a failure.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def _on_path(*programs: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(program) for program in programs)


def _gpu_is_usable() -> bool:
    import torch

    return torch.cuda.is_available()


def _docker_compose_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    command = ["docker", "compose", "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


PROBES: dict[str, Callable[[], bool]] = {
    "browser": _on_path("chromium", "google-chrome"),
    "docker-compose": _docker_compose_runs,
    "gpu": _gpu_is_usable,
    "promtool": _on_path("promtool"),
    "ray": lambda: importlib.util.find_spec("ray") is not None,
    "recsys_data": lambda: Path(os.environ.get("RECSYS_DATA", "/nonexistent")).is_dir(),
    "redis": _on_path("redis-server"),
}
_MARKS = ("browser", "gpu", "ray")


def required_names() -> set[str]:
    """The names that RECSYS_REQUIRE lists."""
    return {name for name in os.environ.get("RECSYS_REQUIRE", "").split(",") if name}


def require(name: str) -> None:
    """Return when this machine has the thing; else skip, or fail where RECSYS_REQUIRE lists it."""
    if PROBES[name]():
        return
    if name in required_names():
        pytest.fail(
            f"RECSYS_REQUIRE lists {name}, but this machine does not have it", pytrace=False
        )
    pytest.skip(f"this machine has no {name}")


def pytest_configure() -> None:
    if unknown := required_names() - PROBES.keys():
        raise pytest.UsageError(
            f"RECSYS_REQUIRE: unknown {', '.join(sorted(unknown))}; known: {', '.join(PROBES)}"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _MARKS:
        if item.get_closest_marker(name):
            require(name)


@pytest.fixture(scope="session")
def recsys_data() -> Path:
    """The folder of public data sets that RECSYS_DATA names."""
    require("recsys_data")
    return Path(os.environ["RECSYS_DATA"])
