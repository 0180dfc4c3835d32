"""What a training tells: `metrics.jsonl` for machines, TensorBoard for people, a progress bar or lines for a terminal.

A record is one JSON object a line with `kind` and `step` (steps done so far): "training" and "validation", which have
an `epoch` too, or "ids", what a day or some steps did to the id maps of unbounded tables.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

from recsys.errors import ArtifactError
from recsys.ranks import is_first

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Journal:
    """The records of a run, appended one by one and mirrored to TensorBoard where it is installed."""

    def __init__(self, file: Path, tensorboard: Path, *, start: int = 0) -> None:
        """`start` is the step a training goes on from: records of later steps are dropped, here and in TensorBoard."""
        self._file = file
        _keep_records(file, up_to_step=start)
        self._scalars = _scalar_writer(tensorboard, start)

    def append(self, record: Record) -> None:
        """Add a record; it is on disk when this returns."""
        with self._file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(record, allow_nan=False) + "\n")
            sink.flush()
            os.fsync(sink.fileno())
        for name, value in _numbers(record):
            self._scalars.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def validations(self) -> list[Record]:
        """The validation records so far, read back from the file."""
        return [record for record in read_records(self._file) if record["kind"] == "validation"]

    def close(self) -> None:
        self._scalars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Silence:
    """The journal and the progress of a rank that only listens: the first one tells for all."""

    def append(self, record: Record) -> None:
        return

    def validations(self) -> list[Record]:
        return []

    def update(self, step: int, loss: float, samples_per_second: float) -> None:
        return

    def close(self) -> None:
        return


def open_journal(file: Path, tensorboard: Path, *, start: int) -> Journal | Silence:
    """The journal of the first rank, or what stands for it on the others."""
    return Journal(file, tensorboard, start=start) if is_first() else Silence()


def read_records(file: Path) -> list[Record]:
    """The records of a `metrics.jsonl`, oldest first; none when there is no file yet.

    A last line without its end, left by a kill, is passed over. Raises ArtifactError for any other damage.
    """
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise ArtifactError(f"{file}: damaged ({error}); restore it, or train again") from error


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Put records in the place of a file's, at once or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(record) + "\n" for record in records)
        sink.flush()
        # What is renamed before it is on disk may come back empty after a power cut.
        os.fsync(sink.fileno())
    os.replace(temporary, file)


def _keep_records(file: Path, *, up_to_step: int) -> None:
    # What is told before the first step is told again by whoever begins there again.
    write_records(file, [item for item in read_records(file) if 0 < up_to_step >= item["step"]])


class Progress(Protocol):
    """Where the progress of a training is shown."""

    def update(self, step: int, loss: float, samples_per_second: float) -> None: ...

    def close(self) -> None: ...


def progress_to(total_steps: int, *, start: int) -> Progress:
    """A bar when standard error is a terminal, else a log line per update; from the first rank alone."""
    if not is_first():
        return Silence()
    return _Bar(total_steps, start) if sys.stderr.isatty() else _Lines(total_steps)


class _Bar:
    def __init__(self, total_steps: int, start: int) -> None:
        self._bar: Any = tqdm(total=total_steps, initial=start, unit="step", desc="train")

    def update(self, step: int, loss: float, samples_per_second: float) -> None:
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {samples_per_second:,.0f} rows/s", refresh=False
        )
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps

    def update(self, step: int, loss: float, samples_per_second: float) -> None:
        logger.info(
            "train step=%d/%d loss=%.5f rows_per_second=%.0f",
            step,
            self._total_steps,
            loss,
            samples_per_second,
        )

    def close(self) -> None:
        return


class _Scalars(Protocol):
    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class _NoScalars:
    def add_scalar(self, name: str, value: float, step: int) -> None:
        return

    def close(self) -> None:
        return


def _scalar_writer(directory: Path, start: int) -> _Scalars:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("tensorboard is not installed; scalars go to metrics.jsonl alone")
        return _NoScalars()
    writer: _Scalars = SummaryWriter(str(directory), purge_step=start + 1 if start else None)
    return writer


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record by path, `step` and `epoch` themselves left out."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and name not in ("step", "epoch")
        ):
            yield f"{prefix}{name}", float(value)
