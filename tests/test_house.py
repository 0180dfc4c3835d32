"""The house holds: what an import loads and does, who imports whom, what an installation pulls in."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("recsys", "pipelines", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints, started in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _loaded_by(modules: list[str], folder: Path) -> set[str]:
    """Top-level packages in memory once the modules are imported."""
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint(*sys.modules)"
    return {name.partition(".")[0] for name in _python(code, folder).split()}


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (["recsys.schema", "recsys.encode"], {"torch", "torchrec", "ray", "fastapi"}),
        (["recsys.bundle", "recsys.report", "recsys.compare"], {"torch", "torchrec", "ray"}),
        (["serving"], {"torch", "torchrec", "fbgemm_gpu", "ray", "pipelines"}),
        (["pipelines"], {"torch", "torchrec", "fbgemm_gpu", "fastapi", "serving"}),
        (["recsys.cli"], {"torch", "torchrec", "ray", "fastapi", "onnxruntime"}),
        (["recsys.training.trainer"], {"torchrec", "fbgemm_gpu", "ray", "fastapi"}),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, list) else "",
)
def test_import_leaves_heavy_packages_unloaded(
    modules: list[str], forbidden: set[str], tmp_path: Path
) -> None:
    names = [
        _module(path)
        for path in SOURCES
        for name in modules
        if name in PACKAGES and path.match(f"{name}/**/*.py")
    ]
    assert not _loaded_by(names or modules, tmp_path) & forbidden


@pytest.mark.parametrize("package", PACKAGES)
def test_import_does_nothing_but_define(package: str, tmp_path: Path) -> None:
    names = [_module(path) for path in SOURCES if path.is_relative_to(ROOT / package)]
    # fbgemm logs on import, which sets the root logger up: a library's doing, not ours.
    code = f"""
import logging, threading
if {package == "recsys"}: import torchrec
logging.getLogger().handlers.clear()
for name in {names!r}: __import__(name)
print([thread.name for thread in threading.enumerate()], logging.getLogger().handlers)
"""
    assert _python(code, tmp_path).strip() == "['MainThread'] []"
    assert not list(tmp_path.iterdir())


def _lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=root,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_room_imports_only_what_it_may() -> None:
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("recsys/schema.py", "import torch", "recsys.schema -> torch"),
        ("recsys/collate.py", "import recsys.bundle", "recsys.collate -> recsys.bundle"),
        ("recsys/encode.py", "import recsys.feed", "recsys.encode -> recsys.feed"),
        ("recsys/report.py", "import ray", "recsys.report -> ray"),
        ("recsys/models/__init__.py", "import torchrec", "recsys.models -> torchrec"),
        ("recsys/training/__init__.py", "import pipelines", "recsys.training -> pipelines"),
        ("pipelines/__init__.py", "import recsys.batch", "pipelines -> recsys.batch"),
        ("pipelines/__init__.py", "import recsys.days", "pipelines -> recsys.days"),
        ("serving/__init__.py", "import recsys.training", "serving -> recsys.training"),
        ("serving/__init__.py", "import onnxruntime", "serving -> onnxruntime"),
        ("recsys/room_without_a_place.py", "", "recsys.room_without_a_place"),
    ],
)
def test_a_forbidden_import_is_noticed(
    file: str, line: str, complaint: str, tmp_path: Path
) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    result = _lint_imports(tmp_path)
    assert result.returncode == 1
    assert complaint in result.stdout


def test_a_module_is_named_for_what_it_holds_and_is_short() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|managers?|common|misc)(_|$)")
    assert not [path for path in SOURCES if vague.search(path.stem)]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {str(path): length for path, length in lengths.items() if length > 400}


def _project() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _pins() -> dict[str, str]:
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins.items()}


def _installed_for(extra: str) -> set[str]:
    """Names of every package that an extra pulls in, as the installed packages declare it."""
    found: set[str] = set()
    waiting = [Requirement(f"recsys-ranking[{extra}]")]
    while waiting:
        requirement = waiting.pop()
        key = f"{canonicalize_name(requirement.name)}{sorted(requirement.extras)}"
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(requirement.name) or []:
            child = Requirement(text)
            marks = [{"extra": name} for name in requirement.extras] or [{"extra": ""}]
            if child.marker is None or any(child.marker.evaluate(mark) for mark in marks):
                waiting.append(child)
    return {key.partition("[")[0] for key in found} - {"recsys-ranking"}


def test_serving_installs_without_torch() -> None:
    assert not _installed_for("serve") & {
        "torch",
        "torchrec",
        "ray",
        "fbgemm-gpu",
        "fbgemm-gpu-cpu",
    }
    assert "torch" in _installed_for("train"), "this walk finds what an extra pulls in"


def test_every_package_that_an_extra_pulls_in_is_pinned() -> None:
    wanted = set().union(*(_installed_for(extra) for extra in ("serve", "train", "dev")))
    assert not wanted - _pins().keys()


def test_the_environment_holds_the_pinned_versions() -> None:
    installed = {
        canonicalize_name(package.name): package.version.partition("+")[0]
        for package in importlib.metadata.distributions()
    }
    pins = _pins()
    assert not {
        name: (version, pins[name])
        for name, version in installed.items()
        if name in pins and version != pins[name]
    }
