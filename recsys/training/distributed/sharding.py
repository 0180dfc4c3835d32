"""A run's model with its tables spread over ranks.

TorchRec's `DistributedModelParallel` puts sharded collections in the place of those that hold nothing yet; each rank
then fills in its part of the values that one process begins with. Tables that the plan copies to all ranks stand beside
them. Every rank holds all that lies behind the tables.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm_ops import set_gradient_division

from recsys.models import RankingModel, build_model
from recsys.models.embeddings.replicated import MixedTables, ReplicatedTables
from recsys.models.embeddings.tables import Tables, TableSpec
from recsys.models.embeddings.torchrec import TorchRecTables
from recsys.ranks import on_first, ranks_here, world_size
from recsys.run import RunDirectory
from recsys.training.distributed.cluster import Cluster
from recsys.training.distributed.demand import demands, id_map_bytes
from recsys.training.distributed.described_tables import sharders
from recsys.training.distributed.plan import Budget, Dense, Plan
from recsys.training.distributed.sharding_plan import ModulePlan, plan_module

logger = logging.getLogger(__name__)


def sharded_model(run: RunDirectory, device: torch.device) -> RankingModel:
    """The run's model as it is before the first step, with this rank's part of its tables.

    Raises ConfigError when the tables have no room, or when `[sharding]` asks for what the device cannot do.
    """
    experiment = run.experiment
    model = build_model(
        run.schema,
        experiment.model,
        seed=experiment.train.seed,
        device=device,
        tables_device="meta",
        optimizer=experiment.optimizer.embeddings,
    )
    tables = model.embeddings.tables
    assert isinstance(tables, TorchRecTables)
    if model.embeddings.specs:
        planned = on_first(lambda: _planned(run, model, device))
        logger.info("sharding %s", _summary(planned.plan))
        if planned.plan.copied:
            model.embeddings.tables = _with_copies(run, model.embeddings.specs, planned, device)
        else:
            shard(tables, planned.sharding, device)
    return model


def shard(tables: TorchRecTables, plan: Any, device: torch.device) -> None:
    """Spread tables that hold nothing yet over ranks, in place, and fill in what one process begins with."""
    # Losses are of the rows of all ranks, so their gradients add up: TorchRec would take the mean.
    set_gradient_division(False)
    # TorchRec 1.8 calls collectives by names that torch 2.13 would have others.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    here = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    DistributedModelParallel(
        tables,
        device=here,
        plan=plan,
        sharders=sharders(),
        init_data_parallel=False,
        init_parameters=False,
    )
    tables.initialise()


def _with_copies(
    run: RunDirectory, specs: Sequence[TableSpec], planned: ModulePlan, device: torch.device
) -> Tables:
    """Tables of a plan that copies some of them to all ranks, with what one process begins with."""
    config, optimizer = run.experiment.model.embeddings, run.experiment.optimizer.embeddings
    seed, copied = run.experiment.train.seed, planned.plan.copied
    replicated = ReplicatedTables(
        [spec for spec in specs if spec.name in copied],
        config,
        optimizer=optimizer,
        seed=seed,
        device=device,
    )
    others = [spec for spec in specs if spec.name not in copied]
    if not others:
        return replicated
    spread = TorchRecTables(
        others,
        config,
        optimizer=optimizer,
        seed=seed,
        device=torch.device("meta"),
        target=device,
    )
    shard(spread, planned.sharding_of(spread), device)
    return MixedTables(replicated, spread)


def _planned(run: RunDirectory, model: RankingModel, device: torch.device) -> ModulePlan:
    experiment, tables = run.experiment, model.embeddings.tables
    assert isinstance(tables, TorchRecTables)
    dense = Dense(sum(parameter.numel() for parameter in model.program.parameters()))
    return plan_module(
        tables,
        demands(run.schema, experiment.sharding, experiment.optimizer.embeddings),
        budget=Budget(
            _cluster(device), experiment.sharding.reserved, dense, id_map_bytes(run.schema)
        ),
        batch_size=-(-experiment.data.batch_size // world_size()),
        config=experiment.sharding,
    )


def _cluster(device: torch.device) -> Cluster:
    """Machines like this one, as many as there are ranks for."""
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cluster = Cluster(world_size(), ranks_here(), "cpu", host_bytes=host_bytes)
    if device.type == "cpu":
        return cluster
    hbm_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return replace(cluster, device="cuda", hbm_bytes=hbm_bytes)


def _summary(plan: Plan) -> str:
    """`item=row_wise user=table_wise`: how each table is cut."""
    return " ".join(f"{item.table}={item.kind}" for item in plan.placements)
