"""Histograms of gradients and parameters, for the loggers that show them."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from minigpt.training.callbacks import Callback
from minigpt.training.loggers import Histogram
from minigpt.training.whole import whole_of

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer

BINS = 64


class Histograms(Callback):
    """Every so many steps: `monitor/gradient/<tensor>` as the update gets it, `monitor/parameter/<tensor>` after it.

    A step whose update is skipped has no gradients here. Counting happens on the CPU: on a GPU, PyTorch has no
    deterministic way of it.
    """

    def __init__(self, every_steps: int | None) -> None:
        self.every_steps = every_steps
        self._gradients: dict[str, Histogram] = {}

    def on_train_batch_start(self, trainer: "Trainer", step: int) -> None:
        """Those of the last step are gone."""
        self._gradients = {}

    def on_before_optimizer_step(self, trainer: "Trainer") -> None:
        """Keep the histograms of the gradients until the step is done."""
        if self._due(trainer.step + 1):
            named = trainer.model.named_parameters()
            gradients = {name: p.grad for name, p in named if p.grad is not None}
            self._gradients = _histograms("gradient", trainer, gradients, trainer.gradient_factor)

    def on_train_batch_end(self, trainer: "Trainer", step: int) -> None:
        """Log both."""
        if self._due(step):
            parameters = _histograms("parameter", trainer, dict(trainer.model.named_parameters()))
            trainer.log_histograms(step, self._gradients | parameters)

    def _due(self, step: int) -> bool:
        return self.every_steps is not None and step % self.every_steps == 0


def histogram(values: torch.Tensor, factor: float = 1.0) -> Histogram | None:
    """Of all finite numbers of a tensor, each times `factor`; None if there is none."""
    numbers = values.detach().double().cpu().numpy() * factor
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    counts, edges = np.histogram(numbers, bins=BINS)
    return Histogram(counts.tolist(), edges.tolist())


def _histograms(
    kind: str, trainer: "Trainer", tensors: dict[str, torch.Tensor], factor: float = 1.0
) -> dict[str, Histogram]:
    whole = whole_of(trainer.parallel, tensors)
    made = {name.removesuffix(".weight"): histogram(tensor, factor) for name, tensor in whole}
    return {f"monitor/{kind}/{name}": one for name, one in made.items() if one is not None}
