"""A run directory that appears as a whole, in the hands of the process that trains it."""

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from recsys.encode import Encoder
from recsys.errors import ArtifactError, UserError
from recsys.experiment import Experiment
from recsys.hold import held, require_unheld
from recsys.parent import FILE as PARENT
from recsys.parent import Parent
from recsys.publish import fsync_tree
from recsys.run import ENCODER, EXPERIMENT, METRICS, SCHEMA, fitted_encoder, holds_run

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def new_run(path: Path, experiment: Experiment, *, parent: Parent | None = None) -> Iterator[None]:
    """Make a new run directory for an experiment, and hold it until the block ends.

    A run that never began (no metrics) is replaced, and one that a mistake of the user ends before it has begun is
    taken away. Raises ArtifactError when the path holds anything else or another process trains there, and what loading
    the schema and the encoder raises.
    """
    _require_free(path)
    encoder = fitted_encoder(experiment)
    draft = path.parent / f".draft-{path.name}-{secrets.token_hex(4)}"
    try:
        with ExitStack() as hold:
            try:
                _write(draft, experiment, encoder=encoder, parent=parent, path=path)
                # The lock goes along when the directory gets its name: nobody comes in between.
                hold.enter_context(held(draft))
                _put(draft, path)
            except OSError as error:
                raise ArtifactError(
                    f"{path}: cannot be written ({error.strerror}); choose another place"
                ) from error
            try:
                yield
            except UserError:
                if not _has_begun(path):
                    path.rename(draft)
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(
    draft: Path, experiment: Experiment, *, encoder: Encoder, parent: Parent | None, path: Path
) -> None:
    draft.mkdir(parents=True)
    # Paths are relative to where the run will lie; it is the draft's neighbour, so they hold there too.
    portable = experiment.model_copy(update={"schema_file": path / SCHEMA})
    (draft / EXPERIMENT).write_text(portable.to_json(path), encoding="utf-8")
    (draft / SCHEMA).write_text(encoder.schema.to_json(), encoding="utf-8")
    encoder.write(draft / ENCODER)
    if parent is not None:
        (draft / PARENT).write_text(parent.to_json(path), encoding="utf-8")
    fsync_tree(draft)


def _put(draft: Path, path: Path) -> None:
    """Give a draft its name, if need be in place of a run that never began."""
    while True:
        if holds_run(path):
            _remove_unless_begun(path, draft.with_name(f"{draft.name}-old"))
        try:
            draft.rename(path)
        except OSError as error:
            # Another process has made a run there in between, which is looked at now.
            if error.errno not in _TAKEN or not holds_run(path):
                raise
        else:
            return


def _remove_unless_begun(path: Path, aside: Path) -> None:
    try:
        with held(path):
            _require_not_begun(path)
            path.rename(aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _require_free(path: Path) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not holds_run(path):
        raise ArtifactError(f"{path}: holds other files; choose another directory for the run")
    require_unheld(path)
    _require_not_begun(path)


def _require_not_begun(path: Path) -> None:
    if _has_begun(path):
        raise ArtifactError(
            f"{path}: holds a run already; resume it (--resume), choose another directory, or remove it"
        )


def _has_begun(path: Path) -> bool:
    return (path / METRICS).exists()
