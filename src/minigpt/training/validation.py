"""The validation loss while training: over the whole validation set, and over each source's part of it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from minigpt.config import WorkError
from minigpt.objectives import stack
from minigpt.training.loggers import Metrics

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer


def validation_sets(trainer: "Trainer") -> Sequence[tuple[str, range]]:
    """(name, rows) of each set; with overfit_batches the rows are those of the training batches."""
    overfit, objective = trainer.config.training.overfit_batches, trainer.objective
    if overfit is not None:
        return [("train", range(overfit * trainer.config.batch_rows))]
    sets: Sequence[tuple[str, range]] = getattr(objective, "validation_sets", ())
    if sum(len(rows) for _, rows in sets) == objective.validation_rows:
        return sets
    return [("val", range(objective.validation_rows))]  # an objective of one's own may have other rows, or no sets


@torch.no_grad()
def validate(trainer: "Trainer") -> Metrics:
    """`val/loss`, `val/bpb`, and `val/<name>/loss` of each set where there are several; {} without validation rows."""
    objective, size = trainer.objective, trainer.micro_batch
    sets = [(name, rows) for name, rows in validation_sets(trainer) if rows]
    row = objective.validation_row if trainer.config.training.overfit_batches is None else objective.row
    nats, tokens, n_bytes = 0.0, 0, 0.0
    metrics: Metrics = {}
    trainer.network.eval()
    for name, rows in sets:
        nats_before, tokens_before = nats, tokens
        for first in range(rows.start, rows.stop, size):
            trainer.signals.check()
            batch = stack([row(i) for i in range(first, min(first + size, rows.stop))])
            with trainer.autocast():
                loss_sum, valid, extra = objective.validation_step(trainer.network, trainer.to_device(batch))
            nats, tokens, n_bytes = nats + float(loss_sum), tokens + valid, n_bytes + extra.get("bytes", 0.0)
        if len(sets) > 1 and tokens > tokens_before:
            metrics[f"val/{name}/loss"] = (nats - nats_before) / (tokens - tokens_before)
    trainer.network.train()
    if sets and not tokens:
        raise WorkError("the validation set has no valid target: every one is masked")
    if sets:
        metrics["val/loss"] = nats / tokens
    if n_bytes:
        metrics["val/bpb"] = nats / math.log(2) / n_bytes
    return metrics
