"""Stopping: the first SIGINT or SIGTERM asks for a clean end, a second one leaves at once.

SIGUSR1 is another word for SIGTERM: what Slurm sends some time before it takes the machine away (`--signal`).
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

from minigpt.parallel.agreement import StopRequested as StopRequested

_WATCHED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Windows has no SIGUSR1."""


class StopSignals:
    """Watches SIGINT, SIGTERM and SIGUSR1 while it is entered; the old handlers come back afterwards.

    Work that takes long calls `check` (or reads `received`) often. In a thread other than the main one no handler can
    be installed: then only `request` sets the flag.

    echo_seconds: signals that come so soon after the first are taken for the same one. Of several processes each gets
    Ctrl-C from the terminal, and again from torchrun.
    """

    def __init__(self, echo_seconds: float = 0.0) -> None:
        self.received: int | None = None
        self.echo_seconds, self._received_at = echo_seconds, 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        number = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at >= self.echo_seconds:
            os._exit(128 + number)

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
