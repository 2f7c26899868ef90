"""Trackio: W&B's interface with a local database and dashboard (`trackio show`)."""

from typing import Any

from minigpt.config import TrackioConfig
from minigpt.training.loggers.base import Histogram, Logger, Metrics, RunInfo

RENAMED = {"time": "seconds"}  # Trackio keeps some names for itself; `step` is its axis


class TrackioLogger(Logger):
    """Sends metrics, samples and histograms to Trackio, where the run is called by its name and its id.

    Its database is in TRACKIO_DIR (by default in the user's cache). A run that goes on is the same run there; what the
    steps that are done again had already sent is there twice, since Trackio takes nothing back. Trackio itself says on
    stdout where to find the run.
    """

    label = "Trackio"

    def __init__(self, config: TrackioConfig) -> None:
        self.config = config
        self._run: Any = None

    def start(self, run: RunInfo) -> None:
        """Begin the run there, or go on with it."""
        if self._run is None:
            self._run = _trackio().init(
                project=self.config.project, name=f"{run.name}-{run.id}", config=run.config, resume="allow", embed=False
            )

    def log(self, metrics: Metrics) -> None:
        """All keys."""
        values = {RENAMED.get(key, key): value for key, value in metrics.items() if key != "step"}
        self._run.log(values, step=metrics["step"])

    def histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """As Trackio has them, bins and all."""
        self._run.log({k: _trackio().Histogram(np_histogram=(h.counts, h.edges)) for k, h in values.items()}, step=step)

    def sample(self, step: int, text: str) -> None:
        """A text, shown as it is."""
        verbatim = "\n".join(f"    {line}" for line in text.split("\n"))
        self._run.log({"sample": _trackio().Markdown(verbatim)}, step=step)

    def close(self) -> None:
        """Write what is still waiting."""
        if self._run is not None:
            self._run.finish()


def _trackio() -> Any:
    """The package, which nobody needs unless it is asked for."""
    import trackio

    return trackio
