"""What the report says, section by section, for the page that `template/report.html.jinja` describes."""

import base64
import hashlib
import time
from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minigpt.reporting import chart, charts, sessions, settings
from minigpt.reporting.figures import Figure, figures
from minigpt.reporting.parameters import Part, parts
from minigpt.reporting.runs import Run
from minigpt.reporting.text import amount, decimal, printable

EVALUATIONS = 60  # rows of the table of evaluations
NAME = "minigpt"


def render(runs: Sequence[Run], remarks: Sequence[str] = ()) -> str:
    """The whole page for these runs; `remarks` are said first."""
    several = len(runs) > 1
    found = [parts(run) for run in runs]
    headline = [figures(run, own) for run, own in zip(runs, found, strict=True)]
    known, further, left = charts.other_charts(runs)
    script = asset("report.js")
    context = {
        "title": runs[0].name if not several else f"{len(runs)} runs",
        "status": _status(runs[0])
        if not several
        else "Compared in the same charts, with what differs in their settings.",
        "generator": generator(),
        "footer": _footer(runs),
        "style": Markup(asset("report.css")),
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "size": chart.SIZE,
        "runs": runs,
        "several": several,
        "notes": [*remarks, *_notes(runs)],
        "figures": headline[0],
        "results": _results(runs, headline),
        "views": charts.loss_views(runs),
        "evaluations": _evaluations(runs),
        "charts": known,
        "further": further,
        "further_left": left,
        "samples": _samples(runs),
        "samples_note": _samples_note(runs),
        "diff": None if several or not runs[0].config else settings.differences(runs[0]),
        "between": settings.between(runs),
        "parts": [] if several else _parts(found[0]),
        "parts_total": f"{sum(part.parameters for part in found[0]):,}",
        "tied": runs[0].setting("model.tie_embeddings") is True,
        "sessions": [{"run": run.name, "list": sessions.described(run)} for run in runs if run.sessions],
        "incidents": [] if several else sessions.incidents(runs[0]),
    }
    context["sections"] = _sections(context)
    return environment().get_template("report.html.jinja").render(context)


def generator() -> str:
    """The program and its version, as the page's head names it."""
    try:
        return f"{NAME} {version('minigpt')}"
    except PackageNotFoundError:  # run from a source tree that was not installed
        return NAME


