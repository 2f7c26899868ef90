"""The geometry of a line chart: paths, ticks and a read-out, for the template to write down as inline SVG.

The drawing is a square of SIZE units that the page stretches to whatever width there is; strokes keep their width and
labels, which are HTML, their size. So one drawing serves a phone, a wide screen and paper, with no script.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt.reporting.text import (
    amount,
    decimal,
    duration,
    labels,
    linear_ticks,
    log_labels,
    log_ticks,
    printable,
    time_ticks,
)

SIZE = 10_000
X_INTERVALS, Y_INTERVALS = 5, 5
LOG_RATIO = 30.0  # a chart whose values spread further than this has a logarithmic axis
SMALLEST = 1e-100  # below it a value counts as zero
FEW_POINTS = 60  # so many are shown one by one
X_NAMES = {"step": "step", "tokens": "tokens", "time": "training time"}


@dataclass
class Line:
    """One curve."""

    label: str
    style: str
    """CSS classes: a colour (c1 to c8), and what else changes its look."""
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    """(x, lowest, highest) of what each point stands for."""
    dots: bool = False
    told: bool = True
    """Whether the read-out names it."""
    run: int | None = None
    """Which of several runs it belongs to, counted from 1."""


@dataclass
class Chart:
    """A chart as the template writes it down. Positions are shares of the drawing: 0 is left and bottom."""

    name: str
    """Its id on the page."""
    title: str
    unit: str
    x_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[dict[str, Any]]
    """class, run, d, and a text that tells a band, a line and dots apart."""
    marks: list[float]
    """Places of values that are not finite."""
    summary: str
    """For those who do not see it."""
    readout: dict[str, Any]
    legend: list[tuple[str, str]] = field(default_factory=list)
    """(style, label) of lines that need telling apart."""

    @property
    def label_width(self) -> int:
        """Characters of the widest label beside the vertical axis."""
        return max(len(label) for _, label in self.y_ticks)


def draw(
    name: str,
    title: str,
    lines: Iterable[Line],
    *,
    x: str = "step",
    unit: str = "",
    from_zero: bool = False,
    percent: bool = False,
    may_be_log: bool = True,
    marks: Sequence[float] = (),
    start: float = 0.0,
    legend: bool = False,
) -> Chart | None:
    """The chart of these lines; None if none of them has a point.

    x: step, tokens or time. start: where x begins. marks: places of values that are not finite.
    """
    lines = [line for line in (_from(line, start) for line in lines) if line.points]
    if not lines:
        return None
    values = [y for line in lines for _, y in line.points]
    values += [y for line in lines for _, low, high in line.band for y in (low, high)]
    low, high = min(values), max(values)
    logarithmic = may_be_log and low > SMALLEST and high / low > LOG_RATIO
    y_place, y_ticks = _vertical(low, high, logarithmic, from_zero, percent)
    stop = max([x for line in lines for x, _ in line.points] + list(marks))
    if stop <= start:
        stop = start + 1.0

    def x_place(value: float) -> float:
        return (value - start) / (stop - start)

    return Chart(
        name=name,
        title=title,
        unit=", ".join(filter(None, (unit, "logarithmic" if logarithmic else ""))),
        x_name=X_NAMES[x],
        x_ticks=[(x_place(tick), label) for tick, label in _horizontal(start, stop, x)],
        y_ticks=y_ticks,
        paths=[path for line in lines for path in _paths(line, x_place, y_place)],
        marks=[x_place(mark) for mark in marks if mark >= start],
        summary=_summary(title, lines, x, percent),
        readout=_readout(lines, x, percent, x_place, y_place),
        legend=[(line.style, line.label) for line in lines if line.told] if legend else [],
    )


def _from(line: Line, start: float) -> Line:
    if start <= 0:
        return line
    points = [point for point in line.points if point[0] >= start]
    return Line(line.label, line.style, points, [b for b in line.band if b[0] >= start], line.dots, line.told, line.run)


def _vertical(
    low: float, high: float, logarithmic: bool, from_zero: bool, percent: bool
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a value stands (0 is the bottom, 1 the top), and the ticks."""
    if logarithmic:
        bottom, top = math.log10(low), math.log10(high)
        margin = 0.04 * (top - bottom)
        bottom, top = bottom - margin, top + margin
        ticks = log_ticks(10**bottom, 10**top)
        names = log_labels(ticks)

        def place(value: float) -> float:
            return (math.log10(max(value, low)) - bottom) / (top - bottom)

        return place, [(place(tick), label) for tick, label in zip(ticks, names, strict=True)]
    if from_zero:
        room = 1.25 if low == high else 1.0  # a constant does not run along the edge
        low, high = min(low * room, 0.0), max(high * room, 0.0)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), SMALLEST):  # a constant, or a single value
        around = abs(high) / 2 or 1.0
        low, high = (0.0, 1.0) if from_zero else (low - around, high + around)
    ticks = linear_ticks(low, high, Y_INTERVALS)
    bottom, top = ticks[0], ticks[-1]
    names = [f"{label}%" for label in labels([100 * tick for tick in ticks])] if percent else labels(ticks)
    return (
        lambda value: (value - bottom) / (top - bottom),
        [((tick - bottom) / (top - bottom), label) for tick, label in zip(ticks, names, strict=True)],
    )


