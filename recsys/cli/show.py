"""What commands share: arguments of one meaning, and how a result is printed."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Pipeline = Annotated[
    Path, typer.Argument(help="pipeline.toml: how raw files become rows.", show_default=False)
]
RunDirectory = Annotated[Path, typer.Argument(help="The run's directory.", show_default=False)]
EvaluatedDays = Annotated[
    str | None,
    typer.Option(
        "--days",
        help="A day, a range 2026-10-01:2026-10-03 or a split. Default: the experiment's test.",
    ),
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="BEST, CURRENT or a version.")]
RawFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Parquet, CSV or JSON lines, or folders of them.",
        show_default=False,
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="A column to predict; may be repeated.", show_default=False),
]
UserColumn = Annotated[
    str | None, typer.Option("--user", help="The column of users.", show_default=False)
]
ItemColumn = Annotated[
    str | None, typer.Option("--item", help="The column of items.", show_default=False)
]
TimeColumn = Annotated[
    str | None, typer.Option("--time", help="The column of times.", show_default=False)
]
MayAsk = Annotated[
    bool,
    typer.Option("--input/--no-input", help="Whether to ask on a terminal what cannot be told."),
]


def show(result: Any, text: str, as_json: bool) -> None:
    """Print a command's result on standard output."""
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)


def asking(may_ask: bool) -> Callable[[str, Sequence[str]], int] | None:
    """How to ask a question: on the terminal, if there is one and it may be; else not at all."""
    return choice if may_ask and sys.stdin.isatty() and sys.stdout.isatty() else None


def choice(question: str, choices: Sequence[str]) -> int:
    """The number, from 0, of the choice that is made on the terminal."""
    typer.echo(question)
    for number, text in enumerate(choices, start=1):
        typer.echo(f"  {number}  {text}")
    while True:
        answer: int = typer.prompt("Number", type=int)
        if 1 <= answer <= len(choices):
            return answer - 1
        typer.echo(f"Write a number from 1 to {len(choices)}.")
