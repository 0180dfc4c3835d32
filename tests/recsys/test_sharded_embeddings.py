"""Sharding wraps the model that one process trains: the wrapped tables train as the unwrapped do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Torch's process group and TorchRec's wrapper leave threads behind that may abort an interpreter's exit, so this runs
# in a process of its own that ends without one.
SCRIPT = """
import os, sys
import torch, torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from recsys.schema import Schema
from recsys.sharding import ShardingConfig
from recsys.training.distributed.cluster import Cluster
from recsys.training.distributed.demand import demands
from recsys.training.distributed.described_tables import sharders
from recsys.training.distributed.plan import Budget, Dense
from recsys.training.distributed.sharding_plan import plan_module
from recsys.models.embeddings.lookup import Embeddings
from tests.recsys.table_state import optimizer_state
from tests.recsys.test_embeddings import RATE, TREE, embeddings, random_batch, some_loss

class OneKind(FusedEmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type): return [sys.argv[1]]

def planned(module):
    config, cluster = ShardingConfig(), Cluster(world_size=1, ranks_per_host=1, device="cpu")
    budget = Budget(cluster, config.reserved, Dense(0))
    asked = demands(schema, config)
    plan = plan_module(module, asked, budget=budget, batch_size=16, config=config).sharding
    return {"plan": plan, "sharders": sharders()}

dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
schema = Schema.parse(TREE, where="schema.toml")
alone = embeddings(schema, "torchrec")
shared = embeddings(schema, "vectors" if sys.argv[1] == "vectors" else "torchrec")
weights = {name: table.clone() for name, table in shared.table_weights().items()}
by_plan = sys.argv[1] in ("planned", "vectors")
how = planned(shared) if by_plan else {"sharders": [OneKind()]}
wrapped = DistributedModelParallel(shared, device=torch.device("cpu"), **how)
assert "Sharded" in type(shared.tables.collections[0]).__name__
# TorchRec draws the rows of a sharded table anew.
shared.load_table_weights(weights)
for module in (alone, shared):
    module.set_learning_rate(RATE)
for seed, longest in enumerate((5, 0, 5, 5)):
    for module in (alone, wrapped):
        some_loss(module(random_batch(schema, seed, longest=longest))).backward()
for read in (Embeddings.table_weights, optimizer_state):
    expected, found = read(alone), read(shared)
    for name, table in expected.items():
        torch.testing.assert_close(found[name], table, rtol=1e-5, atol=1e-6)
print("equal", flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "planned", "vectors"])
def test_wrapped_tables_train_as_unwrapped_ones(sharding: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, sharding, str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "equal"