@cache
def environment() -> Environment:
    """The templates of this package; every value is escaped, and what a page cannot show is replaced."""

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else printable(str(value))

    environment = Environment(
        loader=PackageLoader("minigpt.reporting", "template"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def asset(name: str) -> str:
    """A style or script of a page."""
    return (resources.files("minigpt.reporting") / "template" / name).read_text("utf-8")


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that there are."""
    names = {"views": ("loss", "Loss"), "charts": ("training", "Training"), "further": ("further", "Further metrics"),
             "samples": ("samples", "Samples"), "runs": ("settings", "Settings"), "parts": ("model", "Model"),
             "sessions": ("sessions", "Sessions"), "incidents": ("incidents", "Skipped steps")}  # fmt: skip
    first = [("results", "Results")] if context["several"] else []
    return first + [name for key, name in names.items() if context[key]]


def _status(run: Run) -> str:
    of = f" of {run.max_steps:,}" if run.max_steps else ""
    how = "Finished" if run.finished else f"Not finished: at step {run.step:,}{of}"
    begun = str(run.sessions[0].get("started", "")) if run.sessions else ""
    said = [
        how,
        f"from the preset {run.preset}" if run.preset else "",
        f"begun {sessions.when(begun)}" if begun else "",
    ]
    return ", ".join(filter(None, said)) + "."


def _footer(runs: Sequence[Run]) -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"Written by {generator()} on {now} from {sum(run.lines for run in runs):,} lines of metrics."


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    for run in runs:
        said = list(run.notes)
        if not run.lines:
            said.append("No metrics have been logged yet.")
        bad = run.series.get("train/loss")
        if bad is not None and bad.not_finite_count:
            steps = ", ".join(f"{step:,}" for step, _, _ in bad.not_finite[:5])
            more = ", …" if bad.not_finite_count > 5 else ""
            said.append(f"The training loss was not finite {bad.not_finite_count:,} times (steps {steps}{more}).")
        notes += [f"{run.name}: {note}" for note in said] if len(runs) > 1 else said
    return notes


def _results(runs: Sequence[Run], headline: Sequence[Sequence[Figure]]) -> dict[str, Any]:
    """The table of the runs: a row each, a column for every figure that any of them has."""
    wanted = list(dict.fromkeys(figure.label for row in headline for figure in row if figure.value != "0"))
    table = [{figure.label: figure for figure in row} for row in headline]
    best = {label: min((f.number for row in table if (f := row.get(label)) and f.number is not None), default=None)
            for label in wanted}  # fmt: skip

    def cell(row: dict[str, Figure], label: str) -> dict[str, Any]:
        figure = row.get(label)
        number = None if figure is None else figure.number
        return {"value": settings.ABSENT if figure is None else figure.value,
                "best": number is not None and number == best[label]}  # fmt: skip

    rows = [
        {"name": run.name, "style": charts.colour(i) + " main", "cells": [cell(row, label) for label in wanted]}
        for i, (run, row) in enumerate(zip(runs, table, strict=True))
    ]
    return {"labels": wanted, "rows": rows}


def _evaluations(runs: Sequence[Run]) -> dict[str, Any]:
    """The evaluations as numbers; of very many an even choice."""
    keys = ("val/loss", "val/bpb") if len(runs) == 1 else ("val/loss",)
    names = ("validation loss", "bits per byte")
    columns: list[tuple[str, dict[int, float]]] = []
    for run in runs:
        for key, name in zip(keys, names, strict=False):
            if key in run.series:
                values = {point.step: point.mean for point in run.series[key].points()}
                columns.append((name if len(runs) == 1 else run.name, values))
    steps = sorted({step for _, values in columns for step in values})
    every = -(-len(steps) // EVALUATIONS) or 1
    chosen = steps[::-every][::-1]  # the last one is always there
    rows = [(f"{step:,}", [decimal(v[step]) if step in v else settings.ABSENT for _, v in columns]) for step in chosen]
    return {"labels": [label for label, _ in columns], "rows": rows}


def _samples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The samples of one run, or the last one of each of several."""
    shown = []
    for index, run in enumerate(runs):
        prompt = run.setting("callbacks.sample.prompt")
        losses = run.series.get("val/loss")
        at = {point.step: point.mean for point in losses.points()} if losses is not None else {}
        for sample in run.samples if len(runs) == 1 else run.samples[-1:]:
            begins = isinstance(prompt, str) and bool(prompt) and sample.text.startswith(prompt)
            shown.append({
                "run": run.name, "style": charts.colour(index) + " main", "step": f"{sample.step:,}",
                "loss": decimal(at[sample.step]) if sample.step in at else "",
                "prompt": prompt if begins else "", "text": sample.text[len(prompt) :] if begins else sample.text,
            })  # fmt: skip
    return shown


def _samples_note(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return "The last sample of each run."
    run = runs[0]
    said = [] if run.sample_count <= len(run.samples) else [f"{len(run.samples)} of {run.sample_count:,} samples."]
    temperature = run.setting("callbacks.sample.temperature")
    if isinstance(temperature, int | float):
        said.append(f"Drawn at temperature {temperature:g}.")
    return " ".join(said)


def _parts(found: Sequence[Part]) -> list[dict[str, Any]]:
    total = sum(part.parameters for part in found)
    largest = max((part.parameters for part in found), default=1)
    return [
        {
            "name": part.name,
            "shape": " × ".join(f"{size:,}" for size in part.shape) or "scalar",
            "copies": part.copies,
            "parameters": f"{part.parameters:,}" if part.parameters < 1e9 else amount(part.parameters),
            "share": f"{part.parameters / total:.1%}" if total else settings.ABSENT,
            "width": round(100 * part.parameters / largest, 1) if largest else 0,
        }
        for part in found
    ]
