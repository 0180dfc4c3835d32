"""From a batch to its loss, once or twice."""

from collections.abc import Callable
from typing import Literal

import torch

from recsys.batch import Batch
from recsys.models import Blocks, RankingModel
from recsys.training.checkpoint import random_state, set_random_state
from recsys.training.objective import Loss, Objective


class Forward:
    """The loss of a batch on the device, the model's part of it in the precision of the training."""

    def __init__(
        self, model: RankingModel, objective: Objective, *, precision: Literal["float32", "bf16"]
    ) -> None:
        self._model = model
        self.objective = objective
        self._bf16 = precision == "bf16"

    def loss(self, batch: Batch) -> Loss:
        logits_BT = self.logits(self.blocks(batch))
        loss: Loss = self.objective(logits_BT, batch.labels_BT, batch.observed_BT, batch.weights_B)
        return loss

    def blocks(self, batch: Batch) -> Blocks:
        """What the program reads of a batch: the way to the tables begins there."""
        with self._precision(batch.dense_BD):
            blocks: Blocks = self._model.embeddings(batch)
        return blocks

    def logits(self, blocks: Blocks) -> torch.Tensor:
        """The program's logits of blocks, [B, T]."""
        with self._precision(blocks.candidate_NI):
            logits_BT: torch.Tensor = self._model.program(blocks)
        return logits_BT

    def repeated(self, loss: Callable[[], Loss]) -> Callable[[], Loss]:
        """What computes a loss of this model later, with the parameters of then and the dropout of now.

        Other dropout would change a loss by more than a step does. Neither the generators nor the program's buffers,
        such as the running statistics of a normalisation, notice.
        """
        began = random_state()

        def again() -> Loss:
            ended = random_state()
            kept = [(buffer, buffer.clone()) for buffer in self._model.program.buffers()]
            set_random_state(began)
            try:
                with torch.no_grad():
                    return loss()
            finally:
                set_random_state(ended)
                for buffer, value in kept:
                    buffer.copy_(value)

        return again

    def _precision(self, where: torch.Tensor) -> torch.autocast:
        return torch.autocast(where.device.type, torch.bfloat16, enabled=self._bf16)
