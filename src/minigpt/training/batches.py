"""What one optimizer step trains on."""

from dataclasses import dataclass
from typing import cast

from minigpt.config import Config
from minigpt.data.streaming.stream import StreamState
from minigpt.objectives import IGNORED, Batch, Objective, Row, stack, valid_targets
from minigpt.training.pace import cut_rows
from minigpt.training.streams import has_stream, stream_state


@dataclass
class StepBatch:
    """The rows of a step, stacked into micro-batches: those of them that this process trains on."""

    rows: list[int]
    """Of the whole step."""
    numbers: range
    """Which of the step's micro-batches these are."""
    micro_batches: list[Batch]
    valid: int
    """Valid targets of the whole step (of these micro-batches until all processes have said theirs): the loss is
    divided by this."""
    source_tokens: list[int]
    """Valid targets by source, in the order of the objective's `source_names`; [] where it has none."""
    stream: StreamState | None
    """Of rows that come from a stream: how far it has been read for them."""


def step_batch(
    objective: Objective, rows: list[int], config: Config, length: int, share: tuple[int, int] = (0, 1)
) -> StepBatch:
    """Make the rows with these numbers; with `training.overfit_batches`, those of the first batches in their place.

    length: where it is less than the context, the rows of a micro-batch are cut into rows of so many tokens.
    share: (i, n) makes the micro-batches i, i + n, ... of the step.
    """
    if config.training.overfit_batches is not None:
        rows = [row % (config.training.overfit_batches * config.batch_rows) for row in rows]
    size, (first, every) = cast(int, config.training.micro_batch), share
    numbers = range(first, -(-len(rows) // size), every)
    places = [place for number in numbers for place in range(len(rows))[number * size : (number + 1) * size]]
    if has_stream(objective):  # it is read in its order, whoever trains on what
        read = [objective.row(row) for row in rows]
        made = [read[place] for place in places]
    else:
        made = [objective.row(rows[place]) for place in places]
    state = stream_state(objective)  # behind the last of them
    source_tokens = _source_tokens(objective, [rows[place] for place in places], made)
    groups = [made[i : i + size] for i in range(0, len(made), size)]
    if length < config.model.context_length:
        groups = [cut_rows(group, length) for group in groups]
    micro_batches = [stack(group) for group in groups]
    valid = sum(valid_targets(batch) for batch in micro_batches)
    return StepBatch(rows, numbers, micro_batches, valid, source_tokens, state)


def _source_tokens(objective: Objective, rows: list[int], made: list[Row]) -> list[int]:
    tokens = [0] * len(getattr(objective, "source_names", ()))
    if tokens:
        for index, row in zip(rows, made, strict=True):
            tokens[objective.row_source(index)] += int((row["targets"] != IGNORED).sum())  # type: ignore[attr-defined]
    return tokens
