"""The curve of a run in a few characters: bounded memory however long the run is, and bars of eighths of a line."""

import itertools
import math
from collections.abc import Sequence

MOST = 512  # points kept: more than any terminal has columns
EIGHTHS = " ▁▂▃▄▅▆▇█"
CUT_FROM, CUT_SHARE = 20, 0.2


class Curve:
    """Means of equally many values each; when they become too many, neighbours are merged."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._each = 1  # values per mean
        self._sum, self._count = 0.0, 0  # of the mean that is not complete

    def add(self, value: float) -> None:
        """The next value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == MOST:
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._each *= 2

    def columns(self, width: int) -> list[float]:
        """At most `width` values, from the first to the last: means of equal stretches."""
        means = self._means + ([self._sum / self._count] if self._count else [])
        count = min(width, len(means))
        edges = [i * len(means) // count for i in range(count + 1)] if count > 0 else []
        return [math.fsum(means[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The range to draw: from the lowest value to the highest.

    Of many values the highest fifth is cut off. A loss falls so fast at first that what follows would be a flat line.
    """
    ordered = sorted(values)
    cut = int(CUT_SHARE * len(ordered)) if len(ordered) >= CUT_FROM else 0
    return ordered[0], ordered[-1 - cut]


def chart(values: Sequence[float], height: int) -> list[str]:
    """`height` lines of one character per value, the top line first. The lowest value is one eighth of a line high."""
    if not values:
        return [""] * height
    low, high = limits(values)
    steps = 8 * height - 1
    tall = [1 + round(steps * min(1.0, (v - low) / (high - low))) if high > low else 1 for v in values]
    return ["".join(EIGHTHS[max(0, min(8, t - 8 * row))] for t in tall) for row in reversed(range(height))]
