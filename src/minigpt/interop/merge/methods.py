"""The arithmetic of merging: how the numbers of several models become those of one.

linear           their weighted mean: model soups (Wortsman et al. 2022), the last checkpoints of a run (Izmailov et al.
                 2018, SWA)
ema              their exponential moving average, in the order given
slerp            a point on the arc between two of them (Shoemake 1985), tensor by tensor
task-arithmetic  a base and a weighted sum of what each changed about it (Ilharco et al. 2022)
ties             that, without small changes and those against the majority (Yadav et al. 2023)
dare             that, with changes dropped at random and the others enlarged for it (Yu et al. 2023)

A method sees the models block by block and computes in float64. What it must know of whole tensors or models before,
it finds out in passes of its own (`survey`).
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.interop.merge.options import DEFAULTS, DENSITY, MergeOptions


@dataclass(frozen=True)
class Block:
    """Some rows of one tensor, of every model."""

    name: str
    start: int
    """The first row."""
    models: list[Tensor]
    """One float64 tensor for each model, all of one shape."""
    base: Tensor | None
    """The base's, for methods that have one."""

    @property
    def changes(self) -> list[Tensor]:
        """What each model changed about the base."""
        assert self.base is not None
        return [model - self.base for model in self.models]


Pass = Callable[[], Iterator[Block]]
"""Each call gives every block of the models, from the first to the last."""


class Method(ABC):
    """A way of merging, made for one merge of `count` models."""

    def __init__(self, options: MergeOptions, count: int) -> None:
        self.options, self.count = options, count
        self.weights = options.shares(count)
        self.scale = DEFAULTS["scale"] if options.scale is None else options.scale
        self.density = DENSITY.get(options.method, 1.0) if options.density is None else options.density

    def survey(self, blocks: Pass) -> None:  # noqa: B027  (most have nothing to find out)
        """Find out what has to be known beforehand."""

    @abstractmethod
    def merge(self, block: Block) -> Tensor:
        """The same rows of the merged model, in float64."""


class Linear(Method):
    """sum of w theta / sum of w."""

    def merge(self, block: Block) -> Tensor:
        return _weighted_sum(self.weights, block.models) / sum(self.weights)


class MovingAverage(Method):
    """average = decay * average + (1 - decay) * theta for one model after the other, from the first one on."""

    def merge(self, block: Block) -> Tensor:
        decay = DEFAULTS["decay"] if self.options.decay is None else self.options.decay
        average, *others = block.models
        for model in others:
            average = decay * average + (1 - decay) * model
        return average


class Slerp(Method):
    """sin((1 - t) angle) / sin(angle) * a + sin(t angle) / sin(angle) * b, with t the second one's share.

    The angle is that between the two tensors seen as vectors. Where there is no arc, or more than one (a tensor is
    zero, or one is a multiple of the other), it is the straight line between them.
    """

    def survey(self, blocks: Pass) -> None:
        products: dict[str, Tensor] = {}  # a.a, b.b, a.b of each tensor
        for block in blocks():
            a, b = block.models
            found = torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()])
            products[block.name] = products.get(block.name, 0) + found
        self.angles = {name: _angle(*values.tolist()) for name, values in products.items()}

    def merge(self, block: Block) -> Tensor:
        a, b = block.models
        t, angle = self.weights[1] / sum(self.weights), self.angles[block.name]
        if math.sin(angle) < NO_ARC:
            return (1 - t) * a + t * b
        return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


class TaskArithmetic(Method):
    """base + scale * sum of w (theta - base)."""

    def merge(self, block: Block) -> Tensor:
        assert block.base is not None
        return block.base + self.scale * _weighted_sum(self.weights, block.changes)


