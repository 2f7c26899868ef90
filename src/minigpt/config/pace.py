"""How much each step takes, and how long its rows and its window are: a pure function of the step's number.

A run numbers its rows (of `model.context_length` tokens) 0, 1, 2, ... and takes them in that order. The schedules say
how many a step takes, into how short ones they are cut, and how far layers with a short window see. Nothing of that
depends on what happened in the run, so a run that resumes at any step is where it was.
"""

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt.config.tree import Config


class Pace:
    """The schedules of a config whose micro-batch is settled. Steps count from 1; tokens are those of whole rows."""

    def __init__(self, config: "Config") -> None:
        schedule, self._length = config.schedule, config.model.context_length
        self._by_tokens = schedule.unit == "tokens"
        self._context, self._window = schedule.context_length, schedule.window
        self.micro_batches = [config.batch_rows]
        """Micro-batches of a step, stage by stage of the accumulation (rows where the micro-batch is one row)."""
        begins, sizes, micro = [0], [config.batch_rows], config.training.micro_batch
        if isinstance(micro, int):
            self.micro_batches = [config.batch_rows // micro]
            if schedule.accumulation is not None:
                self.micro_batches = [count for _, count in schedule.accumulation]
                begins = [begin for begin, _ in schedule.accumulation]
                sizes = [count * micro for count in self.micro_batches]
        self._sizes, self._made, self._rows = sizes, [0], [0]
        for begin, size in zip(begins[1:], sizes, strict=False):  # the size is that of the stage that ends there
            made, row = self._made[-1], self._rows[-1]
            steps = max(0, -(-(-(-begin // self._length) - row) // size)) if self._by_tokens else begin - made
            self._made.append(made + steps)  # updates made when the stage begins
            self._rows.append(row + steps * size)

    @property
    def is_constant(self) -> bool:
        """Whether all steps are alike."""
        return len(self._sizes) == 1 and self._context is None and self._window is None

    def batch_rows(self, step: int) -> int:
        """Rows of step `step`."""
        return self._sizes[bisect_right(self._made, step - 1) - 1]

    def first_row(self, step: int) -> int:
        """How many rows the steps before `step` take."""
        stage = bisect_right(self._made, step - 1) - 1
        return self._rows[stage] + (step - 1 - self._made[stage]) * self._sizes[stage]

    def tokens_before(self, step: int) -> int:
        """How many tokens those have."""
        return self.first_row(step) * self._length

    def steps_of(self, rows: int) -> int:
        """The fewest steps that take so many rows."""
        if rows <= 0:
            return 0
        stage = bisect_left(self._rows, rows) - 1
        return self._made[stage] - (self._rows[stage] - rows) // self._sizes[stage]

    def context_length(self, step: int) -> int:
        """Tokens in a row of step `step`."""
        return self._length if self._context is None else self._now(self._context, step)

    def window(self, step: int) -> int | None:
        """What layers with a short window see in step `step`; None: what the model's config says."""
        return None if self._window is None else self._now(self._window, step)

    def _now(self, pairs: list[list[int]], step: int) -> int:
        at = self.tokens_before(step) if self._by_tokens else step - 1
        return pairs[bisect_right([begin for begin, _ in pairs], at) - 1][1]
