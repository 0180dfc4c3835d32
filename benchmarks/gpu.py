"""Training on a GPU: samples a second of two jobs against what the machine copies and multiplies in the same run.

Jobs (`gpu_jobs.py`): the reference job, MMoE 8 x [256, 128] with towers [64] and two tasks behind 26 tables of width
16, of 10 k and of 1 M rows, 8192 rows a step; and a DLRM of MLPerf's shape, 26 tables of width 128, 65,536 rows a step,
halved until it fits. Ids follow a Zipf law. Each runs eager, compiled and as a CUDA graph, in float32 and in bf16
autocast, with the plain tables, and with TorchRec's where they import. Then the tests marked `gpu` run.

The floor of a step is the time of its products at the rate of the best square product, and of the bytes that its tables
must move at the rate of a copy; `of_floor` is the floor by the step. Products in float32 are torch's default, no TF32.

Needs torch 2.11 or later, numpy, pyarrow and pydantic; no TorchRec, no fbgemm.

    python benchmarks/gpu.py                              # writes benchmarks/records/gpu.json
    python benchmarks/gpu.py --device cpu --tiny --record /tmp/gpu.json --skip-tests      # the same code, no GPU
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_jobs import SHAPES, Job, Shape, backends, build_job, build_tables
from gpu_kernels import Ceilings, flops_of, kernels, operators
from gpu_steps import MODES, PRECISIONS, Effort, dense_step, seconds_of, training_step
from gpu_table import RECORD
from measured import write_record

from recsys.models.embeddings.tables import Tables

ROOT = Path(__file__).resolve().parent.parent
_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_SQUARES = {"cuda": (4096, 8192), "cpu": (128, 256)}
_COPIED_BYTES = {"cuda": 2**31, "cpu": 2**24}
_SHOWN_OPERATORS = 12
# Operators below this share of their limit, and above this share of the time, are worth a better kernel.
_FAR, _TELLING = 0.5, 0.05
_TINY = Effort(warm_up=1, steps=1, rounds=1)


def ceilings(device: torch.device, effort: Effort) -> dict[str, Ceilings]:
    """What the device copies and multiplies, by precision."""
    copied = _copy_rate(device, effort)
    return {name: Ceilings(copied, _product_rate(device, name, effort)) for name in PRECISIONS}


def measured_job(
    shape: Shape, device: torch.device, found: dict[str, Ceilings], effort: Effort
) -> dict[str, Any]:
    """Every backend, precision and form of a job, and where the eager step's time goes."""
    tiny = effort == _TINY
    entry: dict[str, Any] = {"rows": shape.rows, "dim": shape.dim, "runs": []}
    for backend in ("plain",) if tiny else backends():
        tables = build_tables(shape, device, backend=backend)
        if backend == "plain":
            shape = fitting(shape, device, tables)
            job = build_job(shape, device, tables)
            entry |= {"batch": shape.batch, "operators": _operators(job, device, found["float32"])}
            if device.type == "cuda":
                entry["kernels"] = kernels(training_step(job, "eager", precision="bf16"))
            del job
        for precision in PRECISIONS:
            for mode in _modes(device, tiny):
                job = build_job(shape, device, tables)
                run = _run(job, device, found[precision], (backend, precision, mode), effort)
                entry["runs"].append(run)
                print(shape.name, run, flush=True)
                del job
                _free()
        del tables
        _free()
    return entry


