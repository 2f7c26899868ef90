"""Steps whose loss or gradient is not finite: they make no update, and too many in a row lead back to a checkpoint."""

import math
from typing import TYPE_CHECKING

from minigpt.config import WorkError
from minigpt.training.batches import StepBatch
from minigpt.training.resume import discard_later, last_good_before

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer


def skip_step(trainer: "Trainer", step: int, batch: StepBatch, loss: float, norm: float) -> None:
    """Skip the update. An overflow of fp16 that a smaller loss scale may cure does not count towards going back."""
    trainer.skipped += 1
    overflow = math.isfinite(loss) and trainer.scaler.can_shrink
    trainer.scaler.update(overflow=True)
    what = "no valid target in the batch" if not batch.valid else f"loss {loss}, gradient norm {norm}"
    trainer.journal.skip(step, batch.rows, f"fp16 overflow: {what}" if overflow else what)
    if overflow:
        return
    if trainer.bad_streak == 0:
        trainer.first_bad = step
    trainer.bad_streak += 1


def go_back(trainer: "Trainer") -> None:
    """Undo the bad steps: back to the last checkpoint before them, never to train on their rows again."""
    training, journal = trainer.config.training, trainer.journal
    bad = f"{trainer.bad_streak} bad steps in a row from step {trainer.first_bad} ({journal.last()[-1]['reason']})"
    if journal.restorations >= training.max_restores:
        trainer.world.ends_together = True
        raise WorkError(
            f"training stopped at step {trainer.step}: {bad}, after {journal.restorations} restorations "
            f"(training.max_restores); lower optimizer.lr or look at the rows in {journal.path}"
        )
    trainer.writer.wait()
    checkpoint = last_good_before(trainer.run_dir, trainer.first_bad, journal, trainer.say, trainer.world)
    target = checkpoint.step if checkpoint else 0
    rows = journal.restore(target, trainer.first_bad)
    if trainer.world.is_main:
        discard_later(trainer.run_dir, target)
    if checkpoint is not None:
        trainer.load(checkpoint)
    else:
        trainer.start_over()
    trainer.say(f"{bad}: back to step {target}, and on without {len(rows)} rows")
