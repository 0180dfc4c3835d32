"""A job's training step in three forms, eager, compiled and as a CUDA graph, and the clock they are timed by.

The tables stay outside of compilation and graph: they look up and update eagerly, and hand the dense part one tensor.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from gpu_jobs import Job, JobBatch, loss_of
from torch import Tensor

Step = Callable[[], None]
# A dense step: looked-up rows and a batch to the gradient by the rows, parameters updated.
Dense = Callable[[Tensor, JobBatch], Tensor]

MODES = ("eager", "compiled", "graph")
PRECISIONS = ("float32", "bf16")
_WARM_UP = 3


def training_step(job: Job, mode: str, *, precision: str) -> Step:
    """One step with the next of the job's batches each time it is called."""
    first = job.batches[0]
    bf16 = precision == "bf16"
    dense = _graph(job, first, bf16) if mode == "graph" else _eager(job, mode, bf16)
    turns = cycle(job.batches)
    names = list(first.bags)

    def step() -> None:
        batch = next(turns)
        found = job.tables(batch.bags)
        rows_BI = torch.cat([found[name] for name in names], dim=1)
        rows_BI.backward(dense(rows_BI.detach(), batch))  # type: ignore[no-untyped-call]

    return step


def dense_step(job: Job, *, precision: str) -> Step:
    """The dense part's step alone, eager, on random rows."""
    batch, dense = job.batches[0], _eager(job, "eager", precision == "bf16")
    rows_BI = torch.randn(
        job.shape.batch, len(batch.bags) * job.shape.dim, device=batch.dense_BD.device
    )
    return lambda: _ignore(dense(rows_BI, batch))


@dataclass(frozen=True)
class Effort:
    """Steps before the clock runs, steps a round, and rounds of which the median counts."""

    warm_up: int = 3
    steps: int = 20
    rounds: int = 5


def seconds_of(step: Step, device: torch.device, effort: Effort) -> float:
    """A step's seconds, the device's work finished."""
    for _ in range(effort.warm_up):
        step()
    found = []
    for _ in range(effort.rounds):
        _finish(device)
        began = time.perf_counter()
        for _ in range(effort.steps):
            step()
        _finish(device)
        found.append((time.perf_counter() - began) / effort.steps)
    return statistics.median(found)


def _eager(job: Job, mode: str, bf16: bool) -> Dense:
    optimizer = _optimizer(job)
    module = torch.compile(job.dense) if mode == "compiled" else job.dense

    def run(rows_BI: Tensor, batch: JobBatch) -> Tensor:
        leaf_BI = rows_BI.requires_grad_()
        with torch.autocast(rows_BI.device.type, torch.bfloat16, enabled=bf16):
            logits_BT = module(leaf_BI, batch.dense_BD)
        loss_of(logits_BT, batch.labels_BT).backward()  # type: ignore[no-untyped-call]
        _update(job, optimizer)
        optimizer.zero_grad(set_to_none=True)
        assert leaf_BI.grad is not None
        return leaf_BI.grad

    return run


def _graph(job: Job, like: JobBatch, bf16: bool) -> Dense:
    """The dense step captured once; a call copies its inputs to where the graph reads them."""
    optimizer = _optimizer(job)
    width = len(like.bags) * job.shape.dim
    rows_BI = torch.randn(job.shape.batch, width, device=like.dense_BD.device).requires_grad_()
    dense_BD, labels_BT = like.dense_BD.clone(), like.labels_BT.clone()

    def run() -> None:
        # A cache of casts would outlive the capture.
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits_BT = job.dense(rows_BI, dense_BD)
        loss_of(logits_BT, labels_BT).backward()  # type: ignore[no-untyped-call]
        _update(job, optimizer)

    def forget() -> None:
        # Gradients that are absent at the capture are written, not added to, by every replay.
        optimizer.zero_grad(set_to_none=True)
        rows_BI.grad = None

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            run()
            forget()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(found_BI: Tensor, batch: JobBatch) -> Tensor:
        with torch.no_grad():
            rows_BI.copy_(found_BI)
        dense_BD.copy_(batch.dense_BD)
        labels_BT.copy_(batch.labels_BT)
        graph.replay()
        assert rows_BI.grad is not None
        return rows_BI.grad

    return replay


def _optimizer(job: Job) -> torch.optim.AdamW:
    parameters = list(job.dense.parameters())
    on_gpu = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True, capturable=on_gpu)


def _update(job: Job, optimizer: torch.optim.AdamW) -> None:
    """Clipping and AdamW, as `recsys.training.optim` does them."""
    parameters = list(job.dense.parameters())
    gradients = [item.grad for item in parameters if item.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
    optimizer.step()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _ignore(_: Tensor) -> None:
    return
