"""Commands about models: train, measure, compare with another or with boosted trees, export."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.show import AsJson, Checkpoint, EvaluatedDays, RunDirectory, show


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
    warm_start: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Begin with what another run has learned; RUN/checkpoints/NAME is one checkpoint.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes that share tables and batches (torchrun does too)."),
    ] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Workers of this Ray cluster: HOST:PORT, auto, or local.", show_default=False
        ),
    ] = None,
    min_workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="On Ray: go on with so few after a loss. Default: all.", show_default=False
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often to go on after a worker was lost.")
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Train a model; the best checkpoint is chosen on the validation days."""
    from recsys.cli.training import Asked, start

    root = run_directory or experiment.parent / "run"
    asked = Asked(
        experiment,
        root,
        tuple(overrides or ()),
        resume=resume,
        warm_start=warm_start,
        workers=workers,
        ray_address=ray_address,
        min_workers=min_workers,
        max_restarts=max_restarts,
        as_json=as_json,
    )
    start(asked)


def evaluate(
    run_directory: RunDirectory,
    report: Annotated[Path | None, typer.Argument(help="Default: report, beside the run.")] = None,
    days: EvaluatedDays = None,
    checkpoint: Checkpoint = "BEST",
    as_json: AsJson = False,
) -> None:
    """Measure a trained model on held-out days: report.json, predictions and a table."""
    from recsys.evaluation.evaluate import evaluate as run

    result = run(
        run_directory, report or run_directory.parent / "report", days=days, checkpoint=checkpoint
    )
    show(result.to_json(), result.render(), as_json)


def doctor(
    run_directory: RunDirectory,
    days: EvaluatedDays = None,
    checkpoint: Checkpoint = "BEST",
    as_json: AsJson = False,
) -> None:
    """Examine a trained model's experts, gates and gradients: what has failed, and what to try."""
    from recsys.evaluation.doctor import examine

    result = examine(run_directory, days=days, checkpoint=checkpoint)
    show(result.to_json(), result.render(), as_json)


def compare(
    first: Annotated[Path, typer.Argument(help="A published report.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another, of the same days.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same rows: paired differences with intervals, by rows and by users."""
    from recsys.evaluation.side_by_side import compare_reports as run

    result = run(first, second)
    show(result.to_json(), result.render(), as_json)


def baseline(
    experiment: Annotated[
        Path, typer.Argument(help="experiment.toml: days and seed.", show_default=False)
    ],
    report: Annotated[
        Path | None, typer.Argument(help="Default: baseline, beside the experiment file.")
    ] = None,
    days: EvaluatedDays = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value, such as train.seed=1.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train boosted trees on the same rows and measure them alike: what a model has to beat."""
    from recsys.baseline.baseline import baseline as run
    from recsys.experiment import load_experiment

    tree = load_experiment(experiment, overrides=tuple(overrides or ()))
    result = run(tree, report or experiment.parent / "baseline", days=days)
    show(result.to_json(), result.render(), as_json)


def export(
    run_directory: RunDirectory,
    bundle: Annotated[Path | None, typer.Argument(help="Default: bundle, beside the run.")] = None,
    checkpoint: Checkpoint = "BEST",
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
    show(
        {"bundle": str(published.path), "version": published.version, "digest": published.digest},
        f"bundle {published.version} published, digest {published.digest[:12]}, scores equal to the model's\n"
        f"bundle: {published.path}",
        as_json,
    )


def architectures(as_json: AsJson = False) -> None:
    """List the bottoms, mixings and heads that [model] may name."""
    from recsys.models import describe

    found = describe()
    width = max(len(item.kind) for item in found)
    lines = [f"{item.stage:8} {item.kind:{width}}  {item.summary}" for item in found]
    show([vars(item) for item in found], "\n".join(lines), as_json)
