"""The validation loss while training: over the whole validation set, and over each source's part of it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.config import WorkError
from minigpt.objectives import IGNORED, Batch, stack
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


def validate(trainer: "Trainer") -> Metrics:
    """`val/loss`, `val/bpb`, and `val/<name>/loss` of each set where there are several; {} without validation rows.

    Every process measures its share of the rows.
    """
    sets = [(name, rows) for name, rows in validation_sets(trainer) if rows]
    if not sets:
        return {}
    trainer.network.eval()
    measured = _Measured(trainer)
    sums: list[float] = []
    for _, rows in sets:
        measured.add(rows)
        sums += [measured.nats, measured.tokens, measured.n_bytes]  # of this set and those before
    trainer.network.train()
    sums = trainer.world.sum(sums)
    nats, tokens, n_bytes = sums[-3:]
    if not tokens:
        raise WorkError("the validation set has no valid target: every one is masked")
    metrics: Metrics = {}
    nats_before, tokens_before = 0.0, 0.0
    for (name, _), nats_after, tokens_after in zip(sets, sums[::3], sums[1::3], strict=True):
        if len(sets) > 1 and tokens_after > tokens_before:
            metrics[f"val/{name}/loss"] = (nats_after - nats_before) / (tokens_after - tokens_before)
        nats_before, tokens_before = nats_after, tokens_after
    metrics["val/loss"] = nats / tokens
    if n_bytes:
        metrics["val/bpb"] = nats / math.log(2) / n_bytes
    return metrics


class _Measured:
    """What this process has measured so far: nats, valid targets, and the bytes that they stand for."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.nats, self.tokens, self.n_bytes = 0.0, 0, 0.0

    def add(self, rows: range) -> None:
        """This process's share of these rows, a few micro-batches at a time. A signal ends it."""
        trainer, world, size = self.trainer, self.trainer.world, self.trainer.micro_batch
        starts = range(rows.start, rows.stop, size)
        own = starts[world.data_rank :: world.data_size]
        passes = -(-len(starts) // world.data_size)  # of every process
        together = world.sizes["pp"]  # stages would wait for each other with fewer
        for first in range(0, passes, together):
            trainer.check_signals()
            batches = [self._batch(starts, own, i, rows.stop) for i in range(first, min(first + together, passes))]
            loss = trainer.parallel.forward(range(first, first + len(batches)), batches, self._pass)
            self.nats += float(loss) if world.counts_loss else 0.0

    def _batch(self, starts: range, own: range, number: int, stop: int) -> Batch:
        """The micro-batch; where there is none left for this process, one that counts for nothing."""
        trainer = self.trainer
        row = (
            trainer.objective.validation_row
            if trainer.config.training.overfit_batches is None
            else trainer.objective.row
        )
        first = own[number] if number < len(own) else starts[0]
        batch = stack([row(i) for i in range(first, min(first + trainer.micro_batch, stop))])
        if number >= len(own):
            batch["targets"] = torch.full_like(batch["targets"], IGNORED)
        return batch

    def _pass(self, number: int, network: nn.Module, batch: Batch) -> Tensor:
        trainer, world = self.trainer, self.trainer.world
        with trainer.autocast():
            loss_sum, valid, extra = trainer.objective.validation_step(network, trainer.to_device(batch))
        if world.counts_loss and world.place["cp"] == 0:
            self.tokens, self.n_bytes = self.tokens + valid, self.n_bytes + extra.get("bytes", 0.0)
        return loss_sum
