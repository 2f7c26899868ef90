"""A running average of the weights, which is often better than the last of them.

Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; exponential, as Szegedy et al. 2016
(arXiv:1512.00567, section 8) evaluate.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Of tensors that training changes in place, each process of those that it holds.

    After update t the average moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights, so that it
    forgets the first ones quickly (as TensorFlow's `ExponentialMovingAverage` with `num_updates`).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = dict(weights), decay
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are now."""
        for name, weight in self.weights.items():
            self.average[name].copy_(weight)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 1)."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it, the weights are the average, and `average` holds the weights of training."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            kept = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)
