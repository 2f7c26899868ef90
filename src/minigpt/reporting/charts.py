"""Which charts a report has: the loss in four views, then everything else that was measured, one chart each.

With one run the colours tell training from validation; with several each run has a colour of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minigpt.reporting.chart import Chart, Line, draw
from minigpt.reporting.runs import Run
from minigpt.reporting.series import Bin, Series, smooth

COLOURS = 8
CLOSE_UP = 0.3  # the close-up leaves out this share of the run, in which the loss falls most
MAX_OTHERS = 24  # charts of metrics that have no place of their own
MAX_LINES = 12  # lines in one chart of such metrics

Place = Callable[[Bin], float]
PLACES: dict[str, Place] = {
    "step": lambda point: float(point.step),
    "tokens": lambda point: point.tokens,
    "time": lambda point: point.time,
}


@dataclass(frozen=True)
class View:
    """One of the views of the loss that the reader chooses from."""

    key: str
    label: str
    chart: Chart


@dataclass(frozen=True)
class Kind:
    """A chart of one metric (or two that belong together)."""

    title: str
    keys: tuple[str, ...]
    labels: tuple[str, ...] = ("",)
    unit: str = ""
    from_zero: bool = True
    percent: bool = False
    may_be_log: bool = False
    """Whether values that spread far get a logarithmic axis."""
    scale: float = 1.0


KINDS = (
    Kind("Learning rate", ("train/lr",)),
    Kind("Gradient norm", ("train/grad_norm",), unit="before clipping", may_be_log=True),
    Kind("Bits per byte", ("val/bpb",), unit="validation", from_zero=False),
    Kind("Throughput", ("perf/tokens_per_second",), unit="tokens a second"),
    Kind("Model FLOPs utilisation", ("perf/mfu",), percent=True),
    Kind("Step time", ("perf/step_ms", "perf/step_ms_p90"), ("median", "90th percentile"), unit="ms", may_be_log=True),
    Kind("Wait for data", ("perf/data_wait_ms",), unit="ms a step", may_be_log=True),
    Kind("Peak memory", ("memory/peak_mb",), unit="bytes", scale=1e6),
    Kind(
        "Balance of experts",
        ("train/moe_balance_loss", "train/moe_max_load"),
        ("balance loss", "largest load"),
        unit="1: all equally busy",
        from_zero=False,
    ),
    Kind("Router entropy", ("train/moe_router_entropy",), unit="nats"),
    Kind("Router z-loss", ("train/moe_z_loss",)),
    Kind("Loss scale", ("train/loss_scale",), unit="fp16", may_be_log=True),
    Kind("Skipped steps", ("train/skipped",), unit="in all"),
    Kind("Restorations", ("train/restorations",), unit="in all"),
)
ONLY_IF_ANY = ("train/skipped", "train/restorations")  # a chart of nothing but zeros says nothing
BY_SOURCE = {
    ("val", "loss"): "Validation loss by source",
    ("data", "tokens"): "Tokens by source",
    ("data", "epoch"): "Epochs by source",
}
"""(first, last part of a key) -> the chart in which the sources of a mixture are compared."""
OWN_PLACE = {"train/loss", "val/loss"} | {key for kind in KINDS for key in kind.keys}


def colour(index: int) -> str:
    """CSS classes of the run (or line) number `index` from 0: a colour, and a dash pattern once they are used up."""
    return f"c{index % COLOURS + 1}" + (f" dash{(index // COLOURS - 1) % 3}" if index >= COLOURS else "")


def loss_views(runs: Sequence[Run]) -> list[View]:
    """The loss by step, tokens and time, and the later part of it close up."""
    charts = [View(x, f"by {x}", chart) for x in PLACES if (chart := _loss(runs, x)) is not None]
    begin = CLOSE_UP * max((run.step for run in runs), default=0)
    enough = any(
        sum(point.step >= begin for point in run.series[key].points()) > 1
        for run in runs
        for key in ("train/loss", "val/loss")
        if key in run.series
    )
    if enough and begin >= 1 and (close := _loss(runs, "step", begin)) is not None:
        charts.append(View("close-up", "close-up", close))
    return charts


def _loss(runs: Sequence[Run], x: str, start: float = 0.0) -> Chart | None:
    place, lines = PLACES[x], []
    marks: list[float] = []
    for index, run in enumerate(runs):
        lines += _one_run(run, place) if len(runs) == 1 else _one_of_several(run, index, place)
        if "train/loss" in run.series:
            at = ("step", "tokens", "time").index(x)
            marks += [found[at] for found in run.series["train/loss"].not_finite]
    name = f"loss-{'close-up' if start else x}"
    return draw(name, "Loss", lines, x=x, unit="nats a token", marks=marks, start=start, legend=len(runs) == 1)


def _one_run(run: Run, place: Place) -> list[Line]:
    lines = []
    if (series := run.series.get("train/loss")) is not None:
        points = series.points()
        raw = [(place(point), point.mean) for point in points]
        smoothed = [(place(point), value) for point, value in zip(points, smooth(points), strict=True)]
        lines.append(Line("training, each batch", "c1 raw", raw, _band(points, place)))
        lines.append(Line("training, smoothed", "c1", smoothed))
    return lines + _validation(run, "validation", "c2 main", place, None)


def _one_of_several(run: Run, index: int, place: Place) -> list[Line]:
    style = colour(index)
    lines = _validation(run, f"{run.name}, validation", f"{style} main", place, index + 1)
    if (series := run.series.get("train/loss")) is not None:
        points = series.points()
        smoothed = [(place(point), value) for point, value in zip(points, smooth(points), strict=True)]
        lines.insert(0, Line(f"{run.name}, training", f"{style} {'thin' if lines else ''}", smoothed, run=index + 1))
    return lines


def _validation(run: Run, label: str, style: str, place: Place, number: int | None) -> list[Line]:
    series = run.series.get("val/loss")
    if series is None:
        return []
    return [Line(label, style, [(place(point), point.mean) for point in series.points()], dots=True, run=number)]


def _band(points: Sequence[Bin], place: Place) -> list[tuple[float, float, float]]:
    if all(point.count == 1 for point in points):
        return []
    return [(place(point), point.low, point.high) for point in points]


def other_charts(runs: Sequence[Run]) -> tuple[list[Chart], list[Chart], int]:
    """(charts of the metrics that every run has, charts of further ones, how many of these there was no room for)."""
    known = [chart for kind in KINDS if (chart := _of_kind(runs, kind)) is not None]
    groups = enumerate(_groups(runs))
    further = [chart for i, (title, keys) in groups if (chart := _of_group(runs, i, title, keys)) is not None]
    return known, further[:MAX_OTHERS], max(0, len(further) - MAX_OTHERS)


def _of_kind(runs: Sequence[Run], kind: Kind) -> Chart | None:
    if kind.keys[0] in ONLY_IF_ANY and not any(_any(run.series.get(kind.keys[0])) for run in runs):
        return None
    keys = kind.keys if len(runs) == 1 else kind.keys[:1]
    lines, marks = [], []
    for index, run in enumerate(runs):
        for number, key in enumerate(keys):
            if (series := run.series.get(key)) is None:
                continue
            points = series.points()
            place = PLACES["step"]
            label = run.name if len(runs) > 1 else kind.labels[number] or kind.title
            style = colour(index + number)
            values = [(place(point), point.mean * kind.scale) for point in points]
            band = [] if len(runs) > 1 or number else _band(points, place)
            scaled = [(x, low * kind.scale, high * kind.scale) for x, low, high in band]
            dots = key.startswith("val/")
            lines.append(Line(label, style, values, scaled, dots, run=index + 1 if len(runs) > 1 else None))
            marks += [float(step) for step, _, _ in series.not_finite]
    name = kind.keys[0].replace("/", "-").replace("_", "-")
    return draw(
        name,
        kind.title,
        lines,
        unit=kind.unit,
        from_zero=kind.from_zero,
        percent=kind.percent,
        may_be_log=kind.may_be_log,
        marks=marks,
        legend=len(runs) == 1 and len(lines) > 1,
    )


def _any(series: Series | None) -> bool:
    return series is not None and any(point.high for point in series.points())


def _groups(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Metrics without a place of their own: of one run those of a family together, of several one by one."""
    keys = list(dict.fromkeys(key for run in runs for key in run.series if key not in OWN_PLACE))
    if len(runs) > 1:  # a metric of one run alone compares nothing
        return [(key, [key]) for key in keys if sum(key in run.series for run in runs) > 1]
    families: dict[str, list[str]] = {}
    for key in keys:
        family = key.rpartition("/")[0] if key.count("/") > 1 else key
        families.setdefault(_source_chart(key) or family, []).append(key)
    named = BY_SOURCE.values()
    return [(keys[0] if len(keys) == 1 and family not in named else family, keys) for family, keys in families.items()]


def _source_chart(key: str) -> str | None:
    """The chart of a metric that each source of a mixture has."""
    parts = key.split("/")
    return BY_SOURCE.get((parts[0], parts[2])) if len(parts) == 3 else None


def _of_group(runs: Sequence[Run], index: int, title: str, keys: Sequence[str]) -> Chart | None:
    lines = []
    for number, run in enumerate(runs):
        for i, key in enumerate(keys[:MAX_LINES]):
            if key in run.series:
                points = [(float(point.step), point.mean) for point in run.series[key].points()]
                own = key.split("/")[1] if _source_chart(key) else key.rpartition("/")[2]
                label = run.name if len(runs) > 1 else own
                number_of_run = number + 1 if len(runs) > 1 else None
                lines.append(Line(label, colour(number + i), points, dots=True, run=number_of_run))
    left = len(keys) - MAX_LINES
    unit = f"the first {MAX_LINES} of {len(keys)}" if left > 0 else ""
    legend = len(runs) == 1 and len(keys) > 1
    return draw(f"metric-{index}", title, lines, unit=unit, may_be_log=_source_chart(keys[0]) is None, legend=legend)
