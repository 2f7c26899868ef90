"""What people see while a run goes on: a live panel on a terminal, plain lines in a log, or only messages."""

import sys
from typing import TextIO

from rich.console import Console

from minigpt.training.console.base import ConsoleLogger, Watched
from minigpt.training.console.figures import amount, duration
from minigpt.training.console.live import LiveConsole
from minigpt.training.console.plain import PlainConsole, QuietConsole
from minigpt.training.console.safe_text import printable

__all__ = [
    "ConsoleLogger",
    "LiveConsole",
    "PlainConsole",
    "QuietConsole",
    "Watched",
    "amount",
    "duration",
    "make_console",
    "printable",
]


def make_console(kind: str) -> ConsoleLogger:
    """auto, rich, plain or quiet, on stderr."""
    if kind == "quiet":
        return QuietConsole()
    if kind != "plain" and _can_be_live(sys.stderr):
        return LiveConsole()
    console = PlainConsole()
    if kind == "rich":
        console.message(
            "loggers.console=rich needs a terminal that moves its cursor and takes UTF-8: plain lines instead"
        )
    return console


def _can_be_live(stream: TextIO) -> bool:
    """Whether it is a terminal on which lines can be painted over."""
    if not stream.isatty() or (stream.encoding or "").lower().replace("-", "") != "utf8":
        return False
    terminal = Console(file=stream)
    return not terminal.is_dumb_terminal and not terminal.legacy_windows
