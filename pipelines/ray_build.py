"""The parts of a build as a Ray Data job: one task a part, each with our own reader inside.

The cluster is the one that RAY_ADDRESS names, or the caller's if Ray runs already, else a local one that ends with the
build. All nodes must see the files and the data directory under the same paths.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from pipelines.parts import PartJob, PartResult
from recsys import errors
from recsys.errors import UserError

_OBJECT_STORE_BYTES = 512 << 20


def write_parts(job: PartJob, numbers: Sequence[int]) -> Iterator[PartResult]:
    """Results of some parts, as they finish. A user's mistake is raised here as it would be in this process."""
    with _cluster():
        shared = ray.put(job)

        def write(batch: dict[str, Any]) -> dict[str, list[str]]:
            return {"result": [attempt(ray.get(shared), int(number)) for number in batch["item"]]}

        parts = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        for row in parts.map_batches(write, batch_size=1).iter_rows():
            yield result_of(json.loads(row["result"]))


def attempt(job: PartJob, number: int) -> str:
    """The result of a part as JSON. A user's mistake travels as data, for Ray would bury it in its own traceback."""
    try:
        return json.dumps(job.write(number).to_json())
    except UserError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error)})


def result_of(tree: dict[str, Any]) -> PartResult:
    """The result that a worker's JSON holds. Raises the mistake that it holds instead."""
    if "error" in tree:
        kind: type[UserError] = getattr(errors, tree["error"])
        raise kind(tree["message"])
    return PartResult.from_json(tree)


@contextmanager
def _cluster() -> Iterator[None]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Progress is ours to show; what goes wrong in Ray still comes through.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.ERROR)
    else:
        ray.init(
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()
