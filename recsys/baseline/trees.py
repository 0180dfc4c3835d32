"""Boosted trees for one task, by LightGBM.

Nothing here is tuned to a data set: small steps, small trees, and validation says when to stop.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.baseline.inputs import Float32Array
from recsys.errors import ConfigError
from recsys.measures import AnyArray

MOST_TREES = 2_000
TREES_UNCHECKED = 100
_PATIENCE = 50
_PARAMETERS: dict[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "lambda_l2": 1.0,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, eq=False)
class Examples:
    """One task's rows: inputs, labels and sample weights."""

    inputs_BI: Float32Array
    labels_B: AnyArray
    weights_B: AnyArray

    def __len__(self) -> int:
        return len(self.labels_B)


@dataclass(frozen=True, eq=False)
class Trees:
    """Boosted trees. `gain_I` is each input's share of what splits gained."""

    booster: Any
    count: int
    leaves: int
    gain_I: AnyArray

    def predict(self, inputs_BI: Float32Array) -> AnyArray:
        """One number a row: a logit, or for a regression the value itself."""
        found: AnyArray = self.booster.predict(inputs_BI, raw_score=True)
        return found


def load_lightgbm() -> Any:
    """The LightGBM library. Raises ConfigError where it is not installed or cannot be loaded."""
    try:
        return importlib.import_module("lightgbm")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "recsys baseline needs LightGBM, which is not installed; pip install 'lightgbm>=4.7'"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"LightGBM cannot be loaded ({error}); on Debian and Ubuntu: apt-get install libgomp1"
        ) from error


def boost(
    train: Examples,
    validation: Examples,
    *,
    objective: str,
    categorical: list[int],
    seed: int,
    threads: int,
) -> Trees:
    """Trees boosted until the validation loss has not improved for 50 of them.

    Without validation rows there are 100. The same rows and seed give the same trees, whatever the threads.
    """
    lightgbm = load_lightgbm()
    parameters = _PARAMETERS | {"objective": objective, "seed": seed, "num_threads": threads}
    fitted = _dataset(lightgbm, train, categorical)
    checked = len(validation) > 0
    booster = lightgbm.train(
        parameters,
        fitted,
        num_boost_round=MOST_TREES if checked else TREES_UNCHECKED,
        valid_sets=[_dataset(lightgbm, validation, categorical, fitted)] if checked else None,
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)] if checked else None,
    )
    gain_I = np.asarray(booster.feature_importance("gain", iteration=booster.best_iteration))
    return Trees(
        booster,
        count=booster.best_iteration if checked else TREES_UNCHECKED,
        leaves=_leaves(booster),
        gain_I=gain_I / gain_I.sum() if gain_I.sum() else gain_I,
    )


def _dataset(lightgbm: Any, rows: Examples, categorical: list[int], reference: Any = None) -> Any:
    return lightgbm.Dataset(
        rows.inputs_BI,
        label=rows.labels_B,
        weight=rows.weights_B,
        categorical_feature=categorical,
        reference=reference,
    )


def _leaves(booster: Any) -> int:
    tree_list = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
    return sum(int(tree["num_leaves"]) for tree in tree_list)
