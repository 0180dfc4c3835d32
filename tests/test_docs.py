"""Documentation is executed: what a reader can copy works, in the order in which it stands.

The `sh` and `python` blocks of README and of each file in docs/ run from top to bottom, one process each, in one empty
folder a document. `toml` blocks must parse; `<!-- file: name -->` above one writes it into that folder.
`<!-- no-test: reason -->` above a block leaves it out; the reasons are printed (pytest -rP).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<order>no-test|file): (?P<value>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BLOCK_SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block, where it stands and what the comment above it orders."""

    place: str
    language: str
    text: str
    order: str | None
    value: str | None


def _blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            place=f"{document.name}:{text.count(chr(10), 0, match.start()) + 1}",
            language=match["language"],
            text=match["text"],
            order=match["order"],
            value=match["value"],
        )
        for match in BLOCK.finditer(text)
    ]


def _run(block: Block, folder: Path) -> None:
    """Run a block as its reader would; whatever it started ends with it."""
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    command = shell if block.language == "sh" else [sys.executable, "-c", block.text]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=BLOCK_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{block.place} ends with {process.returncode}:\n{output}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_a_document_works_in_order(document: Path, tmp_path: Path) -> None:
    for block in _blocks(document):
        if block.order == "no-test":
            continue
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.order == "file":
            (tmp_path / str(block.value)).write_text(block.text, encoding="utf-8")
        if block.language in ("sh", "python"):
            _run(block, tmp_path)


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("text\n\n```sh\ntrue\n```\n\n```python\nraise SystemExit(3)\n```\n")
    good, bad = _blocks(document)
    _run(good, tmp_path)
    with pytest.raises(AssertionError, match=r"wrong\.md:7 ends with 3"):
        _run(bad, tmp_path)


def test_a_block_is_left_out_only_with_a_reason() -> None:
    left_out = [block for path in DOCUMENTS for block in _blocks(path) if block.order == "no-test"]
    print("\n".join(f"{block.place}: {block.value}" for block in left_out))  # noqa: T201
    assert all(len(str(block.value).split()) >= 2 for block in left_out)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_inside_the_repository_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (document.parent / target).exists()]


def test_continuous_integration_runs_the_two_commands_of_the_readme() -> None:
    first = next(block for block in _blocks(ROOT / "README.md") if block.language == "sh")
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in commands if line in first.text.splitlines()] == first.text.splitlines()
    assert len(first.text.splitlines()) == 2


def test_the_readme_lists_every_command() -> None:
    from recsys.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE))
    group = typer.main.get_command(app)
    assert listed == set(group.commands)  # type: ignore[attr-defined]
