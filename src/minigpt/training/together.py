"""What the processes of a run do as one: they all go on, or all stop with the same sentence, after the same step.

Whatever may differ between them (a signal, an error, what a callback decides) is agreed on here. A run of one process
has nobody to agree with.
"""

from typing import TYPE_CHECKING

from minigpt.data import Prefetcher
from minigpt.parallel.agreement import StopRequested, raise_together
from minigpt.parallel.world import World
from minigpt.training.batches import StepBatch
from minigpt.training.signals import StopSignals

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer


def check_signals(world: World, signals: StopSignals) -> None:
    """Raises StopRequested, on every process, once a signal has come to any. Every process must call it."""
    if world.size == 1:
        signals.check()
    elif world.sum([signals.received is not None])[0]:
        _stop(world, signals)


def next_batch(trainer: "Trainer", batches: Prefetcher[StepBatch]) -> tuple[int, StepBatch] | None:
    """The next step and this process's share of its batch; None if a callback has ended the run.

    Raises StopRequested after a signal, or what went wrong with the batch or with writing the last checkpoint.
    """
    if trainer.world.size > 1:
        return _agreed_batch(trainer, batches)
    if trainer.stop_reason is not None:
        return None
    trainer.signals.check()
    trainer.writer.check()
    return batches.next()


def _agreed_batch(trainer: "Trainer", batches: Prefetcher[StepBatch]) -> tuple[int, StepBatch] | None:
    """As `next_batch`; counts of valid targets become those of all processes. One message, whatever happens."""
    world, signals, names = trainer.world, trainer.signals, trainer.seen.names
    error: Exception | None = None
    counts: list[float] = [0.0] * (1 + len(names))
    try:
        trainer.writer.check()
        step, batch = batches.next()
        if world.speaks:
            counts = [batch.valid, *batch.source_tokens]
    except Exception as wrong:
        error = wrong
    flags = [error is not None, trainer.stop_reason is not None, signals.received is not None]
    failed, ended, stopped, *counts = world.sum([*flags, *counts])
    if failed:
        raise_together(world, error)
    if ended:
        trainer.stop_reason = next(reason for reason in world.collect(trainer.stop_reason) if reason is not None)
        return None
    if stopped:
        _stop(world, signals)
    batch.valid, *batch.source_tokens = (int(count) for count in counts)
    return step, batch


def _stop(world: World, signals: StopSignals) -> None:
    received = world.collect(signals.received)
    signals.request(next(number for number in received if number is not None))
    world.ends_together = True
    raise StopRequested
