"""SIGTERM as a request: finish the step, write a checkpoint, end.

The signal only leaves a note, which the loop looks at between steps and between the batches of an evaluation. Ranks get
it at different times, or only some of them do, so they ask each other before they act on it: all stop after the same
step.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recsys.errors import TrainingStopped, UserError
from recsys.ranks import largest, world_size

# Schedulers signal a whole group, and launchers in it pass the same signal on: within this it is still the first one.
_SAME_SECONDS = 1.0


class StopAskedFor(Exception):  # noqa: N818 - what is under way may be left
    """All ranks have agreed to stop."""


class StopRequest:
    """Whether this training was asked to stop. A second SIGTERM, after the first one's second, ends the process."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def received(self) -> bool:
        """Whether this process was asked."""
        return self._since is not None

    def check(self) -> None:
        """Raise StopAskedFor, on all ranks, once one of them was asked; all have to call this together."""
        if largest([int(self.received)]) == [1]:
            raise StopAskedFor

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal."""
        if self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _SAME_SECONDS:
            _end_by(number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """What SIGTERM asks of the block; in a thread that may not handle signals, nothing ever."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = signal.signal(signal.SIGTERM, request.receive)
    try:
        yield request
    except (TrainingStopped, UserError):
        raise
    except Exception:
        if request.received and world_size() > 1:
            # The launcher meant to end this rank because another one had failed, which tells why.
            _end_by(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
