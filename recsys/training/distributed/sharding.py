"""A run's model with its tables spread over ranks.

TorchRec's `DistributedModelParallel` puts sharded collections in the place of those that hold nothing yet; each rank
then fills in its part of the values that one process begins with. Every rank holds all that lies behind the tables.
"""

import warnings
from typing import Any

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology

from recsys.models import RankingModel, build_model
from recsys.models.embeddings.torchrec import TorchRecTables
from recsys.ranks import on_first, ranks_here, world_size
from recsys.run import RunDirectory


def sharded_model(run: RunDirectory, device: torch.device) -> RankingModel:
    """The run's model as it is before the first step, with this rank's part of its tables."""
    experiment = run.experiment
    model = build_model(
        run.schema,
        experiment.model,
        seed=experiment.train.seed,
        device=device,
        tables_device="meta",
    )
    tables = model.embeddings.tables
    assert isinstance(tables, TorchRecTables)
    if model.embeddings.specs:
        shard(tables, device)
    return model


def shard(tables: TorchRecTables, device: torch.device) -> None:
    """Spread tables that hold nothing yet over ranks, in place, and fill in what one process begins with."""
    # Losses are of the rows of all ranks, so their gradients add up: TorchRec would take the mean.
    set_gradient_division(False)
    # TorchRec 1.8 calls collectives by names that torch 2.13 would have others.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    here = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    DistributedModelParallel(
        tables,
        device=here,
        plan=_plan(tables, device),
        sharders=[_Sharder()],
        init_data_parallel=False,
        init_parameters=False,
    )
    tables.initialise()


class _Sharder(FusedEmbeddingBagCollectionSharder):  # type: ignore[misc] # a class without types
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise"]


def _plan(tables: TorchRecTables, device: torch.device) -> Any:
    topology = Topology(
        world_size=world_size(), local_world_size=ranks_here(), compute_device=device.type
    )
    planner = EmbeddingShardingPlanner(topology=topology)
    return on_first(lambda: planner.plan(tables, [_Sharder()]))
