"""The command line: one command a stage, first argument in, second out.

Each command imports what it needs when it runs, so that `recsys serve` works where no torch is installed. A user's
mistake is one sentence on standard error and exit code 2; results go to standard output, as text or with --json.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Pipeline = Annotated[
    Path, typer.Argument(help="pipeline.toml: how raw files become rows.", show_default=False)
]
RunDirectory = Annotated[Path, typer.Argument(help="The run's directory.", show_default=False)]


@app.command()
def simulate(
    out: Annotated[
        Path, typer.Argument(help="Where the log and its TOML files go.", show_default=False)
    ],
    rows: Annotated[int | None, typer.Option(help="Impressions in all; up to 100 million.")] = None,
    users: Annotated[int | None, typer.Option(help="Number of users.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of items.")] = None,
    days: Annotated[
        int | None, typer.Option(help="Days in the log; the last is the test day.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write an impression log with a known truth, and the files that train on it."""
    from pipelines.simulate import simulate as run

    named: dict[str, Any] = {"rows": rows, "users": users, "items": items, "days": days}
    log = run(out, seed=seed, **{name: size for name, size in named.items() if size is not None})
    _show(log.to_json(), log.render(), as_json)


@app.command()
def fit(
    pipeline: Pipeline,
    encoder: Annotated[
        Path | None, typer.Argument(help="Default: encoder, beside the pipeline file.")
    ] = None,
    previous: Annotated[
        Path | None, typer.Option(help="An encoder to extend: its ids keep their rows.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the encoder (vocabularies, means, quantiles) on the training rows."""
    from pipelines.build import fit as run

    root = encoder or pipeline.parent / "encoder"
    fitted = run(pipeline, root, previous=previous)
    sizes = {name: len(vocabulary.values) for name, vocabulary in fitted.vocabularies.items()}
    listed = "\n".join(f"  {name}: {size} values" for name, size in sizes.items())
    _show(
        {"encoder": str(root), "digest": fitted.digest, "vocabularies": sizes},
        f"encoder {fitted.digest[:12]} published under {root}\n{listed}",
        as_json,
    )


@app.command()
def build(
    pipeline: Pipeline,
    data: Annotated[
        Path | None, typer.Argument(help="Default: data, beside the pipeline file.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Default: encoder, beside the pipeline file.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Encode as a Ray Data job.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label, split and encode the rows, and publish them as days or named splits."""
    from pipelines.build import build as run

    root = data or pipeline.parent / "data"
    summary = run(pipeline, root, encoder=encoder or pipeline.parent / "encoder", ray=ray)
    _show(summary.to_json(), summary.render(), as_json)


@app.command()
def check(
    pipeline: Pipeline,
    encoder: Annotated[
        Path | None, typer.Option(help="Count ids that this encoder does not know.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold the raw rows against the schema; exit code 2 when they break it."""
    from pipelines.contract import check as run

    report = run(pipeline, encoder=encoder)
    _show(report.to_json(), report.render(), as_json)
    if report.problems:
        raise typer.Exit(2)


@app.command()
def rows(
    pipeline: Pipeline,
    out: Annotated[Path, typer.Argument(help="Parquet file to write.", show_default=False)],
    days: Annotated[
        list[str] | None,
        typer.Option("--day", help="Only this day or split; may be repeated.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write raw rows as a server is sent them: joined, labelled, with histories. `score` reads them."""
    from pipelines.raw_rows import write_rows

    result = write_rows(pipeline, out, days=days, limit=limit)
    _show(result.to_json(), result.render(), as_json)


@app.command()
def train(
    experiment: Annotated[
        Path, typer.Argument(help="experiment.toml: model and training.", show_default=False)
    ],
    run_directory: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Default: run, beside the experiment file.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a value, such as train.steps=200.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model; the best checkpoint is chosen on the validation days."""
    from recsys.experiment import load_experiment
    from recsys.training.trainer import train as run

    tree = load_experiment(experiment, overrides=tuple(overrides or ()))
    result = run(tree, run_directory or experiment.parent / "run", resume=resume)
    _show(result.to_json(), result.render(), as_json)


@app.command()
def evaluate(
    run_directory: RunDirectory,
    report: Annotated[Path | None, typer.Argument(help="Default: report, beside the run.")] = None,
    days: Annotated[
        str | None,
        typer.Option(
            help="A day, a range 2026-10-01:2026-10-03 or a split. Default: the experiment's test."
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="BEST, CURRENT or a version.")] = "BEST",
    as_json: AsJson = False,
) -> None:
    """Measure a trained model on held-out days: report.json, predictions and a table."""
    from recsys.evaluation.evaluate import evaluate as run

    result = run(
        run_directory, report or run_directory.parent / "report", days=days, checkpoint=checkpoint
    )
    _show(result.to_json(), result.render(), as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A published report.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another, of the same days.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same rows: paired differences with intervals, by rows and by users."""
    from recsys.evaluation.side_by_side import compare_reports as run

    result = run(first, second)
    _show(result.to_json(), result.render(), as_json)


@app.command()
def export(
    run_directory: RunDirectory,
    bundle: Annotated[Path | None, typer.Argument(help="Default: bundle, beside the run.")] = None,
    checkpoint: Annotated[str, typer.Option(help="BEST, CURRENT or a version.")] = "BEST",
    name: Annotated[str, typer.Option(help="The model's name in requests.")] = "default",
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Raw rows (of `recsys rows`) to replay at every load, beside made-up ones."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint to a bundle that serves without torch, its scores proven equal."""
    from recsys.export import export as run
    from recsys.raw import read_rows

    root = bundle or run_directory.parent / "bundle"
    golden = None if rows is None else read_rows(rows)
    published = run(run_directory, root, checkpoint=checkpoint, name=name, rows=golden)
    _show(
        {"bundle": str(published.path), "version": published.version, "digest": published.digest},
        f"bundle {published.version} published, digest {published.digest[:12]}, scores equal to the model's\n"
        f"bundle: {published.path}",
        as_json,
    )


@app.command()
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


@app.command()
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
    _show(result.to_json(), result.render(), as_json)


@app.command()
def architectures(as_json: AsJson = False) -> None:
    """List the bottoms, mixings and heads that [model] may name."""
    from recsys.models import describe

    found = describe()
    width = max(len(item.kind) for item in found)
    lines = [f"{item.stage:8} {item.kind:{width}}  {item.summary}" for item in found]
    _show([vars(item) for item in found], "\n".join(lines), as_json)


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


def _show(result: Any, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)


def _fail(message: str, *, code: int) -> None:
    typer.echo(message, err=True)
    raise SystemExit(code) from None
