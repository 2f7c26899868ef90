"""Numbers as people read them: amounts, durations, dates, and the labels of an axis."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

# fmt: off
CLOCK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800,
               3600, 7200, 3 * 3600, 6 * 3600, 12 * 3600, 86400)  # seconds between the ticks of an axis of time
# fmt: on
CLOCK_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
UNITS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
# What HTML cannot hold or what would reorder the page around it: control characters, lone surrogates, bidi overrides.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def printable(text: str) -> str:
    """The text with a replacement character for everything that a page cannot show."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def amount(value: float, unit: str = "") -> str:
    """Three digits and a unit: 950, 28.1k, 10.7M; with a unit of its own, 3.2 PFLOP."""
    index = 0
    while abs(value) >= 999.5 and index < len(UNITS) - 1:
        value, index = value / 1000, index + 1
    digits = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    return f"{digits} {UNITS[index]}{unit}" if unit else f"{digits}{UNITS[index]}"


def duration(seconds: float) -> str:
    """5.2 s, 2 min 03 s, 1 h 02 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def decimal(value: float, digits: int = 4) -> str:
    """A number with four digits behind the point, or a power of ten where these say nothing; NaN and ∞ as such."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.{digits}f}"


def nice_step(span: float, intervals: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides `span` into at most so many intervals."""
    raw = span / intervals
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def linear_ticks(low: float, high: float, intervals: int, inside: bool = False) -> list[float]:
    """Round numbers around [low, high], the outer two beyond it; all of them within it if `inside`."""
    step = nice_step(high - low, intervals)
    slack = 1e-9
    first = math.ceil(low / step - slack) if inside else math.floor(low / step + slack)
    last = math.floor(high / step + slack) if inside else math.ceil(high / step - slack)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], every so many of them; also 2 and 5 times these where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 6)
    powers = [10.0**power for power in range(first, last + 1, every)]
    few = sum(low <= power <= high for power in powers) <= 2
    found = [factor * power for power in powers for factor in ((1, 2, 5) if few else (1,))]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def time_ticks(seconds: float, intervals: int) -> tuple[list[float], list[str]]:
    """Ticks from 0 to at most `seconds`, round as clocks are, with their labels."""
    fitting = [step for step in CLOCK_STEPS if seconds / step <= intervals]
    step = float(fitting[0]) if fitting else 86400 * nice_step(seconds / 86400, intervals)
    if step == 1:
        step = min(step, nice_step(seconds, intervals))
    size, unit = next((size, unit) for size, unit in CLOCK_UNITS if step >= size or size == 1)
    ticks = [i * step for i in range(int(seconds / step + 1e-9) + 1)]
    return ticks, [label if label == "0" else f"{label} {unit}" for label in labels([tick / size for tick in ticks])]


def labels(ticks: Sequence[float]) -> list[str]:
    """What stands beside the ticks of an axis: as many digits as tell them apart, thousands as k, M, G, ..."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    gaps = [b - a for a, b in pairwise(ticks)] or [largest or 1.0]
    gap = min(gaps)
    if 0 < largest < 0.01:
        return ["0" if tick == 0 else _scientific(tick) for tick in ticks]
    index = min(len(UNITS) - 1, int(math.log10(largest) / 3)) if largest >= 10_000 else 0
    scale = 1000.0**index
    decimals = max(0, -math.floor(math.log10(gap / scale) + 1e-9))
    return ["0" if tick == 0 else f"{tick / scale:,.{decimals}f}{UNITS[index]}".replace("-", "−") for tick in ticks]


def log_labels(ticks: Sequence[float]) -> list[str]:
    """Each in its own unit: 0.01, 0.1, 1, 10, 1k."""
    return [_scientific(tick) if tick < 1e-3 else amount(tick) for tick in ticks]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
