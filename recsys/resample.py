"""Metrics of resampled groups: what a user-cluster bootstrap draws, exact in every replicate.

Axes: **B** rows, **G** groups (users), **K** blocks of equal logits, **M** models, **R** replicates, **S** metrics.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.measures import (
    Float64Array,
    Int64Array,
    ScoredRows,
    auc_of_blocks,
    base_entropy,
    class_weights,
    group_aucs,
    log_losses,
    sums,
    tie_blocks,
)

Metric = Literal["auc", "gauc", "normalized_entropy"]
METRICS: tuple[Metric, ...] = ("auc", "gauc", "normalized_entropy")


@dataclass(frozen=True)
class _OneClass:
    """The positives, or the negatives, in ascending order of score: weight, group and block of each row."""

    weights_B: Float64Array
    group_B: Int64Array
    block_B: Int64Array
    blocks: int

    def block_weights(self, counts_G: Int64Array) -> Float64Array:
        return sums(self.weights_B * counts_G[self.group_B], self.block_B, self.blocks)


def _one_class(
    weights_B: Float64Array, group_B: Int64Array, block_B: Int64Array, *, blocks: int
) -> _OneClass:
    rows = np.flatnonzero(weights_B)
    # Sorted once, so that the sums of every replicate run through memory in order.
    rows = rows[np.argsort(block_B[rows], kind="stable")]
    return _OneClass(weights_B[rows], group_B[rows], block_B[rows], blocks)


def _comparable_blocks(rows: ScoredRows) -> tuple[Int64Array, int]:
    """Blocks of equal logits, with neighbours merged where they hold one class only, the same one.

    No pair lies between merged blocks, so AUC stays exact, and for a rare class few blocks are left.
    """
    block_B, blocks = tie_blocks(rows.logits_B)
    positive_B, negative_B = class_weights(rows)
    has_positive_K = sums(positive_B, block_B, blocks) > 0
    has_negative_K = sums(negative_B, block_B, blocks) > 0
    same_K = (has_positive_K[1:] == has_positive_K[:-1]) & (
        has_negative_K[1:] == has_negative_K[:-1]
    )
    begins_K = np.ones(blocks, dtype=np.int64)
    begins_K[1:] -= same_K & ~(has_positive_K & has_negative_K)[1:]
    merged_K = np.cumsum(begins_K) - 1
    return merged_K[block_B], int(begins_K.sum())


class Resample:
    """One model's rows, prepared so that a replicate (how often each group was drawn) costs few passes."""

    def __init__(self, rows: ScoredRows) -> None:
        group_B, self.groups = tie_blocks(rows.groups_B)
        block_B, blocks = _comparable_blocks(rows)
        positive_B, negative_B = class_weights(rows)
        self._positives = _one_class(positive_B, group_B, block_B, blocks=blocks)
        self._negatives = _one_class(negative_B, group_B, block_B, blocks=blocks)
        within = group_aucs(rows)
        self._counted_weight_G = np.where(within.counted_G, within.weight_G, 0.0)
        self._auc_G = within.auc_G
        self._weight_G = within.weight_G
        self._positive_G = sums(positive_B, group_B, self.groups)
        losses_B = rows.weights_B * log_losses(rows.logits_B, rows.labels_B)
        self._loss_G = sums(losses_B, group_B, self.groups)

    def metrics(self, counts_G: Int64Array | None) -> tuple[float, float, float]:
        """AUC, GAUC and normalized entropy with each group counted so often (None: once); NaN where undefined."""
        counts = np.ones(self.groups, dtype=np.int64) if counts_G is None else counts_G
        return self._auc(counts), self._gauc(counts), self._normalized_entropy(counts)

    def _auc(self, counts_G: Int64Array) -> float:
        auc = auc_of_blocks(
            self._positives.block_weights(counts_G), self._negatives.block_weights(counts_G)
        )
        return math.nan if auc is None else auc

    def _gauc(self, counts_G: Int64Array) -> float:
        weight_G = counts_G * self._counted_weight_G
        total = float(weight_G.sum())
        return float(weight_G @ self._auc_G) / total if total > 0 else math.nan

    def _normalized_entropy(self, counts_G: Int64Array) -> float:
        total = float(counts_G @ self._weight_G)
        if total == 0:
            return math.nan
        entropy = base_entropy(float(counts_G @ self._positive_G) / total)
        return float(counts_G @ self._loss_G) / total / entropy if entropy > 0 else math.nan


def resample(samples: tuple[Resample, ...], replicates: int, seed: int) -> Float64Array:
    """Metrics [models, replicates, metrics] over groups drawn with replacement, as many as there are.

    All rows of a drawn group come along, as often as it was drawn. The samples must hold the same groups: within a
    replicate all of them see the same draw. The same seed gives the same replicates.
    """
    random = np.random.default_rng(seed)
    groups = samples[0].groups
    values_MRS = np.full((len(samples), replicates, len(METRICS)), np.nan)
    if groups == 0:
        return values_MRS
    for replicate in range(replicates):
        counts_G = np.bincount(random.integers(groups, size=groups), minlength=groups)
        for model, sample in enumerate(samples):
            values_MRS[model, replicate] = sample.metrics(counts_G)
    return values_MRS
