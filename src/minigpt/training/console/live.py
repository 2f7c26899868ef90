"""The console of a terminal: a panel at its bottom that shows how the run is getting on."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TextIO

from rich.text import Text

from minigpt.training.console.base import ConsoleLogger, Watched
from minigpt.training.console.figures import amount
from minigpt.training.console.panel import Panel
from minigpt.training.console.region import Region
from minigpt.training.console.safe_text import printable
from minigpt.training.console.state import State
from minigpt.training.console.streams import Streams
from minigpt.training.loggers import Metrics, RunInfo

SECONDS = 0.5  # between two frames


class LiveConsole(ConsoleLogger):
    """Repaints the panel twice a second in a thread of its own; messages scroll past above it.

    The run only puts what it logs in a queue. What it has logged is made sense of in the display's thread.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._region = Region(stream or sys.stderr)
        self._streams = Streams(self._region)
        self._state: State | None = None
        self._panel = Panel(self._region.console)
        self._news: deque[Callable[[], None]] = deque()
        self._watched: Watched | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._painted = 0.0
        self._broken = False

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """One line that is painted over."""
        now = time.monotonic()
        if now - self._painted >= SECONDS:
            self._painted = now
            self._streams.take()
            share = f" of {amount(total)}" if total else ""
            self._region.paint([Text(f"{stage}: {amount(done)}{share} {unit}", "dim")])

    def watch(self, run: Watched) -> None:
        """Look at its step before each frame."""
        self._watched = run

    def start(self, run: RunInfo) -> None:
        """Training begins after `run.step`: from now on the panel is shown."""
        self._state = State(run, time.monotonic())  # reads the run's files, which are about to become longer
        if self._thread is None:
            self._over.clear()
            self._streams.take()
            self._thread = threading.Thread(target=self._keep_painting, name="console", daemon=True)
            self._thread.start()

    def log(self, metrics: Metrics) -> None:
        """The newest metrics."""
        if self._state is not None:
            self._news.append(partial(self._state.log, metrics, time.monotonic()))

    def sample(self, step: int, text: str) -> None:
        """The newest sample."""
        if self._state is not None:
            self._news.append(partial(self._state.add_sample, step, text))

    def message(self, text: str) -> None:
        """The line, above the panel."""
        self._region.print(Text(printable(text)))

    def close(self) -> None:
        """The last state of the panel stays."""
        if self._thread is None:
            self._region.paint([])
        else:
            self._over.set()
            self._thread.join()
            self._thread = None
            self._paint(final=True)
            self._region.forget()
        self._streams.give_back()

    def _keep_painting(self) -> None:
        while not self._over.wait(SECONDS):
            self._paint()

    def _paint(self, final: bool = False) -> None:
        """One frame. Whatever goes wrong in it, the run goes on."""
        if self._broken:
            return
        try:
            self._draw(final)
        except Exception as error:
            self._broken = True
            self._region.forget()
            self.message(f"the live display failed ({type(error).__name__}: {error}); the run goes on without it")

    def _draw(self, final: bool) -> None:
        now, state = time.monotonic(), self._state
        while self._news:
            self._news.popleft()()
        if state is not None:
            if self._watched is not None:
                state.moved(self._watched.step, now)
            self._region.paint(self._panel.lines(state, now, self._activity(state, final), final))

    def _activity(self, state: State, final: bool) -> str:
        """What keeps the run from making steps."""
        if self._watched is None:
            return ""
        if self._watched.signals.received is not None:
            return "stopped" if final else "stopping"
        return "evaluating" if state.evaluation_due else ""
