"""`recsys quickstart`: from a file of rows to a report and a served bundle, by steps that are commands themselves."""

import shutil
from pathlib import Path
from typing import Annotated

import orjson
import typer

from recsys.cli.show import (
    ItemColumn,
    Labels,
    MayAsk,
    RawFiles,
    TimeColumn,
    UserColumn,
    asking,
)
from recsys.errors import ConfigError, DataError

_GOLDEN_ROWS = 200
_SHOWN_CANDIDATES = 5
_DESCRIBED = ("schema.toml", "pipeline.toml", "experiment.toml")
_MADE = ("encoder", "data", "run", "report", "bundle")


def quickstart(
    files: RawFiles,
    labels: Labels = None,
    user: UserColumn = None,
    item: ItemColumn = None,
    time: TimeColumn = None,
    may_ask: MayAsk = True,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier quickstart in that place.")
    ] = False,
    serve: Annotated[bool, typer.Option(help="Serve the bundle at the end.")] = True,
    port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option(help="Prometheus metrics; 0 takes a free port.")
    ] = 8001,
    ready_file: Annotated[
        Path | None, typer.Option(help="Holds the service's URL while it answers.")
    ] = None,
) -> None:
    """From a file of your own to a report and a served model, in one command."""
    from pipelines.init import propose

    _require_room(out, force=force)
    proposal = propose(
        files, labels=labels or (), user=user, item=item, time=time, ask=asking(may_ask)
    )
    if force:
        _clear(out)
    proposal.write(out, force=force)
    typer.echo(proposal.render())
    request = _export(out, held_out=_train(out))
    url = f"http://127.0.0.1:{port}" if port else "the URL above"
    question = f"curl -s {url}/v1/rank -H 'Content-Type: application/json' -d @{request}"
    if not serve:
        typer.echo(f"to serve it: recsys serve {out / 'bundle'}, then\n  {question}")
        return
    from serving.server import serve as run

    _say(f"recsys serve {out / 'bundle'} --port {port}")
    typer.echo(f"ask it, from another terminal; Ctrl-C stops it:\n  {question}")
    run(out / "bundle", port=port, metrics_port=metrics_port, ready_file=ready_file)


def _require_room(out: Path, *, force: bool) -> None:
    found = next((out / name for name in (*_DESCRIBED, *_MADE) if (out / name).exists()), None)
    if found is not None and not force:
        raise ConfigError(
            f"{found}: is there already; replace it with --force, name another place with --out, "
            f"or go on from it by hand, beginning with: recsys fit {out / 'pipeline.toml'}"
        )


def _clear(out: Path) -> None:
    """Take away what an earlier quickstart made, and nothing else."""
    for name in _MADE:
        if (out / name).exists():
            shutil.rmtree(out / name)


def _train(out: Path) -> list[str]:
    """Encoder, data, run and report, each step named as the command that repeats it; gives the days reported on."""
    from pipelines.build import build, fit
    from recsys.evaluation.evaluate import evaluate
    from recsys.experiment import load_experiment
    from recsys.training.trainer import train

    pipeline, experiment = out / "pipeline.toml", out / "experiment.toml"
    _say(f"recsys fit {pipeline}")
    fit(pipeline, out / "encoder")
    _say(f"recsys build {pipeline}")
    typer.echo(build(pipeline, out / "data", encoder=out / "encoder").render())
    _say(f"recsys train {experiment}")
    typer.echo(train(load_experiment(experiment), out / "run").render())
    _say(f"recsys evaluate {out / 'run'}")
    evaluation = evaluate(out / "run", out / "report")
    typer.echo(evaluation.render())
    return [item.day for item in evaluation.report.days]


def _export(out: Path, *, held_out: list[str]) -> Path:
    """Export the bundle, real rows among its golden requests; gives the file of a request to try."""
    from pipelines.raw_rows import write_rows
    from recsys.export import export
    from recsys.raw import read_rows
    from recsys.request_rows import RequestColumns
    from recsys.schema import load_schema
    from serving.rows import request_tree

    rows_file, request_file = out / "rows.parquet", out / "request.json"
    _say(f"recsys export {out / 'run'} --rows {rows_file}")
    write_rows(out / "pipeline.toml", rows_file, days=held_out, limit=_GOLDEN_ROWS)
    rows = read_rows(rows_file)
    if not rows.num_rows:
        raise DataError(f"{rows_file}: holds no rows to export with; check the filters")
    export(out / "run", out / "bundle", rows=rows)
    columns = RequestColumns.of(load_schema(out / "schema.toml"))
    tree = request_tree(rows.slice(0, _SHOWN_CANDIDATES), columns)
    request_file.write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2))
    return request_file


def _say(command: str) -> None:
    typer.echo(f"+ {command}", err=True)
