"""The checkpoint that a run began from, as the run keeps it: what makes a chain of runs out of daily trainings."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import ArtifactError

FILE = "parent.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Parent:
    """A checkpoint of another run: the run's directory, the checkpoint's version, digest and step."""

    run: Path
    checkpoint: str
    digest: str
    step: int

    def to_json(self, directory: Path) -> str:
        """This as JSON, its path relative to a directory."""
        start = os.path.abspath(directory)
        run = Path(os.path.relpath(os.path.abspath(self.run), start)).as_posix()
        tree = {"format_version": FORMAT_VERSION, **vars(self), "run": run}
        return json.dumps(tree, indent=1)


def read_parent(directory: Path) -> Parent | None:
    """What the run in a directory began from; None where it began anew. Raises ArtifactError for a damaged file."""
    file = directory / FILE
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        run = Path(os.path.normpath(directory / tree["run"]))
        return Parent(run, str(tree["checkpoint"]), str(tree["digest"]), int(tree["step"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); train again") from error
