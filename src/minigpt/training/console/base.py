"""What a console is: a logger that people look at while a run goes on."""

from typing import Protocol

from minigpt.training.loggers import Logger
from minigpt.training.signals import StopSignals


class Watched(Protocol):
    """What a console reads of a run whenever it likes, at no cost to the run."""

    step: int
    """The last finished step."""
    signals: StopSignals
    """Whether the run has been asked to stop."""


class ConsoleLogger(Logger):
    """A logger that also shows what comes before training, and may look at the run between two lines of metrics."""

    def watch(self, run: Watched) -> None:
        """Training of `run` is about to start."""

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Before training: `done` of `total` (None: nobody knows) units of something that takes long."""
