"""The GPU benchmark's way without a GPU: every job, the ceilings, the operators, and the section that a page shows."""

import json
from pathlib import Path

import gpu
import gpu_table
import pytest
import torch
from gpu_jobs import SHAPES, Job, Shape, build_job, build_tables
from gpu_kernels import Ceilings, Operator, _flops, flops_of
from gpu_steps import dense_step, training_step


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    gpu.main(["--device", "cpu", "--tiny", "--skip-tests", "--record", str(file)])
    return file


def tiny_job(shape: Shape) -> Job:
    device = torch.device("cpu")
    return build_job(shape.tiny(), device, build_tables(shape.tiny(), device, backend="plain"))


def test_every_job_runs_and_is_held_against_its_floor(record: Path) -> None:
    found = json.loads(record.read_text())
    assert found["ceilings"]["bf16"]["product_tflops"] > 0
    for job in found["jobs"].values():
        assert [(run["precision"], run["mode"]) for run in job["runs"]] == [
            ("float32", "eager"),
            ("bf16", "eager"),
        ]
        for run in job["runs"]:
            assert run["of_floor"] == pytest.approx(run["floor_ms"] / run["ms"], rel=1e-2)
        assert sum(item["share"] for item in job["operators"]) <= 1.001
        assert any(item["name"].endswith("mm") and item["tflops"] > 0 for item in job["operators"])


def test_a_page_shows_what_was_measured(record: Path) -> None:
    text = gpu_table.render(record)
    assert text.startswith("## Training on a GPU\n\nCPU, ")
    assert "### DLRM, 26 x 1 M rows of 128, 64 rows a step" in text
    assert "| plain | bf16 | eager |" in text


def test_without_a_record_a_page_says_so(tmp_path: Path) -> None:
    assert "Not measured: `benchmarks/gpu.py`" in gpu_table.render(tmp_path / "none.json")


def test_a_step_moves_tables_and_dense_part() -> None:
    job = tiny_job(SHAPES[0])
    tables = {part.table: part.weight_RK.clone() for part in job.tables.parts()}
    weights = [item.detach().clone() for item in job.dense.parameters()]
    training_step(job, "eager", precision="float32")()
    assert all((part.weight_RK != tables[part.table]).any() for part in job.tables.parts())
    moved = zip(job.dense.parameters(), weights, strict=True)
    assert all((item != before).any() for item, before in moved)


def test_the_floor_counts_what_arithmetic_says() -> None:
    """A DLRM's products: three times those of the forward pass, less the gradient by inputs that need none."""
    job = tiny_job(SHAPES[2])
    rows, dim, vectors = 64, 8, 27
    bottom = [(13, 512), (512, 256), (256, dim)]
    top = [(dim + 351, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 1)]
    layers = sum(a * b for a, b in bottom + top)
    expected = 2 * rows * (3 * layers - 13 * 512 + 3 * vectors * vectors * dim)
    assert flops_of(dense_step(job, precision="float32")) == expected
    distinct = sum(batch.distinct for batch in job.batches) // len(job.batches)
    assert job.table_bytes == 4 * (dim * (3 * distinct + 2 * 26 * rows) + 2 * distinct)


def test_an_operator_at_the_nearer_ceiling_has_reached_its_limit() -> None:
    ceilings = Ceilings(bytes_a_second=100.0, flops_a_second=1000.0)
    copies = Operator("aten::copy_", seconds=2.0, share=0.5, bytes=200.0, flops=0.0)
    product = Operator("aten::mm", seconds=4.0, share=0.5, bytes=100.0, flops=2000.0)
    assert copies.of_limit(ceilings) == 1.0
    assert product.of_limit(ceilings) == 0.5
    assert _flops("mm", (torch.empty(3, 4), torch.empty(4, 5))) == 2 * 3 * 4 * 5