def fitting(shape: Shape, device: torch.device, tables: Tables) -> Shape:
    """The job with its batch halved until a step runs."""
    while True:
        try:
            training_step(build_job(shape, device, tables), "eager", precision="float32")()
            return shape
        except torch.cuda.OutOfMemoryError:
            if shape.batch <= 1024:
                raise
        _free()
        shape = replace(shape, batch=shape.batch // 2)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    device = torch.device(options.device)
    effort = _TINY if options.tiny else Effort()
    found = ceilings(device, effort)
    print(found, flush=True)
    jobs = {}
    # Tiny shapes of one kind are alike.
    for shape in [item.tiny() for item in SHAPES[1:]] if options.tiny else SHAPES:
        jobs[shape.name] = measured_job(shape, device, found, effort)
    record = {
        "device": _device_name(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "ceilings": {
            name: {
                "copy_gb_a_second": _digits(item.bytes_a_second / 1e9),
                "product_tflops": _digits(item.flops_a_second / 1e12),
            }
            for name, item in found.items()
        },
        "jobs": jobs,
        "tests": None if options.skip_tests else _tests(),
    }
    write_record(options.record, record)
    print(f"record: {options.record}")


def _run(
    job: Job,
    device: torch.device,
    found: Ceilings,
    form: tuple[str, str, str],
    effort: Effort,
) -> dict[str, Any]:
    """One form of a step; a form that fails is recorded with the reason, and the others go on."""
    backend, precision, mode = form
    named = {"backend": backend, "precision": precision, "mode": mode}
    try:
        flops = flops_of(dense_step(job, precision=precision))
        step = training_step(job, mode, precision=precision)
        seconds = seconds_of(step, device, effort)
    except Exception as error:
        return named | {"failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    floor = flops / found.flops_a_second + job.table_bytes / found.bytes_a_second
    return named | {
        "samples_a_second": round(job.shape.batch / seconds),
        "ms": _digits(1e3 * seconds),
        "floor_ms": _digits(1e3 * floor),
        "of_floor": _digits(floor / seconds),
    }


def _operators(job: Job, device: torch.device, found: Ceilings) -> list[dict[str, Any]]:
    step = training_step(job, "eager", precision="float32")
    step()
    return [
        {
            "name": item.name,
            "share": _digits(item.share),
            "ms": _digits(1e3 * item.seconds),
            "gb_a_second": _digits(item.bytes / item.seconds / 1e9),
            "tflops": _digits(item.flops / item.seconds / 1e12),
            "of_limit": _digits(item.of_limit(found)),
            "far": item.share >= _TELLING and item.of_limit(found) < _FAR,
        }
        for item in operators(step, device)[:_SHOWN_OPERATORS]
    ]


def _digits(value: float) -> float:
    """Four digits are more than any of these figures can bear."""
    return float(f"{value:.4g}")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _modes(device: torch.device, tiny: bool) -> Iterator[str]:
    """A graph is CUDA's; to compile takes longer than all else of a test."""
    return (mode for mode in MODES if mode == "eager" or (device.type == "cuda" and not tiny))


def _copy_rate(device: torch.device, effort: Effort) -> float:
    """Bytes a second of a copy within the device, those read and those written."""
    source = torch.empty(_COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: _copy(source, target), device, effort)
    return 2.0 * 4 * source.numel() / seconds


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)


def _product_rate(device: torch.device, precision: str, effort: Effort) -> float:
    """Operations a second of the better of two square products."""
    best = 0.0
    for size in _SQUARES[device.type]:
        left, right, out = (
            torch.randn(size, size, device=device).to(_TYPES[precision]) for _ in range(3)
        )
        seconds = seconds_of(partial(_multiply, left, right, out), device, effort)
        best = max(best, 2.0 * size**3 / seconds)
    return best


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(left, right, out=out)


def _tests() -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own: their end and their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    environment = os.environ | {"RECSYS_REQUIRE": "gpu", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "tests/recsys/test_gpu.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(ended.stdout[-3000:], ended.stderr[-2000:])
    lines = (ended.stdout or ended.stderr).strip().splitlines()
    return {"exit_code": ended.returncode, "last_line": lines[-1] if lines else ""}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes of a test: figures mean nothing")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args(arguments)
    if options.tiny and options.record == RECORD:
        parser.error("--tiny measures nothing worth a record: name another file (--record)")
    return options


if __name__ == "__main__":
    main()
