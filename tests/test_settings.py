"""Every setting a user can write is documented, and the documented files are valid."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines.plan import Pipeline
from recsys.config import Config
from recsys.experiment import Experiment
from recsys.models import registries
from recsys.schema import Schema

DOCS = Path(__file__).resolve().parent.parent / "docs"


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections(argument)


def _settings(section: type[BaseModel]) -> set[str]:
    """Names of a section's fields and of those of all sections below it."""
    names = {field.alias or name for name, field in section.model_fields.items()}
    for field in section.model_fields.values():
        for below in _sections(field.annotation):
            names |= _settings(below)
    return names


def _words(*documents: str) -> set[str]:
    text = "\n".join((DOCS / document).read_text(encoding="utf-8") for document in documents)
    return set(re.findall(r"[A-Za-z_]\w*", text))


@pytest.mark.parametrize(
    ("document", "root"),
    [("schema.md", Schema), ("experiment.md", Experiment), ("pipeline.md", Pipeline)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_setting_stands_in_its_document(document: str, root: type[Config]) -> None:
    # The sections of architectures have a document of their own.
    undocumented = _settings(root) - _words(document, "models.md") - {"tokens"}

    assert not undocumented, f"docs/{document} does not mention {sorted(undocumented)}"


def test_every_setting_of_every_architecture_stands_in_its_document() -> None:
    settings = {
        name
        for registry in registries.values()
        for stage in registry.values()
        for name in stage.Config.model_fields
    }

    assert not settings - _words("models.md")


def test_every_architecture_stands_in_its_document_with_its_settings() -> None:
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    for registry in registries.values():
        for kind, stage in registry.items():
            (row,) = re.findall(rf"^\| `{kind}` \|.*$", text, re.MULTILINE)
            assert set(stage.Config.model_fields) - {"kind"} <= set(re.findall(r"\w+", row)), kind


@pytest.mark.parametrize(
    ("document", "root"), [("schema.md", Schema), ("experiment.md", Experiment)]
)
def test_the_documented_file_is_valid(document: str, root: type[Config]) -> None:
    first = re.search(
        r"^```toml\n(.*?)^```$", (DOCS / document).read_text(), re.MULTILINE | re.DOTALL
    )

    assert first is not None
    root.parse(tomllib.loads(first[1]), where=document)
