"""Commands about data: simulated or raw rows to encoded days."""

from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.cli.show import (
    AsJson,
    ItemColumn,
    Labels,
    MayAsk,
    Pipeline,
    RawFiles,
    TimeColumn,
    UserColumn,
    asking,
    show,
)


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
    show(log.to_json(), log.render(), as_json)


def init(
    files: RawFiles,
    out: Annotated[Path, typer.Option(help="Where the three TOML files go.")] = Path(),
    labels: Labels = None,
    user: UserColumn = None,
    item: ItemColumn = None,
    time: TimeColumn = None,
    may_ask: MayAsk = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace TOML files that are there.")
    ] = False,
) -> None:
    """Write commented schema.toml, pipeline.toml and experiment.toml for your own files."""
    from pipelines.init import propose

    proposal = propose(
        files, labels=labels or (), user=user, item=item, time=time, ask=asking(may_ask)
    )
    proposal.write(out, force=force)
    pipeline, experiment = out / "pipeline.toml", out / "experiment.toml"
    typer.echo(proposal.render())
    typer.echo(
        f"\nwritten: {out / 'schema.toml'}, {pipeline}, {experiment}; read and change them, then\n"
        f"  recsys fit {pipeline} && recsys build {pipeline}\n"
        f"  recsys train {experiment} {out / 'run'} && recsys evaluate {out / 'run'}"
    )


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
    show(report.to_json(), report.render(), as_json)
    if report.problems:
        raise typer.Exit(2)


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
    show(
        {"encoder": str(root), "digest": fitted.digest, "vocabularies": sizes},
        f"encoder {fitted.digest[:12]} published under {root}\n{listed}",
        as_json,
    )


def build(
    pipeline: Pipeline,
    data: Annotated[
        Path | None, typer.Argument(help="Default: data, or raw, beside the file.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Default: encoder, beside the pipeline file.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Encode as a Ray Data job.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Publish rows not encoded: data.stream encodes them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Label, split and encode the rows, and publish them as days or named splits."""
    from pipelines.build import build as run
    from pipelines.build import build_raw

    folder = pipeline.parent
    if raw:
        summary = build_raw(pipeline, data or folder / "raw", ray=ray)
    else:
        summary = run(
            pipeline, data or folder / "data", encoder=encoder or folder / "encoder", ray=ray
        )
    show(summary.to_json(), summary.render(), as_json)


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
    show(result.to_json(), result.render(), as_json)
