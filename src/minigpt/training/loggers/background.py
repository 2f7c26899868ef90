"""A logger in a thread of its own: whatever becomes of it, the run goes on as if it were not there."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from minigpt.training.loggers.base import Histogram, Logger, Metrics, RunInfo


class BackgroundLogger(Logger):
    """Passes everything on to `logger`, in order, and never waits for it but for some seconds at the end.

    What comes while too many entries wait is dropped and counted. The first error switches the logger off. Either is
    said in one line, through `say`, which must be safe to call from another thread.
    """

    capacity = 10_000
    """Entries that may wait: some minutes of a fast run, some megabytes."""
    capacity_for_histograms = 16
    """Entries that may wait if histograms are still to be taken: those of one step may have a megabyte."""
    patience = 15.0
    """Seconds that a run waits at its end for the logger to finish."""

    def __init__(self, logger: Logger, say: Callable[[str], None]) -> None:
        self.logger, self.label = logger, logger.label or type(logger).__name__
        self.dropped = 0
        self._say = say
        self._entries: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"logger {self.label}", daemon=True)
        self._on = True
        self._deadline: float | None = None

    def start(self, run: RunInfo) -> None:
        """Passed on; never dropped."""
        self._entries.put(("start", (run,)))
        if self._thread.ident is None:
            self._thread.start()

    def log(self, metrics: Metrics) -> None:
        """A copy is passed on: what this logger does with it is not seen by the others."""
        self._put(self.capacity, "log", dict(metrics))

    def histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """Passed on."""
        self._put(self.capacity_for_histograms, "histograms", step, dict(values))

    def sample(self, step: int, text: str) -> None:
        """Passed on."""
        self._put(self.capacity, "sample", step, text)

    def message(self, text: str) -> None:
        """Passed on."""
        self._put(self.capacity, "message", text)

    def failed(self, error: BaseException) -> None:
        """Passed on; never dropped."""
        self._entries.put(("failed", (error,)))

    def end(self) -> None:
        """Ask the logger to close, without waiting for it: the patience of `close` counts from here."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.patience
            self._entries.put(("close", ()))

    def close(self) -> None:
        """Wait until the logger has taken everything and closed, or until there is no patience left."""
        self.end()
        if self._thread.ident is None:  # training never started
            return
        assert self._deadline is not None
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"{self.label} has not finished in {self.patience:g} s: the last steps may be missing there")
        if self.dropped:
            self._say(f"{self.label} was slower than the run: {self.dropped} entries did not reach it")

    def _put(self, capacity: int, method: str, *arguments: Any) -> None:
        if not self._on:
            return
        if self._entries.qsize() < capacity:
            self._entries.put((method, arguments))
        else:
            self.dropped += 1

    def _work(self) -> None:
        method = ""
        while method != "close":
            method, arguments = self._entries.get()
            try:
                getattr(self.logger, method)(*arguments)
            except BaseException as error:  # whatever it is, there is nobody in this thread to handle it
                self._on = False
                said = " ".join(str(error).split())
                self._say(f"{self.label} is switched off, and the run goes on: {type(error).__name__}: {said}")
                return
