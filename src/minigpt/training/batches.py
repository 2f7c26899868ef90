"""What one optimizer step trains on."""

from dataclasses import dataclass
from typing import cast

from minigpt.config import Config
from minigpt.data.streaming.stream import StreamState
from minigpt.objectives import IGNORED, Batch, Objective, Row, stack, valid_targets
from minigpt.training.streams import stream_state


@dataclass
class StepBatch:
    """The rows of a step, stacked into micro-batches."""

    rows: list[int]
    micro_batches: list[Batch]
    valid: int
    """Valid targets of the whole step: the loss is divided by this."""
    source_tokens: list[int]
    """Valid targets by source, in the order of the objective's `source_names`; [] where it has none."""
    stream: StreamState | None
    """Of rows that come from a stream: how far it has been read for them."""


def step_batch(objective: Objective, rows: list[int], config: Config) -> StepBatch:
    """Make the rows with these numbers; with `training.overfit_batches`, those of the first batches in their place."""
    if config.training.overfit_batches is not None:
        rows = [row % (config.training.overfit_batches * config.batch_rows) for row in rows]
    made = [objective.row(row) for row in rows]
    state = stream_state(objective)  # behind the last of them
    size = cast(int, config.training.micro_batch)
    micro_batches = [stack(made[i : i + size]) for i in range(0, len(made), size)]
    valid = sum(valid_targets(batch) for batch in micro_batches)
    return StepBatch(rows, micro_batches, valid, _source_tokens(objective, rows, made), state)


def _source_tokens(objective: Objective, rows: list[int], made: list[Row]) -> list[int]:
    tokens = [0] * len(getattr(objective, "source_names", ()))
    if tokens:
        for index, row in zip(rows, made, strict=True):
            tokens[objective.row_source(index)] += int((row["targets"] != IGNORED).sum())  # type: ignore[attr-defined]
    return tokens
