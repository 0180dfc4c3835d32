"""The command about machines: where the tables would lie, and whether they fit."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from recsys.cli.show import AsJson, show


def plan(
    experiment: Annotated[
        Path,
        typer.Argument(help="experiment.toml: schema, model, [sharding].", show_default=False),
    ],
    world_size: Annotated[
        int, typer.Option(min=1, help="Ranks in all, one a device.", show_default=False)
    ],
    ranks_per_host: Annotated[
        int | None, typer.Option(min=1, help="Default: 8, or all of fewer.", show_default=False)
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="What a rank computes on.")
    ] = "cuda",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows a rank takes a step. Default: data.batch_size.", show_default=False
        ),
    ] = None,
    hbm: Annotated[str, typer.Option(help="Memory of a device.")] = "80GB",
    host_memory: Annotated[str, typer.Option(help="Memory of a host.")] = "2TB",
    hbm_bandwidth: Annotated[
        str, typer.Option(help="A device reads its memory, a second.")
    ] = "3.35TB",
    host_bandwidth: Annotated[
        str, typer.Option(help="A CPU rank reads host memory, a second.")
    ] = "75GB",
    device_to_host_bandwidth: Annotated[
        str, typer.Option(help="A device reads host memory, a second.")
    ] = "64GB",
    intra_host_bandwidth: Annotated[
        str, typer.Option(help="A rank sends within its host, a second.")
    ] = "450GB",
    inter_host_bandwidth: Annotated[
        str, typer.Option(help="A rank sends to other hosts, a second.")
    ] = "50GB",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a value, such as sharding.reserved=0.2.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan where tables lie on many ranks, and whether they fit: without data, a GPU or their memory."""
    from recsys.experiment import load_experiment
    from recsys.training.distributed.audit import audit
    from recsys.training.distributed.cluster import Cluster
    from recsys.training.distributed.plan_text import plan_text
    from recsys.training.distributed.quantities import parse_bytes

    amounts = {
        "hbm_bytes": ("--hbm", hbm),
        "host_bytes": ("--host-memory", host_memory),
        "hbm_bandwidth": ("--hbm-bandwidth", hbm_bandwidth),
        "host_bandwidth": ("--host-bandwidth", host_bandwidth),
        "device_to_host_bandwidth": ("--device-to-host-bandwidth", device_to_host_bandwidth),
        "intra_host_bandwidth": ("--intra-host-bandwidth", intra_host_bandwidth),
        "inter_host_bandwidth": ("--inter-host-bandwidth", inter_host_bandwidth),
    }
    cluster = Cluster(
        world_size=world_size,
        ranks_per_host=ranks_per_host or min(8, world_size),
        device=device,
        **{name: parse_bytes(text, where=option) for name, (option, text) in amounts.items()},
    )
    tree = load_experiment(experiment, overrides=tuple(overrides or ()))
    result = audit(tree, cluster, batch_size=batch_size)
    show(result.to_json(), plan_text(result), as_json)
