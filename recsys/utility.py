"""The score that candidates are ordered by, as a function of the tasks' entries.

`utility.json`, the only form so far the identity: the score is one entry.

    {"format_version": 1, "name": "default", "version": 1, "formula": "click"}
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.calibrate import TaskScores
from recsys.errors import ArtifactError, ConfigError, nearest
from recsys.layout import entry_names
from recsys.schema import Schema

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Utility:
    """A named, versioned formula. The formula is the name of an entry, such as `click` or `purchase|click`."""

    name: str
    version: int
    formula: str

    def score(self, scores: TaskScores) -> NDArray[np.float64]:
        """One score a row: the calibrated probability, or the regression value, that the formula names."""
        return scores[self.formula]

    def write(self, file: Path) -> None:
        tree = {"format_version": FORMAT_VERSION, **asdict(self)}
        file.write_text(json.dumps(tree, indent=1), encoding="utf-8")


def identity_utility(schema: Schema, formula: str | None = None) -> Utility:
    """The utility `default`: the entry named, else the schema's first task. Raises ConfigError for an unknown entry."""
    entries = entry_names(schema)
    entry = formula or entries[0]
    if entry not in entries:
        raise ConfigError(
            f"utility {entry!r} is not a task{nearest(entry, entries)}; known: {', '.join(entries)}"
        )
    return Utility("default", 1, entry)


def read_utility(file: Path, schema: Schema) -> Utility:
    """The utility of a bundle. Raises ArtifactError when it is damaged or names an entry that the tasks do not give."""
    try:
        tree = json.loads(file.read_bytes())
        version = tree.pop("format_version")
        utility = Utility(**tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file}: not a readable utility ({error}); export again") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file}: format {version}, this release reads {FORMAT_VERSION}; export again"
        )
    if utility.formula not in entry_names(schema):
        raise ArtifactError(
            f"{file}: formula {utility.formula!r} is no entry of this schema; export again"
        )
    return utility
