"""The command line: one command a stage, first argument in, second out.

Each command imports what it needs when it runs, so that `recsys serve` works where no torch is installed. A user's
mistake is one sentence on standard error and exit code 2; results go to standard output, as text or with --json.
"""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from recsys.cli import data, model, service
from recsys.cli.quickstart import quickstart
from recsys.errors import UserError

app = typer.Typer(
    name="recsys",
    help="Multi-task ranking: from impression logs to an HTTP score.",
    epilog="--traceback, anywhere on the line, shows where an error came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which Ctrl-C ends with exit code 130 and a sentence: what is kept and how to go on."""

    @wraps(command)
    def run(*arguments: Any, **named: Any) -> None:
        try:
            command(*arguments, **named)
        except KeyboardInterrupt as stop:
            _fail(f"recsys: interrupted; {stop}" if str(stop) else "recsys: interrupted", code=130)

    return run


def _fail(message: str, *, code: int) -> None:
    typer.echo(message, err=True)
    raise SystemExit(code) from None


# In the order in which help lists them.
for command in (
    quickstart,
    data.init,
    data.simulate,
    data.fit,
    data.build,
    data.check,
    data.rows,
    model.train,
    model.evaluate,
    model.baseline,
    model.compare,
    model.export,
    service.serve,
    service.score,
    model.architectures,
):
    app.command()(_interruptible(command))


def main() -> None:
    """Run the command line; the console script of the package."""
    # Read when torch loads. Threads that spin while they wait stop a busy machine: up to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    wants_traceback = "--traceback" in arguments
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    for package in ("recsys", "pipelines", "serving"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        app([argument for argument in arguments if argument != "--traceback"])
    except UserError as error:
        if wants_traceback:
            raise
        _fail(f"recsys: {error}", code=2)
    except BrokenPipeError:
        # The reader of our output has gone (`recsys ... | head`): nothing is left to say, nor to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        if wants_traceback:
            raise
        _fail(
            f"recsys: unexpected {type(error).__name__}: {error} (--traceback shows where)", code=1
        )
