"""What is asked of a merge, checked before PyTorch is imported or a weight is read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minigpt.config import RequestError

Method = Literal["linear", "ema", "slerp", "task-arithmetic", "ties", "dare"]

METHODS: dict[str, tuple[str, ...]] = {
    "linear": ("weights", "last"),
    "ema": ("decay", "last"),
    "slerp": ("weights",),
    "task-arithmetic": ("base", "weights", "scale"),
    "ties": ("base", "weights", "scale", "density"),
    "dare": ("base", "weights", "scale", "density", "seed"),
}
"""Each method with the options that say something to it."""

DEFAULTS = {"decay": 0.8, "scale": 1.0, "seed": 0}
DENSITY = {"ties": 0.2, "dare": 0.5}
"""TIES keeps the paper's 20 %. DARE's 10 % is for large models: the changes of small ones are less redundant."""


@dataclass(frozen=True)
class MergeOptions:
    """How several models become one. None means not said: the method's default."""

    method: str = "linear"
    weights: tuple[float, ...] | None = None
    """One number for each model."""
    base: str | Path | None = None
    """The model that all others were fine-tuned from."""
    last: int | None = None
    """Merge the last so many checkpoints of the one run that is given."""
    density: float | None = None
    """Share of each model's changes that is kept."""
    scale: float | None = None
    """The merged change is multiplied by this."""
    decay: float | None = None
    """Moving average: share of the old average that is kept at each model."""
    seed: int | None = None
    """Seed of what DARE drops."""

    def checked(self, models: int) -> "MergeOptions":
        """Itself, for so many models on the command line. RequestError: unknown, without effect, or impossible."""
        if self.method not in METHODS:
            raise RequestError(f"--method={self.method} is not possible: choose one of {', '.join(METHODS)}")
        for option in dict.fromkeys(option for options in METHODS.values() for option in options):
            if getattr(self, option) is not None and option not in METHODS[self.method]:
                users = " and ".join(method for method, options in METHODS.items() if option in options)
                raise RequestError(f"--{option} has no effect with --method={self.method}: it belongs to {users}")
        if "base" in METHODS[self.method] and self.base is None:
            raise RequestError(
                f"--method={self.method} adds up changes of a model: say with --base which one they were made to"
            )
        self._require_numbers()
        if self.last is not None:
            if models != 1:
                raise RequestError(f"--last takes the checkpoints of one run: give one run folder, not {models} models")
            models = self.last
        elif models < 2 and "base" not in METHODS[self.method]:
            raise RequestError(
                "merging takes two models or more: name them after OUT, or say with --last how many of a run's "
                "checkpoints to take"
            )
        if self.method == "slerp" and models != 2:
            raise RequestError(f"--method=slerp goes from one model to another: give two models, not {models}")
        self._require_weights(models)
        return self

    def _require_numbers(self) -> None:
        if self.last is not None and self.last < 2:
            raise RequestError(f"--last={self.last} is not possible: it must be at least 2")
        if self.density is not None and not 0 < self.density <= 1:
            raise RequestError(f"--density={self.density} is not possible: it must be above 0 and at most 1")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise RequestError(f"--decay={self.decay} is not possible: it must be at least 0 and below 1")
        if self.scale is not None and not math.isfinite(self.scale):
            raise RequestError(f"--scale={self.scale} is not possible: it must be a finite number")

    def _require_weights(self, models: int) -> None:
        if self.weights is None:
            return
        shown = ",".join(f"{weight:g}" for weight in self.weights)
        if len(self.weights) != models:
            raise RequestError(
                f"--weights={shown} are {len(self.weights)} numbers for {models} models: give one for each"
            )
        if not all(map(math.isfinite, self.weights)):
            raise RequestError(f"--weights={shown} is not possible: they must be finite numbers")
        if self.method in ("slerp", "ties") and min(self.weights) < 0:
            raise RequestError(f"--weights={shown} is not possible: with --method={self.method} none may be negative")
        if self.method in ("linear", "slerp", "ties") and abs(sum(self.weights)) < 1e-6:
            raise RequestError(f"--weights={shown} is not possible: only their ratios count, and they sum to zero")

    def shares(self, models: int, default: float = 1.0) -> list[float]:
        """The weight of each model, `default` where none was said."""
        return [default] * models if self.weights is None else list(self.weights)
