"""Golden requests: raw rows with the scores that the trained model gives them, carried inside the bundle.

They are replayed whenever a bundle is loaded, so other kernels, another encoder or a swapped table refuse to serve.

```
golden/user.arrow         raw user and context columns, one row a user (U)
golden/candidates.arrow   raw candidate columns and `user_of_row`, one row a candidate (N)
golden/expected.arrow     `logit:<task>` of each candidate, from the model in float32
```

Real rows may be given; made-up rows (`recsys.made_up`) always follow them. Axes: **U** users, **N** candidates,
**T** tasks.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import ArtifactError
from recsys.layout import logit_column

USER_OF_ROW = "user_of_row"
_PARTS = ("user", "candidates", "expected")


@dataclass(frozen=True)
class Golden:
    """Raw requests and the logits expected of them."""

    user: pa.Table
    candidates: pa.Table
    user_of_row_N: NDArray[np.int64]
    logits_NT: NDArray[np.float32]

    def write(self, directory: Path, tasks: tuple[str, ...]) -> None:
        directory.mkdir()
        columns = dict(zip(self.candidates.column_names, self.candidates.columns, strict=True))
        pairs = pa.table(columns | {USER_OF_ROW: pa.array(self.user_of_row_N)})
        logits = {logit_column(task): self.logits_NT[:, t] for t, task in enumerate(tasks)}
        for name, table in zip(_PARTS, (self.user, pairs, pa.table(logits)), strict=True):
            file = str(directory / f"{name}.arrow")
            with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)


def read_golden(directory: Path, tasks: tuple[str, ...]) -> Golden:
    """The golden requests of a bundle. Raises ArtifactError when they are missing or damaged."""
    try:
        user, pairs, expected = (
            pa.ipc.open_file(pa.py_buffer((directory / f"{name}.arrow").read_bytes())).read_all()
            for name in _PARTS
        )
        logits_NT = np.stack(
            [expected.column(logit_column(task)).to_numpy() for task in tasks], axis=1
        )
        user_of_row_N = pairs.column(USER_OF_ROW).to_numpy()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{directory}: not readable golden requests ({error}); export again"
        ) from error
    return Golden(user, pairs.drop_columns([USER_OF_ROW]), user_of_row_N, logits_NT)
