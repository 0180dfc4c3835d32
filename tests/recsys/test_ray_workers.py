"""Workers of a Ray cluster train what one process trains, and go on after one is lost."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from recsys.errors import ConfigError
from recsys.experiment import Experiment, load_experiment
from recsys.training.distributed.ray_launcher import Fleet, require_shared, train_on_ray
from recsys.training.trainer import train
from tests.recsys.test_stream import publish_raw
from tests.recsys.test_workers import (
    ROOT,
    Trained,
    assert_close,
    data_in,
    losses_of,
    state_of,
)

# Deprecations of Ray's own, met while it starts.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*:DeprecationWarning", "ignore:(?s).*:FutureWarning"
)
EPOCHS = ("--set", "train.epochs=10")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(data_in(tmp_path_factory.mktemp("ray")))


@contextmanager
def started(folder: Path, run: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command line with two workers of a local Ray, ended when the block ends."""
    command = [sys.executable, "-m", "recsys", "train", str(folder / "experiment.toml")]
    command += [str(folder / run), "--workers", "2", "--ray-address", "local", *options]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for item in [*psutil.Process(process.pid).children(recursive=True), process]:
                item.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.ray
def test_ray_workers_train_what_one_process_trains(trained: Trained) -> None:
    with started(trained.folder, "mmoe") as process:
        _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    alone = trained.alone("mmoe")
    assert losses_of(trained.folder / "mmoe") == pytest.approx(losses_of(alone), rel=1e-5)
    assert_close(state_of(trained.folder / "mmoe"), state_of(alone), 1e-5)


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_ray_worker_starts_all_again_from_the_checkpoint(trained: Trained) -> None:
    run = trained.folder / "killed"
    with started(trained.folder, "killed", *EPOCHS) as process:
        one_at_work(process, run).kill()
        _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert re.search(
        r"train\.restart restart=1/3 from=checkpoint because='the Ray cluster has lost worker", err
    )
    assert_is_the_uninterrupted(trained, run)


def assert_is_the_uninterrupted(trained: Trained, run: Path) -> None:
    alone = trained.folder / "uninterrupted"
    if not alone.exists():
        train(longer(trained), alone)
    assert losses_of(run) == pytest.approx(losses_of(alone), rel=1e-4)
    assert_close(state_of(run), state_of(alone), 1e-4)


def longer(trained: Trained) -> Experiment:
    return load_experiment(trained.folder / "experiment.toml", overrides=[EPOCHS[1]])


@pytest.mark.slow
@pytest.mark.ray
def test_fewer_workers_go_on_where_a_machine_is_lost(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two machines, of one core and of two, of which the second is taken away."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    run = trained.folder / "fewer"
    memory = {"num_cpus": 1, "object_store_memory": 128 << 20}
    machines = Cluster(initialize_head=True, head_node_args=memory | {"include_dashboard": False})
    try:
        lost = machines.add_node(**memory | {"num_cpus": 2})
        ray.init(machines.address, log_to_driver=False)
        with pytest.raises(ConfigError, match="takes 4 CPUs, and the cluster has 3; start fewer"):
            train_on_ray(longer(trained), run, Fleet("auto", 4, 4, 0))

        def take_away() -> None:
            while not (run / "checkpoints" / "CURRENT").exists():
                time.sleep(0.05)
            machines.remove_node(lost, allow_graceful=False)

        with ThreadPoolExecutor(1) as thread:
            taken = thread.submit(take_away)
            train_on_ray(longer(trained), run, Fleet("auto", 3, 1, 3))
            taken.result()
    finally:
        ray.shutdown()
        machines.shutdown()
    assert "train.restart restart=1/3 from=checkpoint" in caplog.text
    assert_is_the_uninterrupted(trained, run)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_workers_share_a_stream(trained: Trained) -> None:
    raw = publish_raw(trained.folder)
    with started(trained.folder, "streamed", "--set", f"data.stream={raw}") as process:
        _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    streamed, alone = losses_of(trained.folder / "streamed"), losses_of(trained.alone("mmoe"))
    assert len(streamed) == len(alone)
    # The same rows in other batches.
    assert sum(streamed) == pytest.approx(sum(alone), rel=0.1)


def one_at_work(process: subprocess.Popen[str], run: Path) -> psutil.Process:
    """A worker, once they have written a checkpoint."""
    until = time.monotonic() + 900
    while not (run / "checkpoints" / "CURRENT").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    return next(item for item in children if "RayTrainWorker" in " ".join(item.cmdline()))


@pytest.mark.slow
@pytest.mark.ray
def test_a_mistake_that_a_ray_worker_meets_is_told_once(trained: Trained) -> None:
    rates = ("--set", "optimizer.dense_lr=1e30", "--set", "optimizer.clip_norm=1e30")
    rates += ("--set", "train.max_skipped_steps=0")
    with started(trained.folder, "diverged", *rates) as process:
        _, err = process.communicate(timeout=900)
    assert process.returncode == 2
    (sentence,) = (line for line in err.splitlines() if line.startswith(("recsys:", "Traceback")))
    assert re.match(r"recsys: step 1: the loss or its gradient is not finite", sentence)
    assert "train.restart" not in err


def test_a_machine_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    mark = tmp_path / ".seen"
    mark.touch()
    require_shared(mark, tmp_path / "run")
    mark.unlink()
    with pytest.raises(ConfigError, match="run: another machine of the Ray cluster does not see"):
        require_shared(mark, tmp_path / "run")
