"""One metric over a run, thinned while it is read: a million lines need no more memory than a thousand.

Values are gathered in bins of equal numbers of steps. There are as many bins as there are values until they become too
many; then every two neighbours are merged into one of twice the width. A bin keeps the mean, the lowest and the highest
of its values, so that no spike is lost however often it is merged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Standard deviation of the smoothing window: a share of the run, but less at its beginning, where the loss falls fast.
SMOOTHING = 0.012
OF_THE_STEP = 0.08
FEWEST = 1.5  # points at least
LARGEST = 1e100  # what is beyond it counts as infinite: no axis can hold it beside anything else
MARKED = 200  # non-finite values whose place is kept


@dataclass(slots=True)
class Bin:
    """Neighbouring values as one point; its place is that of the last of them."""

    step: int
    tokens: float
    time: float
    """Seconds of training."""
    total: float
    count: int
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return self.total / self.count

    def take(self, step: int, tokens: float, time: float, total: float, count: int, low: float, high: float) -> None:
        """Take in later values."""
        if step >= self.step:
            self.step, self.tokens, self.time = step, tokens, time
        self.total += total
        self.count += count
        if low < self.low:
            self.low = low
        if high > self.high:
            self.high = high


class Series:
    """The values of one metric, as at most `2 * limit` bins."""

    def __init__(self, limit: int) -> None:
        self.limit, self.width = limit, 1
        self.last: tuple[int, float] | None = None
        """Step and value of the last one, which may be NaN or infinite."""
        self.lowest: tuple[int, float] | None = None
        self.not_finite: list[tuple[int, float, float]] = []
        """Step, tokens and seconds of the first values that are not finite."""
        self.not_finite_count = 0
        self._bins: dict[int, Bin] = {}

    def add(self, step: int, tokens: float, time: float, value: float) -> None:
        """Take the value of one step."""
        self.last = (step, value)
        if not abs(value) < LARGEST:  # NaN is not less than anything
            self.not_finite_count += 1
            if len(self.not_finite) < MARKED:
                self.not_finite.append((step, tokens, time))
            return
        if self.lowest is None or value < self.lowest[1]:
            self.lowest = (step, value)
        self._put(step, tokens, time, value, 1, value, value)
        while len(self._bins) > 2 * self.limit:
            self._widen()

    def points(self) -> list[Bin]:
        """The bins in the order of their steps."""
        return [self._bins[index] for index in sorted(self._bins)]

    def median(self) -> float | None:
        """Median of the values, from the means of the bins."""
        ordered = sorted((one.mean, one.count) for one in self._bins.values())
        half = sum(count for _, count in ordered) / 2
        passed = 0
        for i, (mean, count) in enumerate(ordered):
            passed += count
            if passed > half:
                return mean
            if passed == half:
                return (mean + ordered[i + 1][0]) / 2
        return None

    def _put(self, step: int, tokens: float, time: float, total: float, count: int, low: float, high: float) -> None:
        index = step // self.width
        if (old := self._bins.get(index)) is not None:
            old.take(step, tokens, time, total, count, low, high)
        else:
            self._bins[index] = Bin(step, tokens, time, total, count, low, high)

    def _widen(self) -> None:
        bins = self.points()
        self.width *= 2
        self._bins = {}
        for one in bins:
            self._put(one.step, one.tokens, one.time, one.total, one.count, one.low, one.high)


def smooth(points: Sequence[Bin]) -> list[float]:
    """One smoothed value a point: the height there of the straight line that fits the points around it best.

    Local linear regression with Gaussian weights (Cleveland 1979). It looks both ways, so it does not lag behind, and
    unlike a moving average it does not flatten the ends, where the loss falls fastest.
    """
    if len(points) < 3:
        return [point.mean for point in points]
    start, span = points[0].step, points[-1].step - points[0].step
    smoothed = []
    first = 0  # the window's first point
    for point in points:
        width = max(FEWEST * span / (len(points) - 1), min(SMOOTHING * span, OF_THE_STEP * (point.step - start)))
        while point.step - points[first].step > 3 * width:
            first += 1
        s0 = s1 = s2 = t0 = t1 = 0.0  # sums of weight * distance^k and of weight * distance^k * value
        index = first
        while index < len(points) and (x := (points[index].step - point.step) / width) <= 3:
            weight, y = points[index].count * math.exp(-x * x / 2), points[index].mean
            s0, s1, s2, t0, t1 = s0 + weight, s1 + weight * x, s2 + weight * x * x, t0 + weight * y, t1 + weight * x * y
            index += 1
        spread = s0 * s2 - s1 * s1
        smoothed.append((s2 * t0 - s1 * t1) / spread if spread > 1e-9 * s0 * s0 else t0 / s0)
    return smoothed
