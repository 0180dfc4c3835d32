"""A real server process: it starts, answers, measures, drains and stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.cores import available_cores
from recsys.errors import ArtifactError, ConfigError
from serving.server import read_key, serve
from tests.bundles import full_bundle
from tests.serving.requests import full_request

PATIENCE_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(ready_file: Path, **options: Any) -> subprocess.Popen[bytes]:
    named = {"port": 0, "metrics_port": None} | options
    program = (
        "import logging; from pathlib import Path; from serving.server import serve; "
        "logging.basicConfig(level=logging.INFO); "
        f"serve(Path({str(full_bundle())!r}), ready_file=Path({str(ready_file)!r}), **{named!r})"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE
    )


def url_of(ready_file: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready_file.exists():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.02)
    return ready_file.read_text().strip()


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[str]:
    ready_file = tmp_path_factory.mktemp("server") / "ready"
    process = start(ready_file, metrics_port=metrics_port)
    try:
        yield url_of(ready_file, process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors


def test_a_server_process_answers_on_a_free_port_of_the_loopback(server: str) -> None:
    assert server.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=server) as client:
        assert client.get("/readyz").status_code == 200
        answer = client.post("/v1/rank", json=full_request(50))
        assert answer.status_code == 200
        assert len(answer.json()["score"]) == 50
        assert "server" not in answer.headers


def test_metrics_lie_on_a_port_of_their_own(server: str, metrics_port: int) -> None:
    httpx.post(f"{server}/v1/rank", json=full_request())
    text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    assert "rank_requests_total{" in text
    assert httpx.get(f"{server}/metrics").status_code == 404


def test_ten_megabytes_are_refused_with_an_answer(server: str) -> None:
    body = b'{"candidates": {"ids": ["' + b"x" * 10_000_000 + b'"]}}'
    answer = httpx.post(
        f"{server}/v1/rank", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["code"] == "BODY_TOO_LARGE"
    assert httpx.post(f"{server}/v1/rank", json=full_request()).status_code == 200


def test_a_caller_that_goes_away_amid_its_body_disturbs_nobody(
    server: str, metrics_port: int
) -> None:
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert httpx.post(f"{server}/v1/rank", json=full_request()).status_code == 200
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (
        'reason="body_incomplete"' not in httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_server_answers_health_checks_while_it_ranks(server: str) -> None:
    statuses: list[int] = []

    def rank() -> None:
        with httpx.Client(base_url=server, timeout=PATIENCE_SECONDS) as client:
            statuses.extend(
                client.post("/v1/rank", json=full_request(1000)).status_code for _ in range(5)
            )

    threads = [threading.Thread(target=rank) for _ in range(4)]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=server) as client:
        while any(thread.is_alive() for thread in threads):
            assert client.get("/livez").status_code == 200
    assert statuses == [200] * 20


def test_sigterm_lets_an_accepted_request_finish(tmp_path: Path) -> None:
    process = start(tmp_path / "ready")
    url = url_of(tmp_path / "ready", process)
    content = json.dumps(full_request(500)).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        head = "POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        # Half of the body before the signal, half after: the request is accepted and not yet answered.
        connection.sendall(head.encode() + content[:1000])
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(content[1000:])
        answer = connection.makefile("rb").readline()
    assert b"200" in answer
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


def test_an_address_beyond_this_machine_needs_a_key_file(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="give a key file"):
            serve(full_bundle(), host=host)
    with pytest.raises(ConfigError, match="no readable key"):
        serve(full_bundle(), host="0.0.0.0", key_file=tmp_path / "missing")


@pytest.mark.parametrize(
    "key", ["", "short", "x" * 31, "with blanks " * 4, "ключ" * 10, "two\nlines" * 10]
)
def test_a_weak_key_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_key(file)


def test_a_good_key_is_read_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a" * 32 + "\n")
    assert read_key(file) == "a" * 32


def test_a_taken_or_impossible_port_and_a_missing_bundle_are_clear_errors(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            serve(full_bundle(), port=port, metrics_port=None)
        with pytest.raises(ConfigError, match=f"metrics port {port}"):
            serve(full_bundle(), port=0, metrics_port=port)
    with pytest.raises(ConfigError, match=r"port 65536 on .*: a port is a number"):
        serve(full_bundle(), port=65_536, metrics_port=None)
    with pytest.raises(ConfigError, match=r"metrics port 65536 on .*: a port is a number"):
        serve(full_bundle(), port=0, metrics_port=65_536)
    with pytest.raises(ArtifactError, match="no such bundle"):
        serve(tmp_path / "nothing")


def test_a_ready_file_that_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="no such folder; make it"):
        serve(tmp_path / "nothing", ready_file=tmp_path / "nowhere" / "url")
    with pytest.raises(ConfigError, match=f"ready file {tmp_path}: "):
        serve(tmp_path / "nothing", ready_file=tmp_path)


def test_a_ready_file_is_gone_while_no_server_answers(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    ready_file.write_text("http://127.0.0.1:9\n")
    with pytest.raises(ArtifactError, match="no such bundle"):
        serve(tmp_path / "nothing", ready_file=ready_file)
    assert not ready_file.exists()
    process = start(ready_file)
    url_of(ready_file, process)
    process.terminate()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert not ready_file.exists()


def test_this_process_has_between_one_core_and_its_affinity() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
