"""Some lines at the bottom of a terminal that are painted over and over, while what is printed scrolls past above them.

Nothing of it outlives a frame: each is one write, which ends with the cursor visible on an empty line below and with
the terminal in its usual state. So a program that is killed at any moment leaves a terminal that works. (This is why
`rich.live`, which hides the cursor while it lives, is not used here.)
"""

import contextlib
import io
import os
import threading
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CUT_LINES, WRAP_LINES = "\x1b[?7l", "\x1b[?7h"  # terminals differ in the width of some characters: never two rows
ERASE_LINE, ERASE_BELOW = "\x1b[K", "\x1b[J"  # from the cursor on


class Region:
    """The bottom lines of a terminal. Its methods may be called from any thread.

    `console` knows the terminal's size and colours and composes the frames, but writes nothing itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(
            file=io.StringIO(), force_terminal=stream.isatty(), highlight=False, legacy_windows=False
        )
        self._stream = stream
        self._lock = threading.RLock()
        self._lines: list[str] = []  # the last frame, with its colours
        self._cells: list[int] = []  # how wide its lines are
        self._width = 0  # of the terminal at that time
        self._foreground_at_first = self._in_foreground()

    def paint(self, lines: Sequence[Text]) -> None:
        """Show these lines in place of the last ones; one that is too long is cut."""
        with self._lock:
            if self._foreground_at_first and not self._in_foreground():
                self.forget()  # the shell has its terminal back (Ctrl-Z and `bg`)
                return
            width = self.console.width
            rendered = self._render(lines, width - 1)
            if rendered != self._lines or width != self._width:
                self._write("", rendered, [min(cell_len(line.plain), width - 1) for line in lines], width)

    def print(self, text: Text) -> None:
        """Print above the lines, wrapped between words."""
        with self._lock:
            with self.console.capture() as capture:
                self.console.print(text)
            self._write(capture.get(), self._lines, self._cells, self.console.width)

    def forget(self) -> None:
        """Leave what is on the terminal as it is: the next frame begins where the cursor is."""
        with self._lock:
            self._lines, self._cells = [], []

    def _render(self, lines: Sequence[Text], width: int) -> list[str]:
        if not lines:
            return []
        with self.console.capture() as capture:
            self.console.print(Text("\n").join(lines), width=width, no_wrap=True, overflow="crop", end="")
        return capture.get().split("\n")

    def _write(self, above: str, lines: list[str], cells: list[int], width: int) -> None:
        """One frame in one write: to the top of the last one, what is to stay, and the lines."""
        rows = len(self._cells)
        if width < self._width:  # the terminal has broken the lines that no longer fit
            rows = sum(max(1, -(-count // width)) for count in self._cells)
        home = "\r" + (f"\x1b[{rows}A" if rows else "")
        if above or width != self._width:
            home += ERASE_BELOW
        body = "".join(f"{line}{ERASE_LINE}\n" for line in lines)
        frame = f"{HIDE_CURSOR}{home}{above}{CUT_LINES}{body}{ERASE_BELOW}{WRAP_LINES}{SHOW_CURSOR}"
        self._lines, self._cells, self._width = lines, cells, width
        with contextlib.suppress(OSError):  # the terminal is gone (a lost connection): the run goes on without it
            self._stream.write(frame if rows or lines else above)
            self._stream.flush()

    def _in_foreground(self) -> bool:
        """Whether the shell lets this process have the terminal; so it does where nobody knows."""
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except (OSError, AttributeError):  # not the terminal of this session; Windows
            return True
