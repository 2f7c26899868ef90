"""While a live display is up, what other code prints (warnings, logging, print) goes above it instead of through it."""

import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

from rich.text import Text

from minigpt.training.console.region import Region
from minigpt.training.console.safe_text import printable


class _Above:
    """Stands in for a stream; every complete line is printed above the region."""

    def __init__(self, stream: TextIO, region: Region) -> None:
        self.stream, self.region = stream, region
        self.active = True  # afterwards whoever has kept it writes to the stream itself
        self._line = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Take text; what follows the last line end waits for the rest of its line."""
        if not self.active:
            return self.stream.write(text)
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._print(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Take several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Complete lines are on the terminal already."""

    def finish(self) -> None:
        """The display is over: print what has no line end yet, then write to the stream itself."""
        if self._line:
            self._print(self._line)
        self.active = False

    def _print(self, line: str) -> None:
        """Colours stay; of a progress bar that paints over itself only the last state does."""
        text = Text.from_ansi(line.rstrip("\r").rpartition("\r")[2])
        text.plain = printable(text.plain)
        self.region.print(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Streams:
    """Directs standard output and error above a region from `take` to `give_back`, where they are terminals."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._active = False
        self._taken: list[tuple[str, _Above]] = []
        self._old_continue: Any = None

    def take(self) -> None:
        """Replace the streams, also in logging's handlers, which keep the stream that they began with."""
        if self._active:
            return
        self._active = True
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                above = _Above(stream, self._region)
                setattr(sys, name, above)
                _redirect_logging(stream, cast(TextIO, above))
                self._taken.append((name, above))
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCONT"):
            self._old_continue = signal.signal(signal.SIGCONT, self._continued)

    def give_back(self) -> None:
        """Put the streams back; one that somebody else has replaced meanwhile is left alone."""
        for name, above in self._taken:
            above.finish()
            if getattr(sys, name) is above:
                setattr(sys, name, above.stream)
            _redirect_logging(cast(TextIO, above), above.stream)
        self._taken.clear()
        self._active = False
        if self._old_continue is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCONT, self._old_continue)
            self._old_continue = None

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z and `fg`: the shell has written below the last frame."""
        self._region.forget()


def _redirect_logging(old: TextIO, new: TextIO) -> None:
    for handler in _handlers():
        if handler.stream is old:
            handler.setStream(new)


def _handlers() -> Iterator["logging.StreamHandler[TextIO]"]:
    for logger in [logging.root, *list(logging.root.manager.loggerDict.values())]:
        for handler in getattr(logger, "handlers", ()):  # a name without a logger of its own has none
            # one that asks for sys.stderr each time (logging.lastResort) keeps no stream
            if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler):
                yield handler
