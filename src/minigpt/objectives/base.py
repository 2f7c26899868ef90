"""The contract between the training loop and what a batch means.

An objective says what a row is and what its loss is; the trainer owns everything else. A row is made from its number
alone, so rows can be made anywhere, ahead of time, and again. A step returns the *sum* of the loss over the batch's
valid targets and their count; the trainer divides by the count of the whole step, over all micro-batches and
processes, so neither masking nor accumulation changes the mean.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from minigpt.data.rows.masks import IGNORED, Row

Batch = dict[str, Tensor]


class Objective(Protocol):
    """What the trainer asks of an objective."""

    rows_per_epoch: int
    """Rows after which the training text has been seen once."""

    validation_rows: int
    """Rows of the validation set (0: there is none)."""

    def row(self, index: int) -> Row:
        """Training row number `index` (0, 1, 2, ... without end): arrays of shape (T,), `targets` among them."""

    def validation_row(self, index: int) -> Row:
        """Validation row number `index` < `validation_rows`."""

    def training_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        """(sum of the loss, number of valid targets, metrics) of a batch of stacked rows (B, T).

        A loss made of a `GPT`'s logits, and not by giving it `targets`, is passed through `GPT.routers.attach`.
        """

    def validation_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        """The same for a validation batch; a metric `bytes` (UTF-8 bytes of the targets) gives bits per byte."""

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
        """The parameters that this objective trains, in the optimizer's groups."""


def stack(rows: list[Row]) -> Batch:
    """Rows as a batch of tensors (B, T); shorter ones are padded at the end, their targets with IGNORED."""
    width = max(len(row["targets"]) for row in rows)
    batch = {}
    for name in rows[0]:
        table = np.full((len(rows), width), IGNORED if name == "targets" else 0, rows[0][name].dtype)
        for i, row in enumerate(rows):
            table[i, : len(row[name])] = row[name]
        batch[name] = torch.from_numpy(table)
    return batch


def valid_targets(batch: Batch) -> int:
    """How many targets of a batch (on the CPU) count."""
    return int((batch["targets"] != IGNORED).sum())
