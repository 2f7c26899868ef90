"""What the trainer asks of a logger, and what it gives: metrics, histograms, samples, and lines for people."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
"""A line of metrics: names such as `train/loss`, and plain numbers. `step`, `tokens` and `time` are always there."""


@dataclass(frozen=True)
class RunInfo:
    """What a logger learns of the run when training starts."""

    run_dir: Path
    """The run's folder: a logger may keep files of its own in it."""
    config: dict[str, Any]
    """The resolved config as a plain tree."""
    name: str
    """The run's name."""
    step: int
    """The step that training starts after: 0, or where the run goes on. Everything logged of later steps is void."""
    max_steps: int
    """The step that training ends at."""
    id: str = ""
    """16 hexadecimal digits that no other run has, the same when the run goes on; empty for a console."""


@dataclass(frozen=True)
class Histogram:
    """How many of some numbers lie between two edges."""

    counts: list[int]
    """Of each bin."""
    edges: list[float]
    """Ascending, one more than there are bins; the last bin includes its upper edge."""


class Logger:
    """Override what you need: everything else is left alone.

    All loggers get the same keys. All but the console work in a thread of their own, each in its own, where they may be
    as slow as they like and fail as they like (see `BackgroundLogger`). The one thing that they must not do is to draw
    from the global random generators.
    """

    label = ""
    """What people call it; the name of the class if empty."""

    def start(self, run: RunInfo) -> None:
        """Training starts, goes on after a resume, or goes back after bad steps: steps after `run.step` come anew."""

    def log(self, metrics: Metrics) -> None:
        """Take one line of metrics; a step may have several (training, validation, ...)."""

    def histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """Take histograms, such as `monitor/gradient/blocks.0.attention.qkv`, of `step`."""

    def sample(self, step: int, text: str) -> None:
        """Take a text generated at `step`."""

    def message(self, text: str) -> None:
        """Take a line for people."""

    def failed(self, error: BaseException) -> None:
        """Training ends with this error."""

    def close(self) -> None:
        """The run is over, or stops here for now."""
