"""The worker of benchmarks/speed_parts.py: CPU milliseconds of each part of a job's step, on one thread.

    python benchmarks/speed_step.py FOLDER [--precision bf16] [--steps 12]

A step is taken apart at the blocks: what lies before them are the tables, what lies behind them is the program. `rest`
is what a whole step, `Training.advance`, takes beyond its parts.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from speed_clock import report
from speed_ours import training_of

from recsys.batch import Batch, from_encoded
from recsys.days import read_rows
from recsys.feed import START
from recsys.layout import encoded_arrow
from recsys.training.training import Training

PARTS = (
    "read",
    "shuffle",
    "collate",
    "lookup forward",
    "dense forward",
    "dense backward",
    "table update",
    "optimizer",
    "rest",
)
# What the feed does; it is done in a thread of its own, ahead of the step.
FEED = PARTS[:3]


class Watch:
    """CPU milliseconds since the last look."""

    def __init__(self) -> None:
        self._since = time.process_time()

    def look(self) -> float:
        now = time.process_time()
        spent, self._since = 1000 * (now - self._since), now
        return spent


def step_in_parts(training: Training, batch: Batch) -> dict[str, float]:
    """One step with its halves joined by hand: milliseconds of each part."""
    found, watch = {}, Watch()
    training.optimizer.before_backward(training.step)
    blocks = training.forward.blocks(batch)
    found["lookup forward"] = watch.look()
    sides = [blocks.user_UI, blocks.candidate_NI]
    leaves = [side.detach().requires_grad_(side.requires_grad) for side in sides]
    # Autocast casts a leaf once for all who read it; what a lookup gives is none.
    user_UI, candidate_NI = (leaf.view_as(leaf) for leaf in leaves)
    logits_BT = training.forward.logits(replace(blocks, user_UI=user_UI, candidate_NI=candidate_NI))
    loss = training.forward.objective(
        logits_BT, batch.labels_BT, batch.observed_BT, batch.weights_B
    )
    found["dense forward"] = watch.look()
    loss.total.backward()
    found["dense backward"] = watch.look()
    pairs = zip(sides, leaves, strict=True)
    learned = [(side, leaf.grad) for side, leaf in pairs if side.requires_grad]
    torch.autograd.backward([side for side, _ in learned], [gradient for _, gradient in learned])
    found["table update"] = watch.look()
    training.optimizer.after_backward(training.step, training.optimizer.dense.gradient_norm())
    found["optimizer"] = watch.look()
    return found


def whole_step(training: Training, batch: Batch) -> float:
    watch = Watch()
    training.advance(batch)
    return watch.look()


def feed_parts(training: Training) -> dict[str, float]:
    """Milliseconds a batch of reading a day, of taking a batch's rows out of it, and of collating them."""
    days, size = training.train_days, training.feed.batch_size
    names = encoded_arrow(days.schema).names
    watch = Watch()
    table = read_rows(days.groups, names)
    found = {"read": watch.look() / (days.rows / size)}
    order = torch.randperm(days.rows).numpy()
    taken, collated = [], []
    for start in range(0, days.rows - size + 1, size):
        watch.look()
        rows = table.take(order[start : start + size])
        taken.append(watch.look())
        from_encoded(rows, days.schema)
        collated.append(watch.look())
    return found | {"shuffle": statistics.median(taken), "collate": statistics.median(collated)}


def parts(training: Training, steps: int) -> dict[str, float]:
    """Median milliseconds of each part, whole steps and steps in parts taking turns."""
    whole: list[float] = []
    apart: list[dict[str, float]] = []
    with closing(training.feed.batches(START)) as batches:
        ready = [next(batches).batch for _ in range(min(8, training.feed.batches_per_epoch))]
    for number in range(steps + 2):
        batch = ready[number % len(ready)]
        whole.append(whole_step(training, batch))
        apart.append(step_in_parts(training, batch))
    found = {name: statistics.median(item[name] for item in apart[2:]) for name in apart[0]}
    found["rest"] = max(0.0, statistics.median(whole[2:]) - sum(found.values()))
    return feed_parts(training) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--day", default="train")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = training_of(
            options.folder, Path(folder) / "run", precision=options.precision, day=options.day
        )
        report({name: round(value, 2) for name, value in parts(training, options.steps).items()})


if __name__ == "__main__":
    main()
