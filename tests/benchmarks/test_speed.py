"""The speed benchmarks: both sides compute the same, parts are those of a step, and the page is the records'."""

import json
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import speed_ceiling
import speed_clock
import speed_growth
import speed_job
import speed_ours
import speed_page
import speed_quality
import speed_step
import speed_torchrec
import torch
from torch.utils.flop_counter import FlopCounterMode

from recsys.feed import START
from recsys.models import Program
from recsys.training.training import Training

JOB = speed_job.Job(
    fields=2,
    table_rows=50,
    dim=4,
    batch_size=64,
    rows=256,
    short_rows=64,
    validation_rows=128,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("speed") / "job"
    speed_job.prepare(JOB, found)
    return found


def training(folder: Path, run: Path, **settings: Any) -> Training:
    return speed_ours.training_of(folder, run, **settings)


def test_the_page_is_what_the_records_generate() -> None:
    page = speed_page.PAGE.read_text(encoding="utf-8")
    assert page == speed_page.render(), "run: python benchmarks/speed_page.py"


def test_records_name_no_folder_of_the_machine_that_made_them() -> None:
    files = sorted(peers.RECORDS.glob("*.json"))
    assert files
    assert not [file for file in files if "/" in file.read_text(encoding="utf-8")]


def test_an_id_of_rank_r_is_as_likely_as_1_over_r() -> None:
    ids = speed_job.zipf(200_000, 50, np.random.default_rng(0))
    counts = np.sort(np.bincount(ids, minlength=50))[::-1]
    # Continuous: rank r has log((r + 1) / r) / log 50 of the draws; five standard errors of a count.
    ranks = np.arange(1, 50)
    expected = 200_000 * np.log((ranks + 1) / ranks) / np.log(50)
    assert np.all(np.abs(counts[:49] - expected) < 5 * np.sqrt(expected) + 1)


def test_an_epoch_learns_from_every_row_and_the_feed_alone_from_none(
    folder: Path, tmp_path: Path
) -> None:
    fed, learned = (training(folder, tmp_path / name) for name in ("feed", "step"))
    assert speed_ours.feed_alone(fed) == speed_ours.one_epoch(learned) == JOB.rows
    assert (fed.step, learned.step) == (0, JOB.rows // JOB.batch_size)


@pytest.mark.parametrize("precision", speed_quality.PRECISIONS)
def test_a_step_in_parts_is_a_step(folder: Path, tmp_path: Path, precision: str) -> None:
    whole, apart = (
        training(folder, tmp_path / name, precision=precision) for name in ("whole", "apart")
    )
    with closing(whole.feed.batches(START)) as batches:
        batch = next(batches).batch
    speed_step.whole_step(whole, batch)
    parts = speed_step.step_in_parts(apart, batch)
    assert {*parts} == {*speed_step.PARTS} - {*speed_step.FEED} - {"rest"}
    for ours, theirs in zip(states(whole), states(apart), strict=True):
        assert torch.equal(ours, theirs)


def states(item: Training) -> list[torch.Tensor]:
    return [
        *item.model.program.state_dict().values(),
        *item.model.embeddings.table_weights().values(),
    ]


def test_the_plain_loop_has_the_layers_of_our_model(folder: Path, tmp_path: Path) -> None:
    ours = training(folder, tmp_path / "run").model
    loop = speed_torchrec.Loop(speed_clock.read_job(folder), bf16=False)
    (ids, labels_BT), *_ = speed_torchrec.batches(folder, "train")
    copy_weights(loop.model, ours.program)
    x_BI = loop.model.embeddings(ids).values()
    bottom = ours.program.bottom
    mixed = ours.program.heads(ours.program.mixing(x_BI))
    assert bottom.width == x_BI.shape[1]
    # Products of another order of sums.
    torch.testing.assert_close(mixed, loop.model(ids), rtol=1e-4, atol=1e-5)
    assert loop.train(iter([(ids, labels_BT)])) == JOB.batch_size


def copy_weights(loop: speed_torchrec.MMoE, program: Program) -> None:
    """Our program's parameters from the loop's."""
    parts: Any = program
    with torch.no_grad():
        for e, expert in enumerate(loop.experts):
            for depth, layer in enumerate((expert[0], expert[2])):  # type: ignore[index]
                parts.mixing.bank.weights[depth][e] = layer.weight
                parts.mixing.bank.biases[depth][e] = layer.bias
        for t, (gate, tower) in enumerate(zip(loop.gates, loop.towers, strict=True)):
            gate.bias.zero_()  # type: ignore[union-attr]
            parts.mixing.gates.weight[t] = gate.weight
            parts.heads.bank.weights[0][t] = tower[0].weight  # type: ignore[index]
            parts.heads.bank.biases[0][t] = tower[0].bias  # type: ignore[index]
            parts.heads.weight[t] = tower[2].weight[0]  # type: ignore[index]
            parts.heads.bias[t] = tower[2].bias[0]  # type: ignore[index]


def test_the_ceilings_work_is_that_of_the_loops_products(folder: Path) -> None:
    loop = speed_torchrec.Loop(speed_clock.read_job(folder), bf16=False)
    ids, _ = next(speed_torchrec.batches(folder, "train"))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        loop.model(ids)
    assert counted.get_total_flops() == 2 * JOB.batch_size * speed_ceiling.multiply_adds(JOB)


def test_a_worker_that_fails_ends_the_measurement_with_its_words() -> None:
    with pytest.raises(SystemExit, match=r"(?s)ended with 1.*no such table"):
        peers.result_of([sys.executable, "-c", "raise SystemExit('no such table')"], threads=1)


def test_bf16_is_compared_with_float32_on_the_same_rows(folder: Path) -> None:
    found = speed_quality.compared(folder, JOB, seed=0)
    assert list(found) == JOB.task_names
    assert all(0 < item["standard_error"] < 0.2 for item in found.values())


def test_growth_changes_one_size_at_a_time() -> None:
    base = asdict(speed_growth.BASE)
    for points in speed_growth.AXES.values():
        for job in points.values():
            assert sum(base[name] != value for name, value in asdict(job).items()) <= 1


def result(samples_per_second: float) -> dict[str, float]:
    return {
        "samples": samples_per_second,
        "cpu_seconds": 1.0,
        "wall_seconds": 1.0,
        "peak_bytes": 2**30,
    }


def test_an_aim_is_missed_by_the_median_round_against_the_better_library(tmp_path: Path) -> None:
    rates = dict.fromkeys(peers.SIDES, 100.0) | {"recsys float32": 260.0, "recsys bf16": 300.0}
    rounds = [{name: result(value) for name, value in rates.items()} for _ in range(3)]
    rounds[0]["torch-rechub"] = result(1.0)
    record = {"job": asdict(replace(JOB)), "rounds": rounds}
    (tmp_path / "peers-small.json").write_text(json.dumps(record))

    page = speed_page.render(tmp_path)

    assert "Aim for recsys float32, 2.5 times either library: reached, 2.6" in page
    assert "Aim for recsys bf16, 4 times either library: **missed**, 3.0" in page
    assert "plain TorchRec loop in the same precision: reached, 2.60" in page
