"""How the tasks' losses share one model: `[objective] balance` of an experiment.

A method is a class with the interface of `recsys.training.balancing.method.Balance`, a section in `recsys.balancing`
and a case here.
"""

import logging
from functools import partial

import numpy as np
from torch import Tensor

from recsys.balancing import (
    BalanceConfig,
    CAGradConfig,
    ConFIGConfig,
    DWAConfig,
    FAMOConfig,
    GradNormConfig,
    NoBalance,
    PCGradConfig,
    UncertaintyConfig,
)
from recsys.models import Program
from recsys.training.balancing.famo import FAMO
from recsys.training.balancing.method import Balance, Plain
from recsys.training.balancing.shared import last_layer, shared_parts
from recsys.training.balancing.surgery import Matrix, Surgery, cagrad, config, pcgrad
from recsys.training.balancing.weighting import DWA, GradNorm, Uncertainty

__all__ = ["Balance", "build_balance"]

logger = logging.getLogger(__name__)


def build_balance(
    section: BalanceConfig,
    program: Program,
    *,
    task_weights_T: Tensor,
    steps_per_epoch: int,
    total_steps: int,
    seed: int,
) -> Balance:
    """The method of a section for a program's tasks; the plain sum where there is a single task, whatever it names.

    Raises ConfigError when a method of shared parameters finds none.
    """
    if len(task_weights_T) == 1:
        return Plain(task_weights_T)
    match section:
        case NoBalance():
            return Plain(task_weights_T)
        case UncertaintyConfig():
            return Uncertainty(section, task_weights_T=task_weights_T)
        case DWAConfig():
            _warn_of_idleness(section, steps_per_epoch, total_steps)
            return DWA(section, task_weights_T=task_weights_T, steps_per_epoch=steps_per_epoch)
    parts = shared_parts(program, kind=section.kind)
    surgery = partial(Surgery, parts, task_weights_T=task_weights_T)
    match section:
        case GradNormConfig():
            return GradNorm(section, task_weights_T=task_weights_T, last_layer=last_layer(parts))
        case FAMOConfig():
            return FAMO(section, parts=parts, task_weights_T=task_weights_T)
        case PCGradConfig():
            return surgery(partial(_pcgrad, seed=seed))
        case CAGradConfig():
            return surgery(lambda gramian_TT, step: cagrad(gramian_TT, section.radius))
        case ConFIGConfig():
            return surgery(lambda gramian_TT, step: config(gramian_TT))


def _pcgrad(gramian_TT: Matrix, step: int, *, seed: int) -> Matrix:
    # The order is a function of the step: a checkpoint need not hold it, and dropout's numbers stay what they were.
    return pcgrad(gramian_TT, np.random.default_rng((seed, step)))


def _warn_of_idleness(section: DWAConfig, steps_per_epoch: int, total_steps: int) -> None:
    every = section.every or steps_per_epoch
    if total_steps <= 2 * every:
        logger.warning(
            "balance kind=dwa steps=%d period=%d: weighs by the two periods before, so this training never "
            "reweighs; set objective.balance.every or train longer",
            total_steps,
            every,
        )
