"""The page about the data of a run: what `minigpt data show` found, for `template/data.html.jinja` to write down."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from minigpt.reporting.chart import SIZE
from minigpt.reporting.figures import Figure
from minigpt.reporting.page import asset, environment, generator
from minigpt.reporting.settings import ABSENT
from minigpt.reporting.text import amount, labels, linear_ticks, printable

COLOURS = 8  # classes c1 to c8 of the style
DOCUMENT_COLOURS = 4  # of these for neighbouring documents
MAX_TOKENS = 4096  # of a row; so a page stays small enough to be looked at
X_LABELS = 7
Y_INTERVALS = 3


@dataclass(frozen=True)
class Bars:
    """A chart of bars, those of several sources one upon the other. Positions as in chart.Chart."""

    title: str
    x_name: str
    bars: list[tuple[str, str, str]]
    """(style, path, what it says)."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    mark: float | None
    summary: str

    @property
    def label_width(self) -> int:
        """Characters of the widest label beside the vertical axis."""
        return max(len(label) for _, label in self.y_ticks)


def render_data(found: dict[str, Any], title: str) -> str:
    """The whole page; `title` says whose data it is."""
    names = [source["name"] for source in found["sources"]]
    context = {
        "title": title,
        "status": _status(found),
        "generator": generator(),
        "footer": f"Written by {generator()} on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}.",
        "style": Markup(asset("report.css") + asset("data.css")),
        "size": SIZE,
        "figures": _figures(found),
        "sources": _sources(found),
        "has_run": any(source.get("run") for source in found["sources"]),
        "has_validation": found["splits"]["val"] is not None,
        "packed": found["packing"]["kind"] == "documents",
        "charts": _length_charts(found),
        "lengths": _length_rows(found),
        "legend": [(_colour(number), name) for number, name in enumerate(names)] if len(names) > 1 else [],
        "stages": _stages(found),
        "mixture": _mixture_chart(found),
        "exact": ", then ".join(f"{stage['block_rows']:,}" for stage in found["mixture"]),
        "rows_note": _rows_note(found),
        "windows": [_window(window, found["packing"]["document_mask"]) for window in found["windows"]],
    }
    return environment().get_template("data.html.jinja").render(context)


def _colour(number: int) -> str:
    return f"c{number % COLOURS + 1}"


def _status(found: dict[str, Any]) -> str:
    places = [place for source in found["sources"] for place in source["where"]]
    where = places[0] if len(places) == 1 else f"{len(places)} sources"
    return f"{where}, tokenized while training" if found["streaming"] else where


def _figures(found: dict[str, Any]) -> list[Figure]:
    """The numbers on top of the page."""
    train, val, packing = found["splits"]["train"], found["splits"]["val"], found["packing"]
    shown = []
    if train is not None:
        shown += [
            Figure("Training tokens", amount(train["tokens"]), _exact(train["tokens"])),
            Figure("Documents", amount(train["documents"]), _exact(train["documents"])),
            Figure("Bytes a token", f"{train['bytes_per_token']:.2f}", _bytes(train)),
        ]
    if val is not None:
        shown.append(Figure("Validation tokens", amount(val["tokens"]), f"{val['bytes_per_token']:.2f} bytes a token"))
    shown.append(Figure("Vocabulary", f"{found['tokenizer']['vocab_size']:,}", "ids of the tokenizer"))
    if packing["rows_per_epoch"]:
        context = f"of {found['context_length']:,} tokens, all the text once"
        shown.append(Figure("Rows", amount(packing["rows_per_epoch"]), context))
    if packing["kind"] == "documents":
        shown.append(Figure("Padding", f"{100 * packing['wasted']:.2f}%", "of the positions of an epoch"))
    if found["steps"] is not None:
        step = "a step" if found["rows"] == found["steps"] * found["batch_rows"] else "in the first step"
        rows = f"{found['rows']:,} rows, {found['batch_rows']:,} {step}"
        shown.append(Figure("Run", f"{found['steps']:,} steps", rows))
    return shown


def _exact(count: int) -> str:
    """All the digits, where `amount` leaves some out."""
    return f"{count:,}" if count >= 1000 else ""


def _bytes(part: dict[str, Any]) -> str:
    return "counted at the beginning" if part["bytes"] is None else f"{part['bytes']:,} bytes in all"


