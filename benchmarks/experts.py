"""Which form of parallel experts is fastest: a loop of products, wide first products, or batched products.

First banks of several kinds as they train (forward and backward): of one input or several, deep or flat, large or
small. Then MMoE's experts and gates as they train (with AdamW) and as they serve, in PyTorch's default float32, in
float32 through oneDNN (`set_float32_matmul_precision("medium")`), in bf16 autocast, and in ONNX Runtime. Freed memory
is kept, as in training. Forms take turns within a round, so that what else the machine does falls on all alike. Prints
medians of CPU time (of wall-clock time for the MMoE, which may have several threads), ratios to the loop, and what
`recsys.models.experts.choose_form` chooses.

    python benchmarks/experts.py [--rounds 7] [--threads 1 2] [--rows 8192] [--serving-rows 500] [--banks-only]
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast, get_args

import onnxruntime
import torch
from torch import Tensor, nn

from recsys.export import quiet_exporter
from recsys.memory import keep_freed_memory
from recsys.models.experts import ExpertBank, Form, choose_form
from recsys.models.mixing.mmoe import MMoE

FORMS: tuple[Form, ...] = get_args(Form)
PRECISIONS = ("float32", "oneDNN float32", "bf16")
TASKS = ("click", "buy")

Run = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """A bank to train: `readers` experts of each of several inputs, or the experts of one input."""

    name: str
    width: int
    hidden: tuple[int, ...]
    rows: int
    readers: tuple[int, ...]
    normalized: bool = False

    def bank(self) -> ExpertBank:
        torch.manual_seed(0)
        inputs = [stream for stream, count in enumerate(self.readers) for _ in range(count)]
        return ExpertBank(
            self.width,
            self.hidden,
            experts=len(inputs),
            inputs=inputs,
            normalized=self.normalized,
        ).train()

    def x(self) -> Tensor:
        several = len(self.readers) > 1
        shape = (self.rows, len(self.readers), self.width) if several else (self.rows, self.width)
        return torch.randn(shape).requires_grad_()


KINDS = (
    Kind("MMoE", 416, (256, 128), 8192, (8,)),
    Kind("MMoE", 208, (64, 32), 4096, (8,)),
    Kind("MMoE", 208, (64, 32), 1024, (8,)),
    Kind("MMoE", 64, (32, 16), 1024, (8,)),
    Kind("MMoE", 416, (256, 128), 256, (8,)),
    Kind("PLE level 1", 416, (256,), 8192, (8,)),
    Kind("PLE level 2", 256, (128,), 8192, (3, 3, 2)),
    Kind("CGC behind DTRN", 416, (256, 128), 8192, (3, 3, 2)),
    Kind("CGC behind DTRN", 64, (32, 16), 1024, (3, 3, 3)),
    Kind("AdaTT level 2", 208, (64,), 4096, (4, 4)),
    Kind("PLE level 2", 64, (32,), 1024, (3, 3, 3)),
    Kind("HoME level 2", 256, (128,), 8192, (2, 2, 2, 2), normalized=True),
    Kind("HoME level 1", 64, (32,), 1024, (2, 2, 2), normalized=True),
    Kind("towers", 128, (64,), 8192, (1, 1)),
    Kind("towers", 16, (16,), 1024, (1, 1, 1)),
)


class FixedBank(ExpertBank):
    """A bank that computes in one form, whatever the device and size."""

    form: Form = "loop"

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, form=self.form)


def mmoe(form: Form, width: int) -> MMoE:
    torch.manual_seed(0)
    config = MMoE.Config(experts=8, expert_hidden=(256, 128))
    found = MMoE(config, width=width, tasks=TASKS)
    bank = FixedBank(width, config.expert_hidden, experts=config.experts)
    bank.load_state_dict(found.bank.state_dict())
    bank.form = form
    found.bank = bank
    return found


def training_step(model: nn.Module, x_BI: Tensor, *, bf16: bool) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x_BI = x_BI.clone().requires_grad_()

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(x_BI).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def bank_step(bank: ExpertBank, x: Tensor, form: Form, *, bf16: bool) -> Run:
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out_BEH = bank.compute(x, form=form)
        out_BEH.backward(torch.ones_like(out_BEH))  # type: ignore[no-untyped-call]
        bank.zero_grad(set_to_none=True)
        x.grad = None

    return run


def inference(model: nn.Module, x_BI: Tensor, *, bf16: bool) -> Run:
    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(x_BI)

    return run


def exported(model: nn.Module, x_BI: Tensor, *, threads: int) -> Run:
    with quiet_exporter():
        program = torch.onnx.export(
            model.eval(),
            (x_BI,),
            dynamo=True,
            dynamic_shapes=({0: "N"},),
            input_names=["x"],
            verbose=False,
        )
    assert program is not None
    file = io.BytesIO()
    program.save(cast(str, file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": x_BI.numpy()}
    return lambda: session.run(None, feeds)


@dataclass(frozen=True)
class Speed:
    """Median milliseconds, and the median over rounds of the loop's time by this form's in the same round."""

    milliseconds: float
    ratio: float


def measure(
    runs: dict[Form, Run],
    *,
    rounds: int,
    precision: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Form, Speed]:
    """The speed of each form, the forms taking turns."""
    torch.set_float32_matmul_precision("medium" if precision == "oneDNN float32" else "highest")
    milliseconds: dict[Form, list[float]] = {form: [] for form in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for form, run in runs.items():
            start = clock()
            run()
            milliseconds[form].append(1000 * (clock() - start))
    return {
        form: Speed(
            statistics.median(found),
            statistics.median(
                loop / own for loop, own in zip(milliseconds["loop"], found, strict=True)
            ),
        )
        for form, found in milliseconds.items()
    }


def show(label: str, found: dict[Form, Speed], rows: int) -> None:
    cells = [f"{found[form].milliseconds:9.1f} ms {found[form].ratio:5.2f}x" for form in FORMS]
    best = max(found, key=lambda form: found[form].ratio)
    print(
        f"{label:60}",
        *cells,
        f"  {best}: {rows / found[best].milliseconds:.1f} k rows/s",
        flush=True,
    )


def show_banks(rounds: int) -> None:
    """Forward and backward of each kind of bank, on one thread."""
    for kind in KINDS:
        bank, x = kind.bank(), kind.x()
        label = f"{kind.name} {bank.experts} x {list(kind.hidden)}, {kind.rows} rows"
        for precision in PRECISIONS[1:]:
            runs = {form: bank_step(bank, x, form, bf16=precision == "bf16") for form in FORMS}
            found = measure(runs, rounds=rounds, precision=precision, clock=time.process_time)
            show(f"{label}, {precision}", found, kind.rows)
        print(f"{'':60} chosen: {choose_form(bank, x)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--serving-rows", type=int, default=500)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--banks-only", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    print(f"{'':60}", *(f"{form:>18}" for form in FORMS))
    show_banks(options.rounds)
    if options.banks_only:
        return
    large, small = (
        torch.randn(options.rows, options.width),
        torch.randn(options.serving_rows, options.width),
    )
    print(
        f"MMoE 8 x [256, 128], input {options.width}, {len(TASKS)} tasks; median of {options.rounds}, ratio to the loop"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        models = {form: mmoe(form, options.width) for form in FORMS}
        for precision in PRECISIONS:
            bf16 = precision == "bf16"
            train = {form: training_step(model, large, bf16=bf16) for form, model in models.items()}
            serve = {form: inference(model, small, bf16=bf16) for form, model in models.items()}
            show(
                f"train {options.rows} rows, {threads} thr, {precision}",
                measure(train, rounds=options.rounds, precision=precision),
                options.rows,
            )
            show(
                f"infer {options.serving_rows} rows, {threads} thr, {precision}",
                measure(serve, rounds=5 * options.rounds, precision=precision),
                options.serving_rows,
            )
        runtime = {form: exported(model, small, threads=threads) for form, model in models.items()}
        show(
            f"infer {options.serving_rows} rows, {threads} thr, ONNX Runtime",
            measure(runtime, rounds=5 * options.rounds, precision="float32"),
            options.serving_rows,
        )


if __name__ == "__main__":
    main()
