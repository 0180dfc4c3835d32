"""What commands share: arguments of one meaning, and how a result is printed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Pipeline = Annotated[
    Path, typer.Argument(help="pipeline.toml: how raw files become rows.", show_default=False)
]
RunDirectory = Annotated[Path, typer.Argument(help="The run's directory.", show_default=False)]


def show(result: Any, text: str, as_json: bool) -> None:
    """Print a command's result on standard output."""
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)


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
