"""The command line: one command a stage, first argument in, second out.

Each command imports what it needs when it runs, so that `recsys serve` works where no torch is installed. A user's
mistake is one sentence on standard error and exit code 2; results go to standard output, as text or with --json.
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from typer.exceptions import TyperException

from recsys.cli import cluster, data, model, service
from recsys.cli.quickstart import quickstart
from recsys.config import wrong_value
from recsys.errors import TrainingStopped, UserError

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
    """The command, which Ctrl-C ends with exit code 130, and SIGTERM a training with 143, and a sentence.

    It says what is kept and how to go on.
    """

    @wraps(command)
    def run(*arguments: Any, **named: Any) -> None:
        try:
            command(*arguments, **named)
        except KeyboardInterrupt as stop:
            _fail(f"recsys: interrupted; {stop}" if str(stop) else "recsys: interrupted", code=130)
        except TrainingStopped as stop:
            _fail(f"recsys: {stop}", code=stop.EXIT_CODE)

    return run


def _fail(message: str, *, code: int) -> NoReturn:
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
    cluster.plan,
    model.train,
    model.evaluate,
    model.doctor,
    model.baseline,
    model.compare,
    model.export,
    service.serve,
    service.score,
    model.architectures,
):
    app.command()(_interruptible(command))


def _run(arguments: list[str]) -> int:
    """Run a command; gives its exit code. A command line that cannot be read is a `_fail` of one sentence."""
    if not arguments:
        arguments = ["--help"]
    try:
        return app(arguments, prog_name="recsys", standalone_mode=False) or 0
    except typer.Abort:
        _fail("recsys: stopped", code=1)
    except TyperException as error:
        _fail(f"recsys: {_usage(error)}", code=2)


def _usage(error: TyperException) -> str:
    """What is wrong with a command line, in one sentence."""
    context = getattr(error, "ctx", None)
    told = error.format_message().rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        told = f"{told.partition(': ')[0]}: {wrong_value(error.__cause__.errors()[0])}"
    told = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", told)
    asked_option = getattr(error, "option_name", "")
    # Of the options that come near, the nearest alone.
    told = re.sub(
        r"\(Possible options: (.*)\)$",
        lambda found: (
            f"(did you mean {get_close_matches(asked_option, found[1].split(', '), 1)[0]}?)"
        ),
        told,
    )
    asked = "recsys" if context is None else context.command_path
    return f"{told[0].lower()}{told[1:]}; see: {asked} --help"


def main() -> None:
    """Run the command line; the console script of the package."""
    try:
        _main()
    except SystemExit as end:
        if "RANK" not in os.environ:
            raise
        # A worker of a training: threads of its process group may abort an interpreter that ends as usual.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


def _main() -> NoReturn:
    # Read when torch loads. Threads that spin while they wait stop a busy machine: up to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    wants_traceback = "--traceback" in arguments
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    for package in ("recsys", "pipelines", "serving"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        raise SystemExit(_run([argument for argument in arguments if argument != "--traceback"]))
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
