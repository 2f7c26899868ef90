"""TensorBoard: `tensorboard --logdir RUN`."""

from itertools import pairwise
from typing import TYPE_CHECKING

from minigpt.config.yaml import dump_yaml
from minigpt.training.loggers.base import Histogram, Logger, Metrics, RunInfo

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(Logger):
    """Event files in RUN/tensorboard: a scalar for each key, texts (samples, the config), histograms.

    A run that goes on, or back, begins a new file, which tells TensorBoard to forget what it has of later steps. What
    is logged is on the disk at once, so that a killed process loses next to nothing.
    """

    label = "TensorBoard"

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def start(self, run: RunInfo) -> None:
        """Begin a file of the steps after `run.step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=run.step + 1)
        self._writer.add_text("config", _verbatim(dump_yaml(run.config)), run.step)

    def log(self, metrics: Metrics) -> None:
        """A scalar of each number."""
        writer = self._open()
        for key, value in metrics.items():
            if key != "step" and isinstance(value, int | float):
                writer.add_scalar(key, value, metrics["step"])
        writer.flush()

    def histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """As TensorBoard has them: the upper edge of each bin, and moments, which follow from the middles here."""
        writer = self._open()
        for key, histogram in values.items():
            counts, edges = histogram.counts, histogram.edges
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            pairs = list(zip(counts, middles, strict=True))
            writer.add_histogram_raw(
                key, min=edges[0], max=edges[-1], num=sum(counts), sum=sum(n * x for n, x in pairs),
                sum_squares=sum(n * x * x for n, x in pairs), bucket_limits=edges[1:], bucket_counts=counts,
                global_step=step,
            )  # fmt: skip
        writer.flush()

    def sample(self, step: int, text: str) -> None:
        """A text, shown as it is."""
        writer = self._open()
        writer.add_text("sample", _verbatim(text), step)
        writer.flush()

    def close(self) -> None:
        """Write what is still waiting."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> "SummaryWriter":
        assert self._writer is not None, "start comes first"
        return self._writer


def _verbatim(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
