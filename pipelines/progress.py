"""Progress of long work: a bar on a terminal, now and then a line elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_REFRESHES = 0.2


class Progress:
    """How much of some work is done: whole parts, and rows read, those of the present part included."""

    def __init__(self, what: str, *, parts: int, done: int = 0) -> None:
        self.what = what
        self.parts = parts
        self.done = done
        self._already_done = done
        self._rows_of_finished_parts = self._rows_of_part = 0
        self._started = self._shown = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=parts, initial=done, desc=what, unit="part", leave=False)

    def rows_read(self, rows_of_part: int) -> None:
        """So many rows of the present part are read; each call replaces what the last one said."""
        self._rows_of_part = rows_of_part
        self._show(at_once=False)

    def finish_part(self) -> None:
        """The present part is done."""
        self.done += 1
        self._rows_of_finished_parts += self._rows_of_part
        self._rows_of_part = 0
        if self._bar is not None:
            self._bar.update(1)
        self._show(at_once=self.done == self.parts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def rows(self) -> int:
        return self._rows_of_finished_parts + self._rows_of_part

    def figures(self, seconds: float) -> dict[str, int]:
        """Rows, rows a second and the seconds left, as far as they are known after so many seconds."""
        figures: dict[str, int] = {}
        if self.rows:
            figures = {"rows": self.rows, "rows_per_second": round(self.rows / max(seconds, 1e-9))}
        parts = self.done - self._already_done
        if parts > 0 and self.done < self.parts:
            # Before the first part is done, any estimate would be made up.
            figures["seconds_left"] = round(seconds / parts * (self.parts - self.done))
        return figures

    def _show(self, *, at_once: bool) -> None:
        now = time.monotonic()
        wait = _SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_REFRESHES
        if not at_once and now - self._shown < wait:
            return
        self._shown = now
        figures = self.figures(now - self._started)
        if self._bar is None:
            said = "".join(f" {name}={number}" for name, number in figures.items())
            logger.info("progress what=%s parts=%d/%d%s", self.what, self.done, self.parts, said)
        elif self.rows:
            rate = figures["rows_per_second"]
            self._bar.set_postfix_str(f"{self.rows:,} rows, {rate:,} rows/s")


@contextmanager
def progress(what: str, *, parts: int, done: int = 0) -> Iterator[Progress]:
    """Progress over some parts, of which `done` were done before, shown on standard error (a terminal) or logged."""
    shown = Progress(what, parts=parts, done=done)
    try:
        yield shown
    finally:
        shown.close()


def tracked(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items, each of them a part, while progress is shown."""
    with progress(what, parts=total) as shown:
        for item in items:
            yield item
            shown.finish_part()
