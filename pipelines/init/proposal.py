"""A proposal of schema.toml, pipeline.toml and experiment.toml for given files: decided, shown, written."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.init.decided import Decided, decide
from pipelines.init.experiment_file import experiment_text
from pipelines.init.labels import Ask
from pipelines.init.pipeline_file import pipeline_text
from pipelines.init.schema_file import said_rate, schema_text
from pipelines.init.tables import read_tables
from pipelines.plan import load_plan
from recsys.errors import ArtifactError, ConfigError

FILES = ("schema.toml", "pipeline.toml", "experiment.toml")


@dataclass(frozen=True)
class Proposal:
    """What the three files will say about some raw files. `write` writes them, `render` says what was decided."""

    decided: Decided

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, the most frequent label first."""
        return tuple(label.task for label in self.decided.labels)

    def texts(self, folder: Path) -> dict[str, str]:
        """The texts of the three files by name, with paths that work from a folder."""
        return {
            "schema.toml": schema_text(self.decided),
            "pipeline.toml": pipeline_text(self.decided, folder),
            "experiment.toml": experiment_text(self.decided),
        }

    def write(self, folder: Path, *, force: bool = False) -> None:
        """Write the three files into a folder, made if need be; all are whole, or none is touched.

        They are loaded once before they take their places. Raises ConfigError when one of them is there already,
        unless `force` says to replace them, and ArtifactError when the folder cannot be written.
        """
        there = [name for name in FILES if (folder / name).exists()]
        if there and not force:
            raise ConfigError(
                f"{folder / there[0]}: is there already; name another folder with --out, or replace it with --force"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".init-", dir=folder) as draft:
                for name, text in self.texts(folder).items():
                    (Path(draft) / name).write_text(text, encoding="utf-8")
                load_plan(Path(draft) / "pipeline.toml")
                for name in FILES:
                    os.replace(Path(draft) / name, folder / name)
        except OSError as error:
            raise ArtifactError(
                f"{folder}: cannot be written ({error.strerror}); choose another place"
            ) from error

    def render(self) -> str:
        """A few lines: what was found, what was decided, and how to decide otherwise."""
        decided = self.decided
        rows = decided.tables.rows
        looked = "all looked at" if rows.is_whole else f"{rows.table.num_rows} of them looked at"
        tasks = ", ".join(
            f"{label.task} ({said_rate(label)}{f', given {label.given}' if label.given else ''})"
            for label in decided.labels
        )
        inputs, left_out = decided.inputs.columns, decided.inputs.left_out
        lines = [
            f"{rows.rows} rows in {_counted(len(rows.files), 'file')}, {looked}; "
            f"{_counted(len(decided.tables.columns), 'column')}",
            f"tasks: {tasks}",
            *decided.reasons,
            f"inputs: {_listed(list(inputs))}",
            f"left out: {_listed(list(left_out))}; the end of schema.toml says why"
            if left_out
            else "left out: nothing",
            f"split: {decided.split.why}",
        ]
        return "\n".join(lines)


def propose(
    files: Sequence[Path],
    *,
    labels: Sequence[str] = (),
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    ask: Ask | None = None,
) -> Proposal:
    """A proposal for raw files (Parquet, CSV, JSON lines, or folders of them), from a bounded sample of their rows.

    `labels`, `user`, `item` and `time` name columns where the names and values would decide otherwise.
    `ask(question, choices)` returns the number of a choice, counted from 0; without it nothing is asked, and what
    cannot be decided is one sentence. Raises ConfigError for a name that no column has, and DataError for files that
    cannot be read, do not belong together, or hold nothing to predict or to learn from.
    """
    tables = read_tables(files, times=() if time is None else (time,))
    return Proposal(decide(tables, labels=labels, user=user, item=item, time=time, ask=ask))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(found: Sequence[str]) -> str:
    shown = ", ".join(found[:12])
    return f"{shown} and {len(found) - 12} more" if len(found) > 12 else shown
