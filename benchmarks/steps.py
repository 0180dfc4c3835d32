"""A whole training step of a fresh model: forward, gradients, updates of tables and dense parameters."""

from collections.abc import Callable

from recsys.batch import Batch
from recsys.experiment import ObjectiveConfig, OptimizerConfig
from recsys.models import ModelConfig, build_model
from recsys.schema import Schema
from recsys.training.accumulation import build_backward
from recsys.training.balancing import build_balance
from recsys.training.forward import Forward
from recsys.training.objective import build_objective
from recsys.training.optim import Optimizer

_STEPS = 1_000


def training_step(
    schema: Schema,
    batch: Batch,
    model: ModelConfig,
    objective: ObjectiveConfig,
    *,
    parts: int = 1,
) -> Callable[[], None]:
    """One step on the same batch each time it is called, in parts as `train.accumulate` cuts it."""
    ranker = build_model(schema, model, seed=0).train()
    losses = build_objective(schema, objective)
    forward = Forward(ranker, losses, precision="float32")
    balance = build_balance(
        objective.balance,
        ranker.program,
        task_weights_T=losses.task_weights_T,
        steps_per_epoch=1,
        total_steps=_STEPS,
        seed=0,
    )
    backward = build_backward(forward, balance, parts=parts)
    optimizer = Optimizer(
        ranker.program.named_parameters(),
        ranker.embeddings,
        config=OptimizerConfig(),
        total_steps=1,
    )

    def step() -> None:
        optimizer.before_backward(0)
        repeat = backward.repeat(batch)
        loss = backward(batch, 0)
        optimizer.after_backward(0, optimizer.dense.gradient_norm())
        balance.after_step(loss, 0, repeat)

    return step
