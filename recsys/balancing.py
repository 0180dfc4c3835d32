"""Settings of the methods that balance tasks: `[objective] balance` of an experiment."""

from typing import Annotated, Literal

from pydantic import Field

from recsys.config import Config

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NoBalance(Config):
    """The sum of the tasks' losses, each times its weight, and nothing else."""

    kind: Literal["none"] = "none"


class UncertaintyConfig(Config):
    """A learned log-variance a task, at the rate `lr`, within plus or minus `limit`."""

    kind: Literal["uncertainty"] = "uncertainty"
    lr: _Rate = 0.01
    limit: _Rate = 3.0


class DWAConfig(Config):
    """More weight for tasks whose loss fell less from one period to the next; a period is `every` steps or an epoch."""

    kind: Literal["dwa"] = "dwa"
    temperature: _Rate = 2.0
    every: int | None = Field(default=None, ge=1)


class GradNormConfig(Config):
    """Equal training rates through equal gradient norms; `alpha` is how strongly slow tasks are favoured."""

    kind: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    lr: _Rate = 0.025


class PCGradConfig(Config):
    """Each task's gradient without its components against other tasks' gradients."""

    kind: Literal["pcgrad"] = "pcgrad"


class CAGradConfig(Config):
    """The best worst-off task within `radius` (the paper's c), in norms of the mean gradient, of the mean gradient."""

    kind: Literal["cagrad"] = "cagrad"
    radius: float = Field(default=0.4, ge=0, lt=1)


class ConFIGConfig(Config):
    """The direction that has the same angle with every task's gradient."""

    kind: Literal["config"] = "config"


class FAMOConfig(Config):
    """Equal relative progress; the weights' logits are learned at the rate `lr`, drawn to 0 by `decay`."""

    kind: Literal["famo"] = "famo"
    lr: _Rate = 0.025
    decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)


BalanceConfig = Annotated[
    NoBalance
    | UncertaintyConfig
    | DWAConfig
    | GradNormConfig
    | PCGradConfig
    | CAGradConfig
    | ConFIGConfig
    | FAMOConfig,
    Field(discriminator="kind"),
]
