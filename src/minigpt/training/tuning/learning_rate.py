"""`minigpt tune lr`: a learning-rate range test (Smith 2017, "Cyclical Learning Rates", arXiv:1506.01186, section 3.3).

A short run in which the learning rate rises exponentially from step to step. The loss falls slowly while the rate is
too low, then fast, then no more, and rises when the rate is too high for the network to train at all. The peak rate of
a whole run lies below the turning point: a tenth of the rate with the lowest loss is customary (fast.ai, `lr_find`).
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from minigpt.config import Config, WorkError
from minigpt.training.callbacks import Callback
from minigpt.training.console import ConsoleLogger
from minigpt.training.console.curve import chart
from minigpt.training.loggers import Metrics
from minigpt.training.run import Result, train
from minigpt.training.trainer import Trainer

SMOOTHING = 0.9
"""Weight of the losses before in the moving mean: the batches of two steps are different, and so are their losses."""
DIVERGED = 2.0
"""The test ends when the smoothed loss is above its lowest value by this part of what it has fallen, at least."""
BELOW_TURN = 10.0
"""The suggestion is the rate with the lowest smoothed loss divided by this."""


@dataclass(frozen=True)
class Curve:
    """The losses of one run."""

    seed: int
    rates: list[float]
    losses: list[float]

    @property
    def smooth(self) -> list[float]:
        """The exponential moving mean of the losses, free of the bias of its start (Kingma and Ba 2015, section 3)."""
        means, mean = [], 0.0
        for i, loss in enumerate(self.losses, 1):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            means.append(mean / (1 - SMOOTHING**i))
        return means

    @property
    def lowest(self) -> float:
        """The rate with the lowest smoothed loss; of the first tenth the means are of too few."""
        first = len(self.rates) // 10
        smooth = self.smooth[first:]
        return self.rates[first + smooth.index(min(smooth))]


@dataclass(frozen=True)
class RangeTest:
    """What the test found."""

    curves: list[Curve]

    @property
    def lowest(self) -> float:
        """The rate with the lowest loss: the geometric mean over the seeds."""
        return math.exp(statistics.fmean(math.log(curve.lowest) for curve in self.curves))

    @property
    def suggestion(self) -> float:
        """A peak learning rate, to two digits."""
        return float(f"{self.lowest / BELOW_TURN:.2g}")

    @property
    def turned(self) -> bool:
        """Whether the loss has risen again in every run: otherwise the range ended too early."""
        return all(curve.lowest < curve.rates[-1] for curve in self.curves)

    def lines(self, width: int = 64, height: int = 10) -> list[str]:
        """The first curve, and what to set."""
        curve = self.curves[0]
        values = _columns(curve.smooth, min(width, len(curve.rates)))
        edge = f"{curve.rates[0]:.2g}"
        last = f"{curve.rates[-1]:.2g}"
        axis = edge + " " * max(1, len(values) - len(edge) - len(last)) + last
        lines = [f"loss, smoothed: {min(values):.3f} to {max(values):.3f}", *chart(values, height), axis]
        found = ", ".join(f"{one.lowest:.2g}" for one in self.curves)
        lines.append(f"the loss was lowest at optimizer.lr={found}" + (" (one a seed)" if len(self.curves) > 1 else ""))
        if not self.turned:
            lines.append("it was still falling at the end of the range: raise --to")
        lines.append(f"set optimizer.lr={self.suggestion:g}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        curves = [{"seed": c.seed, "lr": c.rates, "loss": c.losses, "lowest": c.lowest} for c in self.curves]
        return {"suggestion": self.suggestion, "lowest": self.lowest, "turned": self.turned, "curves": curves}

    def draw(self, path: Path) -> None:
        """The curves as a PNG (needs matplotlib). Raises WorkError if it cannot be written."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise WorkError("a PNG needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for curve in self.curves:
            axes.plot(curve.rates, curve.smooth, label=f"seed {curve.seed}")
        axes.axvline(self.suggestion, color="gray", linestyle="--", label=f"suggestion {self.suggestion:g}")
        axes.set_xscale("log")
        axes.set_xlabel("optimizer.lr")
        axes.set_ylabel("train/loss (smoothed)")
        axes.legend()
        try:
            figure.savefig(path, format="png", dpi=120)
        except OSError as error:
            raise WorkError(f"{path} cannot be written: {error.strerror or error}") from error


