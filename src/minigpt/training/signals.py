"""Stopping: the first SIGINT or SIGTERM asks for a clean end, a second one leaves at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequested(Exception):
    """Raised inside a piece of work that a signal told to end; what it had done so far is abandoned."""


class StopSignals:
    """Watches SIGINT and SIGTERM while it is entered; the old handlers come back afterwards.

    Work that takes long calls `check` (or reads `received`) often. In a thread other than the main one no handler can
    be installed: then only `request` sets the flag.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask for a stop as the signal `number` would."""
        self.received = self.received or number

    def check(self) -> None:
        """Raises StopRequested once a signal has come."""
        if self.received is not None:
            raise StopRequested

    @property
    def exit_status(self) -> int:
        """128 + signal number, as shells report it; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received
