"""Pretraining: predict each next token of windows of the training text."""

import math
from typing import cast

import numpy as np
from torch import Tensor, nn

from minigpt.data import TokenDataset, WindowOrder
from minigpt.objectives.base import IGNORED, Batch, Row, valid_targets
from minigpt.optim import parameter_groups
from minigpt.tokenizer import Tokenizer


class PretrainObjective:
    """Windows of `context_length` inputs and as many targets, in the order that `seed` gives.

    tokenizer: says how many bytes each id stands for, for bits per byte (None: there are none).
    validation_tokens: measure on about so many tokens, in windows spread evenly over the validation set (None: all).
    """

    def __init__(
        self,
        train: TokenDataset,
        validation: TokenDataset | None,
        *,
        context_length: int,
        seed: int,
        tokenizer: Tokenizer | None = None,
        validation_tokens: int | None = None,
    ) -> None:
        self.train, self.validation = train, validation
        self.order = WindowOrder(len(train), context_length, seed)
        self.rows_per_epoch = self.order.windows_per_epoch
        self.context_length = context_length
        self.tokenizer = tokenizer
        self.byte_lengths = None if tokenizer is None else tokenizer.byte_lengths()
        self._windows = 0 if validation is None else math.ceil((len(validation) - 1) / context_length)
        limit = self._windows if validation_tokens is None else math.ceil(validation_tokens / context_length)
        self.validation_rows = min(self._windows, limit)

    def row(self, index: int) -> Row:
        """Inputs `ids` (T,) and `targets` (T,), int64, of window `index`."""
        _, start = self.order.window(index)
        return _row(self.train, start, start + self.context_length + 1)

    def validation_row(self, index: int) -> Row:
        """Consecutive windows that share no target, so that all rows together predict each token but the first once.

        The last window may be shorter.
        """
        validation = cast(TokenDataset, self.validation)
        start = index * self._windows // self.validation_rows * self.context_length
        return _row(validation, start, min(start + self.context_length + 1, len(validation)))

    def training_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        """Summed cross-entropy in nats."""
        return model(batch["ids"], targets=batch["targets"]), batch["targets"].numel(), {}

    def validation_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        """Summed cross-entropy in nats, and the bytes that the targets stand for."""
        metrics = {}
        if self.byte_lengths is not None:
            targets = batch["targets"].cpu().numpy()
            metrics["bytes"] = float(self.byte_lengths[targets[targets != IGNORED]].sum())
        return model(batch["ids"], targets=batch["targets"]), valid_targets(batch), metrics

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
        """All parameters; weight decay on the matrices."""
        return parameter_groups(model.named_parameters(), weight_decay)


def _row(dataset: TokenDataset, start: int, stop: int) -> Row:
    window = dataset.tokens(start, stop).astype(np.int64)
    return {"ids": window[:-1], "targets": window[1:].copy()}  # a copy: who masks targets must not change the inputs
