"""TorchRec's collections whose rows move inside the backward pass, and which form each table has in them.

Tables whose slots all have one bag a row share one collection of sums. A ragged table, one that a sequence or weighted
ids read, has a collection of its own, fed with all of its ids as one stream: two lookups of one table would be two
optimizer updates. Where it is looked up decides its form:

- `vectors`, on GPUs: a vector comes back for every id. Ranks that share the table by rows send those of their own rows.
- `sums`, on CPUs: every id is a bag of its own. Ranks send zeros for ids that lie elsewhere, W times as much; but
  fbgemm's backward pass for vectors takes up to 22 times as long on a CPU, the more distinct ids the longer.

A plan and the training that follows it both build their collections here.

Axes: **N** ids, **M** bags, **K** embedding width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.modules.fused_embedding_modules import (
    EmbeddingFusedOptimizer,
    FusedEmbeddingBagCollection,
    convert_optimizer_type_and_kwargs,
)
from torchrec.optim import RowWiseAdagrad

from recsys.models.embeddings.tables import INITIAL_RATE, EmbeddingsConfig, TableSpec, module_name
from recsys.models.embeddings.updates import TableOptimizer

Form = Literal["sums", "vectors"]

# The form of ragged tables by the type of the device that looks them up.
RAGGED: dict[str, Form] = {"cpu": "sums", "cuda": "vectors"}
# The one feature of a ragged table's collection.
STREAM = "ids"
OPTIMIZERS: dict[TableOptimizer, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
# A length for every so many ids. Ranks send each other the lengths of all ids, whosever rows they are: one a vector
# would be as much as the vectors; one in all would leave all ids to one of a GPU's threads.
_IDS_A_LENGTH = 32


def fused_collections(
    specs: Sequence[TableSpec],
    config: EmbeddingsConfig,
    *,
    optimizer: TableOptimizer,
    device: torch.device,
    form: Form,
) -> nn.ModuleList:
    """Ragged tables in this form, each by itself; then all others, if there are any. On torch's meta device empty."""
    # The default would rewrite an id outside the table to row 0 and go on.
    settings = {
        "lr": INITIAL_RATE,
        "eps": config.epsilon,
        "bounds_check_mode": BoundsCheckMode.FATAL,
    }
    kind = OPTIMIZERS[optimizer]
    ragged = [spec for spec in specs if spec.ragged]
    pooled = [spec for spec in specs if not spec.ragged]
    found: list[nn.Module] = [
        Vectors(spec, kind, settings, device)
        if form == "vectors"
        else _sums([spec], kind, settings, device)
        for spec in ragged
    ]
    if pooled:
        found.append(_sums(pooled, kind, settings, device))
    return nn.ModuleList(found)


class Vectors(EmbeddingCollection):  # type: ignore[misc] # a class without types
    """A table that gives a vector back for every id, [N, K].

    TorchRec 1.8's own `FusedEmbeddingCollection` lacks what the module that shards it asks for
    (`use_gather_select`), is refused on CPUs, and waits for the GPU in every step.
    """

    def __init__(
        self,
        spec: TableSpec,
        optimizer: type[torch.optim.Optimizer],
        settings: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        table = EmbeddingConfig(**_shape(spec), feature_names=[STREAM])
        super().__init__(tables=[table], device=torch.device("meta"))
        self._device = device
        self._optimizer, self._settings = optimizer, dict(settings)
        # Not as modules: what they hold is known by the name of the table alone.
        self._kernels: list[SplitTableBatchedEmbeddingBagsCodegen] = []
        if device.type == "meta":
            return
        kernel = _kernel(spec, optimizer, self._settings, device)
        self._kernels.append(kernel)
        self.embeddings[table.name].weight = nn.Parameter(kernel.split_embedding_weights()[0])
        self._fused = EmbeddingFusedOptimizer([table], kernel)

    @property
    def fused_optimizer(self) -> EmbeddingFusedOptimizer:
        return self._fused

    def optimizer_type(self) -> type[torch.optim.Optimizer]:
        return self._optimizer

    def optimizer_kwargs(self) -> dict[str, Any]:
        return self._settings

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        (kernel,) = self._kernels
        rows_NK = kernel(features.values().int(), features.offsets().int())
        return {STREAM: JaggedTensor(values=rows_NK, lengths=features.lengths())}


def one_stream(ids_N: Tensor) -> KeyedJaggedTensor:
    """All ids of a table for `Vectors`, in order. Any rank may have none."""
    full, rest = divmod(len(ids_N), _IDS_A_LENGTH)
    lengths = torch.full((full + 1,), _IDS_A_LENGTH, dtype=torch.int32, device=ids_N.device)
    lengths[-1:] = rest
    return KeyedJaggedTensor(keys=[STREAM], values=ids_N, lengths=lengths, stride=full + 1)


def sums(rows_NK: Tensor, lengths_M: Tensor) -> Tensor:
    """The sums of consecutive rows, [M, K]; zeros for bags without any."""
    # A lookup of the rows in order sums without atomics.
    ends_M = lengths_M.long().cumsum(0)
    order_N = torch.arange(len(rows_NK), device=rows_NK.device)
    return F.embedding_bag(order_N, rows_NK, ends_M - lengths_M, mode="sum")


def _sums(
    specs: Sequence[TableSpec],
    optimizer: type[torch.optim.Optimizer],
    settings: dict[str, Any],
    device: torch.device,
) -> nn.Module:
    tables = [
        EmbeddingBagConfig(
            **_shape(spec),
            feature_names=[STREAM] if spec.ragged else list(spec.streams),
            # Means are sums divided by our own code: one pooling for all slots means one kernel for all tables.
            pooling=PoolingType.SUM,
        )
        for spec in specs
    ]
    found: nn.Module = FusedEmbeddingBagCollection(
        tables=tables, optimizer_type=optimizer, optimizer_kwargs=settings, device=device
    )
    return found


def _shape(spec: TableSpec) -> dict[str, Any]:
    return {
        "name": module_name(spec.name),
        "num_embeddings": spec.rows,
        "embedding_dim": spec.dim,
    }


def _kernel(
    spec: TableSpec,
    optimizer: type[torch.optim.Optimizer],
    settings: dict[str, Any],
    device: torch.device,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    on_gpu = device.type == "cuda"
    place = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
    computes = ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU
    found: tuple[EmbOptimType, dict[str, Any]] = convert_optimizer_type_and_kwargs(
        optimizer, settings
    )
    kind, arguments = found
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(spec.rows, spec.dim, place, computes)],
        pooling_mode=PoolingMode.NONE,
        device=device,
        optimizer=kind,
        **arguments,
    )