def _sources(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for number, source in enumerate(found["sources"]):
        train, val, run = source["train"], source["val"], source.get("run")
        rows.append({
            "style": _colour(number),
            "name": source["name"],
            "where": source["where"],
            "counts": [ABSENT] * 4 if train is None else _counts(train),
            "validation": ABSENT if val is None else f"{val['tokens']:,}",
            "run": [ABSENT] * 2 if run is None else [f"{run['rows']:,}", f"{run['epochs']:.2f}"],
            "empty": f"{100 * source['wasted']:.2f}%" if source.get("wasted") is not None else ABSENT,
        })  # fmt: skip
    if all(source["val"] is None for source in found["sources"]):
        for part in found["validation"]:
            rows.append({
                "style": "", "name": part["name"], "where": ["only to validate on"], "counts": _counts(part),
                "validation": f"{part['tokens']:,}", "run": [ABSENT] * 2, "empty": ABSENT,
            })  # fmt: skip
    return rows


def _counts(part: dict[str, Any]) -> list[str]:
    known = part["bytes"] is not None
    ratio = f"{part['bytes_per_token']:.2f}"
    return [
        f"{part['documents']:,}",
        f"{part['tokens']:,}",
        f"{part['bytes']:,}" if known else ABSENT,
        ratio if known else f"about {ratio}",
    ]


# --- lengths of documents


def _length_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    sources = found["lengths"]["sources"] if found["lengths"] is not None else []
    return [
        {
            "style": _colour(number),
            "name": source["name"],
            "cells": [
                f"{source['shortest']:,}",
                f"{source['median']:,.0f}",
                f"{source['mean']:,.0f}",
                f"{source['longest']:,}",
                f"{source['longer_than_context']:,} of {sum(source['documents']):,}",
            ],
        }
        for number, source in enumerate(sources)
    ]


def _length_charts(found: dict[str, Any]) -> list[Bars]:
    """Documents by their length, and tokens by the length of their document; none for a single document."""
    if found["lengths"] is None or sum(sum(s["documents"]) for s in found["lengths"]["sources"]) < 2:
        return []
    return [
        _bars("Documents", "documents", found["lengths"], "documents", found["context_length"]),
        _bars("Tokens, by the length of their document", "tokens", found["lengths"], "tokens", found["context_length"]),
    ]


def _bars(title: str, unit: str, lengths: dict[str, Any], key: str, context: int) -> Bars:
    edges, sources = lengths["edges"], lengths["sources"]
    bins = len(edges) - 1
    totals = [sum(source[key][at] for source in sources) for at in range(bins)]
    ticks = linear_ticks(0, max(totals), Y_INTERVALS)
    bars = []
    below = [0] * bins
    for number, source in enumerate(sources):
        for at, count in enumerate(source[key]):
            if count:
                low, high = below[at] / ticks[-1], (below[at] + count) / ticks[-1]
                said = f"{source['name']}: {count:,} {unit}, {edges[at]:,} to {edges[at + 1] - 1:,} tokens long"
                bars.append((_colour(number), _box(at / bins, low, (at + 1) / bins, high, gap=0.06 / bins), said))
                below[at] += count
    most = max(range(bins), key=totals.__getitem__)
    summary = f"{title} by length, in tokens: from {edges[0]:,} to {edges[-1] - 1:,}, most between {edges[most]:,} and "
    return Bars(
        title=title,
        x_name="length in tokens",
        bars=bars,
        x_ticks=_edge_ticks(edges),
        y_ticks=[(tick / ticks[-1], label) for tick, label in zip(ticks, labels(ticks), strict=True)],
        mark=_place(context, edges),
        summary=summary + f"{edges[most + 1] - 1:,}.",
    )


def _box(left: float, bottom: float, right: float, top: float, gap: float = 0.0) -> str:
    """An SVG path around a box given by shares of the drawing, `gap` narrower on both sides."""
    x0, x1 = round(SIZE * (left + gap)), round(SIZE * (right - gap))
    y0, y1 = round(SIZE * (1 - bottom)), round(SIZE * (1 - top))
    return f"M{x0} {y0}V{y1}H{x1}V{y0}Z"


def _edge_ticks(edges: Sequence[int]) -> list[tuple[float, str]]:
    """Some of the edges, powers of two where there are enough of them."""
    powers = [at for at, edge in enumerate(edges) if edge & (edge - 1) == 0]
    wanted = powers if len(powers) > 2 else list(range(len(edges)))
    every = -(-len(wanted) // X_LABELS)
    return [(at / (len(edges) - 1), f"{edges[at]:,}" if edges[at] < 10_000 else amount(edges[at]))
            for at in wanted[::every]]  # fmt: skip


def _place(value: int, edges: Sequence[int]) -> float | None:
    """Where a length stands; None outside the chart."""
    for at, (low, high) in enumerate(pairwise(edges)):
        if low <= value < high:
            return (at + (value - low) / (high - low)) / (len(edges) - 1)
    return None


# --- the mixture


def _spans(found: dict[str, Any]) -> list[tuple[int, int | None]]:
    """First and last step of each stage."""
    first = [stage["from_step"] for stage in found["mixture"]]
    return list(zip(first, [*(step - 1 for step in first[1:]), found["steps"]], strict=False))


def _stages(found: dict[str, Any]) -> dict[str, Any] | None:
    """The table of the stages: a row for each source."""
    if not found["mixture"]:
        return None
    heads = [f"Steps {first:,} to {last:,}" if last else f"From step {first:,}" for first, last in _spans(found)]
    rows = []
    for number, source in enumerate(found["sources"]):
        shares = [stage["shares"][number] for stage in found["mixture"]]
        cells = [f"{100 * share:.2f}%" if share else ABSENT for share in shares]
        run = source.get("run")
        rows.append({
            "style": _colour(number), "name": source["name"], "cells": cells,
            "whole": f"{100 * run['share']:.2f}%" if run else ABSENT,
        })  # fmt: skip
    return {"heads": heads, "rows": rows}


def _mixture_chart(found: dict[str, Any]) -> dict[str, Any] | None:
    """The shares of the sources over the run, as a band for each stage; equal ones if the run's length is not known."""
    if not found["mixture"]:
        return None
    spans, steps = _spans(found), found["steps"]
    places = [(first - 1) / steps if steps else at / len(spans) for at, (first, _) in enumerate(spans)]
    boxes = []
    for stage, (left, right), (first, last) in zip(found["mixture"], pairwise([*places, 1.0]), spans, strict=True):
        bottom = 0.0
        for number, share in enumerate(stage["shares"]):
            if share:
                said = f"{stage['names'][number]}: {100 * share:.2f}% from step {first:,}"
                said += f" to {last:,}" if last else ""
                boxes.append((_colour(number), _box(left, bottom, right, bottom + share), said))
                bottom += share
    ticks = [(place, f"{first:,}") for place, (first, _) in zip(places, spans, strict=True)]
    return {"boxes": boxes, "x_ticks": [*ticks, (1.0, f"{steps:,}" if steps else "")]}


# --- the first rows


def _rows_note(found: dict[str, Any]) -> str:
    packing = found["packing"]
    if packing["kind"] == "documents":
        said = "Whole documents, fitted together; what is longer than a row is cut."
    else:
        said = "Windows of the running text."
    if not packing["document_mask"]:
        return f"{said} A token sees all the tokens before it in its row."
    counted = "count from 0 in each document" if packing["restart_positions"] else "go on through the row"
    return f"{said} A token sees only what comes before it in its own document; positions {counted}."


def _window(window: dict[str, Any], masked: bool) -> dict[str, Any]:
    segments = window["segments"]
    length = len(window["ids"])
    ignored = set(window["ignored"])
    shown = []
    for number, segment in enumerate(segments):
        start, stop = segment["start"], min(segment["stop"], MAX_TOKENS)
        shown.append({
            "style": f"c{number % DOCUMENT_COLOURS + 1}",
            "label": _label(segment),
            "padding": segment["padding"],
            "tokens": [] if segment["padding"] else [_token(window, at, at in ignored) for at in range(start, stop)],
        })  # fmt: skip
    return {
        "row": f"{window['row']:,}",
        "source": window["source"],
        "facts": _facts(window),
        "segments": [segment for segment in shown if segment["tokens"] or segment["padding"]],
        "left": max(0, length - MAX_TOKENS),
        "mask": _mask(segments, length, masked),
        "mask_said": f"What each of the {length:,} positions sees: " + (
            "those before it in its own document." if masked else "all those before it."
        ),
    }  # fmt: skip


def _facts(window: dict[str, Any]) -> str:
    texts = sum(not segment["padding"] for segment in window["segments"])
    padding = sum(s["stop"] - s["start"] for s in window["segments"] if s["padding"])
    ignored = len(window["ignored"]) - padding
    said = [f"{len(window['ids']):,} tokens", f"{texts:,} document{'' if texts == 1 else 's'}"]
    said += [f"{padding:,} of padding"] if padding else []
    said += [f"{ignored:,} not predicted"] if ignored else []
    return ", ".join(said)


def _label(segment: dict[str, Any]) -> str:
    size = segment["stop"] - segment["start"]
    if segment["padding"]:
        return f"{size:,} of padding"
    name = "a document" if segment["document"] is None else f"document {segment['document'] + 1:,}"
    return f"{name}, {size:,} token{'' if size == 1 else 's'}{', from its beginning' if segment['begins'] else ''}"


def _token(window: dict[str, Any], at: int, ignored: bool) -> dict[str, Any]:
    target = "nothing" if ignored else f"id {window['targets'][at]}"
    return {
        "text": printable(window["pieces"][at]).replace("\n", "↵\n"),
        "said": f"position {at}: id {window['ids'][at]}, predicts {target}",
        "ignored": ignored,
    }


def _mask(segments: Sequence[dict[str, Any]], length: int, masked: bool) -> list[tuple[str, str]]:
    """(style, path) of the attention of a row: seeing positions downwards, seen ones to the right."""
    if not masked:
        return [("c1", f"M0 0V{SIZE}H{SIZE}Z")]
    found = []
    for number, segment in enumerate(segments):
        if not segment["padding"]:
            low, high = (round(SIZE * segment[side] / length) for side in ("start", "stop"))
            found.append((f"c{number % DOCUMENT_COLOURS + 1}", f"M{low} {low}V{high}H{high}Z"))
    return found