def _horizontal(start: float, stop: float, x: str) -> list[tuple[float, str]]:
    if x == "time":
        ticks, names = time_ticks(stop, X_INTERVALS)
    else:
        ticks = linear_ticks(start, stop, X_INTERVALS, inside=True)
        if x == "step" and stop - start >= 1:  # there is no half a step
            ticks = [tick for tick in ticks if tick == int(tick)]
        names = labels(ticks)
    return list(zip(ticks, names, strict=True))


def _paths(line: Line, x_place: Callable[[float], float], y_place: Callable[[float], float]) -> list[dict[str, Any]]:
    found = []

    def at(x: float, y: float) -> str:
        return f"{round(SIZE * x_place(x))} {round(SIZE * (1 - y_place(y)))}"

    if line.band:
        outline = [at(x, high) for x, _, high in line.band] + [at(x, low) for x, low, _ in reversed(line.band)]
        found.append({"class": f"band {line.style}", "run": line.run, "d": f"M{'L'.join(outline)}Z"})
    places = [at(x, y) for x, y in line.points]
    if len(places) > 1:
        found.append({"class": f"line {line.style}", "run": line.run, "d": f"M{'L'.join(places)}"})
    if len(places) == 1 or (line.dots and len(places) <= FEW_POINTS):  # a dot is a line of no length with a round cap
        dots = "".join(f"M{place}h0" for place in places)
        found.append({"class": f"dots {line.style}", "run": line.run, "d": dots})
    return found


def _readout(
    lines: Sequence[Line],
    x: str,
    percent: bool,
    x_place: Callable[[float], float],
    y_place: Callable[[float], float],
) -> dict[str, Any]:
    """What the script needs: for each line the places of its points and the words for their values."""
    return {
        "lines": [
            {
                "label": printable(line.label),
                "style": line.style,
                "run": line.run,
                "x": [_short(x_place(px)) for px, _ in line.points],
                "y": [_short(y_place(py)) for _, py in line.points],
                "at": [_x_text(px, x) for px, _ in line.points],
                "is": [_y_text(py, percent) for _, py in line.points],
            }
            for line in lines
            if line.told
        ]
    }


def _short(value: float) -> float:
    return round(value, 4)


def _x_text(value: float, x: str) -> str:
    if x == "time":
        return duration(value)
    return f"{value:,.0f} tokens" if x == "tokens" else f"step {value:,.0f}"


def _y_text(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.2%}"
    return decimal(value) if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 100_000 else amount(value)


def _summary(title: str, lines: Sequence[Line], x: str, percent: bool) -> str:
    said = [f"{title} by {X_NAMES[x]}."]
    for line in lines:
        if line.told:
            ys = [y for _, y in line.points]
            first, last, low, high = (_y_text(y, percent) for y in (ys[0], ys[-1], min(ys), max(ys)))
            at, to = _x_text(line.points[0][0], x), _x_text(line.points[-1][0], x)
            said.append(f"{line.label}: {first} at {at}, {last} at {to}; lowest {low}, highest {high}.")
    return " ".join(said)
