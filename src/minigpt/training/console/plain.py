"""Consoles without a live display: lines for a log file, or only what must be said."""

import contextlib
import sys
import time
from typing import TextIO

from minigpt.training.console.base import ConsoleLogger
from minigpt.training.console.figures import duration
from minigpt.training.console.safe_text import printable, tidy
from minigpt.training.console.state import State
from minigpt.training.loggers import Metrics, RunInfo

PLAIN_SECONDS, SLOWEST_SECONDS = 10.0, 60.0
"""Training metrics get a line this often, at first and in a long run; evaluations always."""


class QuietConsole(ConsoleLogger):
    """Only messages: what people must know."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def message(self, text: str) -> None:
        """The line."""
        self._print(printable(text))

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more: the run goes on
            print(text, file=self._stream, flush=True)


class PlainConsole(QuietConsole):
    """Lines of text, few enough for a log file."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._state: State | None = None
        self._shown: float | None = None  # when the last line of training metrics or of progress came

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """A line now and then, none for what is over soon."""
        now = time.monotonic()
        if self._shown is None:
            self._shown = now
        elif now - self._shown >= PLAIN_SECONDS:
            self._shown = now
            self._print(f"{stage}: {done:,}{f' of {total:,}' if total else ''} {unit}")

    def start(self, run: RunInfo) -> None:
        """Training begins after `run.step`."""
        self._state = State(run, time.monotonic())
        self._shown = None

    def log(self, metrics: Metrics) -> None:
        """A line for each evaluation, and every ten seconds; every minute when the run has taken an hour."""
        now, state = time.monotonic(), self._state
        if state is None:
            return
        state.log(metrics, now)
        step = f"step {metrics['step']}/{state.max_steps}"
        if "val/loss" in metrics:
            self._print(f"{step}  {_evaluation(state)}")
            if sources := state.sources():
                self._print("  ".join([step, *(figure for figure, _ in sources)]))
            return
        pause = min(SLOWEST_SECONDS, max(PLAIN_SECONDS, state.elapsed(now) / 60))
        if "train/loss" in metrics and (self._shown is None or now - self._shown >= pause):
            self._shown = now
            remaining = state.remaining(now)
            eta = "-:--" if remaining is None else duration(remaining)
            self._print("  ".join([step, *(figure for figure, _ in state.figures()), f"eta {eta}"]))

    def sample(self, step: int, text: str) -> None:
        """The text, indented."""
        of = f"/{self._state.max_steps}" if self._state else ""
        self._print("\n    ".join([f"step {step}{of}  sample:", *tidy(text).expandtabs(4).split("\n")]))


def _evaluation(state: State) -> str:
    newest = state.evaluations[-1]
    parts = [f"val loss {newest.loss:.4f}"]
    if newest.bits_per_byte is not None:
        parts.append(f"bits/byte {newest.bits_per_byte:.4f}")
    if newest.change is not None:
        parts.append(f"change {newest.change:+.4f}")
    if newest is state.best:
        parts.append("best")
    return "  ".join(parts)
