"""The plan of an experiment on a cluster: neither data nor a device is needed."""

import importlib.util

from recsys.errors import ConfigError
from recsys.experiment import Experiment
from recsys.models import build_program
from recsys.models.embeddings.updates import check_fused
from recsys.training.distributed.cluster import Cluster
from recsys.training.distributed.demand import demands, id_map_bytes, lengths
from recsys.training.distributed.plan import Budget, Dense, Plan


def audit(experiment: Experiment, cluster: Cluster, *, batch_size: int | None = None) -> Plan:
    """Where an experiment's tables would lie and what a step would cost; `batch_size` is rows a rank takes a step.

    Tables are only described. The dense part is built, in host memory, to count its parameters. Raises ConfigError
    where something does not fit.
    """
    schema, sharding = experiment.load_schema(), experiment.sharding
    if experiment.model.embeddings.backend == "plain":
        raise ConfigError(
            'model.embeddings.backend is "plain", whose tables stay whole; set it to "torchrec" to spread them'
        )
    _require_torchrec()
    # Importing TorchRec takes seconds: a mistake above is told at once.
    from recsys.models.embeddings.torchrec import check_spec
    from recsys.training.distributed.sharding_plan import plan_tables

    check_fused(experiment.optimizer.embeddings)
    asked = demands(schema, sharding, experiment.optimizer.embeddings)
    for demand in asked:
        check_spec(demand.spec)
    program = build_program(schema, experiment.model, seed=experiment.train.seed)
    dense = Dense(sum(parameter.numel() for parameter in program.parameters()))
    return plan_tables(
        asked,
        Budget(cluster, sharding.reserved, dense, id_map_bytes(schema)),
        batch_size=batch_size or experiment.data.batch_size,
        config=sharding,
        lengths=lengths(schema, sharding),
    )


def _require_torchrec() -> None:
    for package in ("torchrec", "fbgemm_gpu"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"a plan needs TorchRec, and {package} is not installed; install the project's [cpu] or [gpu] extra"
            )