class Ties(Method):
    """Trim, elect sign, merge: base + scale * the mean of the changes that survive both.

    Trim: of each model only the largest changes are kept, a share `density` of all its numbers. Elect: in each place
    the sign of the (weighted) sum of what is left wins. Merge: the (weighted) mean over the models with that sign
    there; places without any stay the base's.
    """

    def survey(self, blocks: Pass) -> None:
        self.thresholds = _thresholds(blocks, self.count, self.density)

    def merge(self, block: Block) -> Tensor:
        assert block.base is not None
        trimmed = [
            torch.where(_magnitude(change) >= threshold, change, 0.0)
            for change, threshold in zip(block.changes, self.thresholds, strict=True)
        ]
        elected = _weighted_sum(self.weights, trimmed).sign()
        agrees = [(change.sign() == elected) & (change != 0) for change in trimmed]
        total = _weighted_sum(self.weights, [torch.where(a, c, 0.0) for a, c in zip(agrees, trimmed, strict=True)])
        share = _weighted_sum(self.weights, [a.double() for a in agrees])
        return block.base + self.scale * torch.where(share > 0, total / share, 0.0)


class Dare(Method):
    """Drop and rescale: base + scale * sum of w (theta - base) m / density, each m being 1 with probability `density`.

    What is dropped follows from the seed, the model's place and the tensor's name alone.
    """

    def merge(self, block: Block) -> Tensor:
        assert block.base is not None
        kept = [torch.where(self._mask(i, block), change, 0.0) for i, change in enumerate(block.changes)]
        return block.base + self.scale / self.density * _weighted_sum(self.weights, kept)

    def _mask(self, index: int, block: Block) -> Tensor:
        seed = DEFAULTS["seed"] if self.options.seed is None else self.options.seed
        digest = hashlib.sha256(f"{seed} {index} {block.name} {block.start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(block.models[index].shape, generator=generator, dtype=torch.float64) < self.density


HALF = 1 << 16
"""How many values half of the bits of an fp32 number can have."""

NO_ARC = 1e-6
"""Sine of an angle below which the arc is the straight line, but for rounding; or, if the angle is near pi, any arc."""

IMPLEMENTED: dict[str, type[Method]] = {
    "linear": Linear,
    "ema": MovingAverage,
    "slerp": Slerp,
    "task-arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
}


def _weighted_sum(weights: list[float], tensors: list[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for weight, tensor in zip(weights, tensors, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def _angle(aa: float, bb: float, ab: float) -> float:
    """Between two vectors of these products, from 0 to pi; 0 if one of them is zero."""
    length = math.sqrt(aa) * math.sqrt(bb)
    return math.acos(max(-1.0, min(1.0, ab / length))) if length > 0 else 0.0


def _thresholds(blocks: Pass, count: int, density: float) -> list[float]:
    """For each model the magnitude of the change at which a share `density` of all its changes is as large or larger.

    Exact without keeping the changes: the bits of a positive fp32 number, read as an integer, order as the numbers do.
    One pass counts their upper halves, which finds that of the magnitude looked for; a second one the lower halves.
    """
    upper = torch.zeros(count, HALF, dtype=torch.int64)
    for block in blocks():
        for i, change in enumerate(block.changes):
            upper[i] += torch.bincount(_bits(change) >> 16, minlength=HALF)
    wanted = max(1, round(density * int(upper[0].sum())))
    found = [_descend(counts, wanted) for counts in upper]
    lower = torch.zeros(count, HALF, dtype=torch.int64)
    for block in blocks():
        for i, change in enumerate(block.changes):
            bits = _bits(change)
            lower[i] += torch.bincount(bits[bits >> 16 == found[i][0]] & (HALF - 1), minlength=HALF)
    whole = [high << 16 | _descend(counts, rest)[0] for (high, rest), counts in zip(found, lower, strict=True)]
    return torch.tensor(whole, dtype=torch.int32).view(torch.float32).tolist()


def _magnitude(change: Tensor) -> Tensor:
    return change.abs().float()


def _bits(change: Tensor) -> Tensor:
    """(n,) int32: the bits of the fp32 magnitudes."""
    return _magnitude(change).flatten().view(torch.int32)


def _descend(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The value of the `wanted`-th largest of what was counted, and the how-manyth of that value it is."""
    at_least = counts.flip(0).cumsum(0).flip(0)  # of that value or a larger one
    value = int((at_least >= wanted).nonzero()[-1])
    return value, wanted - int(at_least[value] - counts[value])
