"""A running server: sockets, key file, metrics port, ready file, signals."""

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prometheus_client import start_http_server

from recsys.errors import ConfigError
from serving.app import create_app
from serving.config import Limits, ServiceConfig
from serving.metrics import Metrics
from serving.models import Models

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_LEAST_KEY_LENGTH = 32
_DRAIN_SECONDS = 25
_BACKLOG = 512


def serve(
    bundles: Path | Sequence[Path],
    *,
    host: str = LOOPBACK,
    port: int = 8000,
    metrics_host: str = LOOPBACK,
    metrics_port: int | None = 8001,
    key_file: Path | None = None,
    ready_file: Path | None = None,
    config: ServiceConfig | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve bundles until SIGTERM or SIGINT, then finish what was accepted.

    Port 0 takes a free one. `ready_file` holds the server's URL while requests are answered; with `metrics_port` None
    there are no metrics. Raises ConfigError for an address beyond this machine without a key file, for a weak key and
    for a taken port, and ArtifactError for a bundle that does not verify.
    """
    key = None if key_file is None else read_key(key_file)
    if key is None and not _is_loopback(host):
        raise ConfigError(
            f"host {host!r} is reachable from other machines; give a key file, or serve on {LOOPBACK}"
        )
    if ready_file is not None:
        _clear(ready_file)
    models = Models.load([bundles] if isinstance(bundles, Path) else bundles, limits=limits)
    metrics = Metrics()
    app = create_app(models, config, metrics=metrics, key=key)
    # What is loaded now stays: no later collection needs to walk it.
    gc.collect()
    gc.freeze()
    with _listening(host, port) as listener, _metrics_server(metrics, metrics_host, metrics_port):
        _run(app, listener, ready_file)


def read_key(file: Path) -> str:
    """The key that a file holds: one line of at least 32 characters. Raises ConfigError."""
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise ConfigError(f"{file}: no readable key ({reason}); write one line of ASCII") from error
    if len(key) < _LEAST_KEY_LENGTH or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{file}: a key is one line of at least {_LEAST_KEY_LENGTH} printable characters without blanks; "
            "make one with: openssl rand -hex 32"
        )
    return key


def _run(app: FastAPI, listener: socket.socket, ready_file: Path | None) -> None:
    settings = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    with _until_stopped(), asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(_serve_until_stopped(uvicorn.Server(settings), listener, ready_file))


async def _serve_until_stopped(
    server: uvicorn.Server, listener: socket.socket, ready_file: Path | None
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started:
        host, port = listener.getsockname()[:2]
        logger.info("serve.ready url=%s", _url(host, port))
        if ready_file is not None:
            _write_at_once(ready_file, _url(host, port) + "\n")
    try:
        await serving
    finally:
        # Whoever waits for the next server's file would find this one's.
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


class _Stopped(BaseException):
    """SIGTERM: uvicorn raises the signal again once everything accepted is answered."""


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C end the block instead of the process, so that what is open gets closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except (_Stopped, KeyboardInterrupt):
        logger.info("serve.stopped")
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> None:
    raise _Stopped


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
            raise ConfigError(f"port {port} on {host}: {reason}; choose another or 0") from error
        listener.listen(_BACKLOG)
        yield listener


@contextmanager
def _metrics_server(metrics: Metrics, host: str, port: int | None) -> Iterator[None]:
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=metrics.registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
        raise ConfigError(f"metrics port {port} on {host}: {reason}; choose another") from error
    logger.info("serve.metrics url=%s/metrics", _url(host, server.server_port))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name may resolve to anything tomorrow.
        return host == "localhost"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _clear(ready_file: Path) -> None:
    """No file of an earlier server there, and a folder to write into. Raises ConfigError."""
    try:
        ready_file.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"ready file {ready_file}: {error.strerror}; choose another place"
        ) from error
    if not ready_file.parent.is_dir():
        raise ConfigError(f"ready file {ready_file}: no such folder; make it, or name another")


def _write_at_once(file: Path, text: str) -> None:
    """Whoever waits for the file finds it whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)
