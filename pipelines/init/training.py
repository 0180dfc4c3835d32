"""Sizes of model and training by the number of rows: small data, small model and strong regularisation."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingChoice:
    """The [model], [optimizer] and [train] settings and the batch size."""

    batch_size: int
    mixing: dict[str, Any]
    heads: dict[str, Any]
    optimizer: dict[str, Any]
    train: dict[str, Any]


@dataclass(frozen=True)
class _Size:
    up_to_rows: float
    batch_size: int
    epochs: int
    experts: int
    hidden: tuple[int, ...]
    dropout: float
    tower: tuple[int, ...]
    weight_decay: float


_FEW_ROWS = 500_000
_SIZES = (
    _Size(5_000, 128, 10, 2, (32,), 0.3, (16,), 1e-2),
    _Size(50_000, 256, 6, 4, (64, 32), 0.3, (32,), 1e-3),
    _Size(500_000, 1024, 4, 4, (128, 64), 0.3, (32,), 1e-4),
    _Size(5_000_000, 4096, 4, 8, (256, 128), 0.1, (64,), 1e-5),
    _Size(50_000_000, 8192, 2, 8, (256, 128), 0.0, (64,), 0.0),
    _Size(float("inf"), 8192, 1, 8, (256, 128), 0.0, (64,), 0.0),
)


def choose_training(training_rows: int, *, tasks: int, knows_rates: bool) -> TrainingChoice:
    """Settings for about so many training rows. One task needs no mixture of experts.

    `knows_rates`: earlier rates of users and items are inputs, so their ids have less to tell and overfit sooner.
    """
    size = next(size for size in _SIZES if training_rows <= size.up_to_rows)
    steps = max(training_rows // size.batch_size, 1) * size.epochs
    if tasks == 1:
        mixing: dict[str, Any] = {
            "kind": "shared_bottom",
            "hidden": list(size.hidden),
            "dropout": size.dropout,
        }
    else:
        mixing = {
            "kind": "mmoe",
            "experts": size.experts,
            "expert_hidden": list(size.hidden),
            "expert_dropout": size.dropout,
        }
    return TrainingChoice(
        size.batch_size,
        mixing,
        {"kind": "towers", "hidden": list(size.tower)},
        {
            "embedding_lr": 0.01 if knows_rates and training_rows <= _FEW_ROWS else 0.02,
            "dense_lr": 1e-3,
            "weight_decay": size.weight_decay,
            "warmup_steps": min(100, steps // 10),
            "decay": "cosine",
        },
        {"epochs": size.epochs, "patience": 2, "seed": 0},
    )