def tune_lr(
    config: Config,
    low: float = 1e-5,
    high: float = 1.0,
    steps: int = 100,
    seeds: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> RangeTest:
    """Train `steps` steps with rates from `low` to `high`, once for each of `seeds` seeds from the config's on.

    Raises WorkError if not even the first rates give a loss that is a number.
    """
    curves = []
    for seed in range(config.run.seed, config.run.seed + seeds):
        with tempfile.TemporaryDirectory(prefix="minigpt-tune-") as folder:
            curve = _run(_short(config, seed, steps), Path(folder) / "run", _rates(low, high, steps))
        curves.append(curve)
        say(f"seed {seed}: lowest loss {min(curve.smooth):.3f} at optimizer.lr={curve.lowest:.2g}")
    return RangeTest(curves)


def _rates(low: float, high: float, steps: int) -> list[float]:
    """From `low` to `high`, each the same factor above the one before."""
    return [low * (high / low) ** (i / max(1, steps - 1)) for i in range(steps)]


def _run(config: Config, folder: Path, rates: Sequence[float]) -> Curve:
    losses: list[float] = []
    recorder = _Recorder(losses)
    result: Result = train(config, run_dir=folder, callbacks=[_Rising(rates, losses)], console=recorder)
    if result.exit_status:
        raise KeyboardInterrupt
    if losses and not math.isfinite(losses[-1]):
        losses.pop()
    if len(losses) < 2:
        raise WorkError(f"the loss is not a number at optimizer.lr={rates[0]:g} already: lower --from")
    return Curve(config.run.seed, list(rates[: len(losses)]), losses)


class _Recorder(ConsoleLogger):
    """Keeps the loss of every step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def log(self, metrics: Metrics) -> None:
        """Take it."""
        if "train/loss" in metrics:
            self.losses.append(metrics["train/loss"])


class _Rising(Callback):
    """Sets the learning rate of every step, and ends the run when it is too high."""

    def __init__(self, rates: Sequence[float], losses: list[float]) -> None:
        self.rates, self.losses = rates, losses

    def on_before_optimizer_step(self, trainer: Trainer) -> None:
        """The step's own rate in place of the schedule's."""
        trainer.optimizer.set_lr(self.rates[trainer.step])

    def on_train_batch_end(self, trainer: Trainer, step: int) -> None:
        """Whether it goes on."""
        if not math.isfinite(self.losses[-1]):
            trainer.stop("the loss is not a number")
            return
        smooth = Curve(0, list(self.rates), self.losses).smooth
        lowest = min(smooth)
        if smooth[-1] > lowest + DIVERGED * max(smooth[0] - lowest, 0.05 * abs(lowest)):
            trainer.stop("the loss rises")


def _short(config: Config, seed: int, steps: int) -> Config:
    """The run's first steps and nothing besides."""
    callbacks = config.callbacks
    row = config.model.context_length
    plain = type(callbacks)(own=callbacks.own)
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": "trial", "seed": seed}),
            "training": config.training.model_copy(update={"max_steps": steps, "max_tokens": None, "epochs": None}),
            "schedule": type(config.schedule)(kind="constant"),
            "evaluation": config.evaluation.model_copy(update={"every_steps": None, "max_tokens": row}),
            "checkpoint": type(config.checkpoint)(every_steps=None, every_minutes=None, best=False),
            "callbacks": plain,
            "loggers": type(config.loggers)(console="quiet", every_steps=1),
        }
    )


def _columns(values: Sequence[float], width: int) -> list[float]:
    """Means of `width` equal stretches."""
    edges = [i * len(values) // width for i in range(width + 1)]
    return [statistics.fmean(values[a:b]) for a, b in pairwise(edges)]
