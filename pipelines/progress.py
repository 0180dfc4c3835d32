"""Progress of long work: a bar on a terminal, now and then a line elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 10.0


def tracked(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items, while progress is shown on standard error (a terminal) or logged."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit="part", leave=False)
        return
    started = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - said > _SECONDS_BETWEEN_LINES:
            logger.info(
                "progress what=%s parts=%d/%d seconds=%.1f", what, done, total, now - started
            )
            said = now
