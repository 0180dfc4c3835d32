"""Commands about a bundle: serve it, score rows with it."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.show import AsJson, show


def serve(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...",
            help="Published bundles; the first is the default.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to bind; another than loopback needs --key-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option(help="Prometheus metrics; 0 takes a free port.")
    ] = 8001,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token callers must send.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Holds the service's URL while it answers.")
    ] = None,
) -> None:
    """Serve a bundle over HTTP: POST /v1/rank."""
    from serving.server import serve as run

    run(
        bundles,
        host=host,
        port=port,
        metrics_port=metrics_port,
        key_file=key_file,
        ready_file=ready_file,
    )


def score(
    rows: Annotated[Path, typer.Argument(help="Parquet file of raw rows.", show_default=False)],
    scores: Annotated[Path, typer.Argument(help="Parquet file to write.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(help="Score in this process with the server's code.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Score through a running service.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="Bearer token for --url.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score raw rows with a bundle or a running service."""
    from serving.scoring import score_file

    result = score_file(rows, scores, bundle=bundle, url=url, key_file=key_file)
    show(result.to_json(), result.render(), as_json)
