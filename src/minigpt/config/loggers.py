"""Where a run reports to, besides its own `metrics.jsonl` and `samples.jsonl`."""

from typing import Literal

from pydantic import Field

from minigpt.config.base import Section
from minigpt.config.extension import Extensions


class WandbConfig(Section):
    """Weights & Biases (needs the extra minigpt[wandb])."""

    enabled: bool = False
    """Send metrics, samples and histograms to Weights & Biases."""
    project: str = Field("minigpt", min_length=1)
    """Project there."""
    entity: str | None = None
    """User or team there; null means your own account."""
    name: str | None = None
    """Name of the run there; null means run.name."""
    group: str | None = None
    """Group of runs that it belongs to."""
    tags: list[str] = Field([])
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """offline keeps everything in RUN/wandb for `wandb sync`; null means WANDB_MODE if set, else online."""


class TrackioConfig(Section):
    """Trackio, a local dashboard (needs the extra minigpt[trackio])."""

    enabled: bool = False
    """Send metrics, samples and histograms to Trackio: `trackio show` opens them."""
    project: str = Field("minigpt", min_length=1)
    """Project there."""


class LoggersConfig(Section):
    """What is reported, how often, and to whom."""

    every_steps: int = Field(10, ge=1)
    """Steps between two lines of metrics."""
    console: Literal["auto", "rich", "plain", "quiet"] = "auto"
    """Live progress (rich), plain lines, or neither (quiet); auto is rich on a terminal and plain elsewhere."""
    csv: bool = False
    """Keep RUN/metrics.csv, the metrics as a table."""
    tensorboard: bool = False
    """Keep RUN/tensorboard for `tensorboard --logdir` (needs the extra minigpt[tensorboard])."""
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases."""
    trackio: TrackioConfig = TrackioConfig()
    """Trackio."""
    histograms_every_steps: int | None = Field(None, ge=1)
    """Steps between two histograms of every gradient and parameter, for loggers that show them; null means none."""
    own: Extensions = Field([])
    """A list of your own, each path/to/file.py:Class, or {kind: ...} and its options."""

    @property
    def show_histograms(self) -> bool:
        """Whether anybody takes histograms."""
        return self.tensorboard or self.wandb.enabled or self.trackio.enabled or bool(self.own)
