"""The exceptions a caller can meet.

```
RecsysError
├── UserError            a mistake a user can correct; the command line prints one sentence, exit code 2
│   ├── ConfigError      a schema, pipeline or experiment file says something impossible
│   ├── DataError        rows do not match what the schema promises
│   ├── ArtifactError    an encoder, day, checkpoint, bundle or report is missing, damaged or of another lineage
│   ├── TrainingError    training cannot go on: the loss is no number any more
│   └── RequestError     a ranking request is wrong
└── TrainingStopped      a training was asked to stop, and has; exit code 143
```

Every message says what is wrong, where, what was found and what to do. A broken invariant of our own is an
`assert`, not one of these.
"""

import difflib
from collections.abc import Iterable


class RecsysError(Exception):
    """Base of everything this project raises on purpose."""


class UserError(RecsysError):
    """A mistake that the user can correct."""


class ConfigError(UserError):
    """A configuration file or value is wrong."""


class DataError(UserError):
    """Rows do not match the schema. `row` counts from 0 in the rows given; who knows the file names the row there."""

    def __init__(self, problem: str, *, row: int | None = None) -> None:
        super().__init__(problem if row is None else f"row {row}: {problem}")
        self.problem = problem
        self.row = row


class ArtifactError(UserError):
    """A published artifact is missing, damaged or belongs to another lineage."""


class TrainingError(UserError):
    """Training cannot go on."""


class TrainingStopped(RecsysError):  # noqa: N818 - no mistake of anybody
    """SIGTERM has ended a training, which goes on with `resume`."""

    # As of a process that the signal itself has ended, in a shell.
    EXIT_CODE = 143


class RequestError(UserError):
    """A ranking request is wrong. `pointer` is the JSON pointer of the offending value, `code` a stable name."""

    def __init__(self, message: str, *, pointer: str = "", code: str = "INVALID_REQUEST") -> None:
        super().__init__(message)
        self.pointer = pointer
        self.code = code


def nearest(name: str, known: Iterable[str]) -> str:
    """The text ` (did you mean 'x'?)` for the closest known name, else an empty string."""
    names = list(known)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.65)
    matches = matches or [other for other in names if other.startswith(f"{name}_")]
    return f" (did you mean {matches[0]!r}?)" if matches else ""
