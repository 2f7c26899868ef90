"""What `minigpt data show` prints: tables, bars, and the first rows of training with their documents in colours.

Colours never say anything alone: documents are also told apart by a line each, targets that are not predicted by a
sign. Text reaches the terminal without control characters.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minigpt.training.console.safe_text import printable

COLOURS = ("cyan", "yellow", "green", "magenta")
EIGHTHS = " ▏▎▍▌▋▊▉"
SHOWN_TOKENS = 480  # of a row; of each of its documents at least FEWEST_TOKENS
FEWEST_TOKENS = 24
WIDEST_BAR = 60
IGNORED = "⊘"


def print_shown(found: dict[str, Any], console: Console) -> None:
    """Print what `minigpt.data.describe` found."""
    _sources(found, console)
    if found["lengths"] is not None:
        _lengths(found, console)
    _rows(found, console)
    if found["mixture"]:
        _mixture(found, console)
    for window in found["windows"]:
        _window(window, console)


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", "bold"))


def _table(*columns: str) -> Table:
    """A table whose first column is a name and the others numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _sources(found: dict[str, Any], console: Console) -> None:
    console.print(Text("Sources", "bold"))
    sources, splits = found["sources"], found["splits"]
    keeps = any(source["val"] for source in sources)  # for validation, of its own text
    table = _table("", "Documents", "Tokens", "Bytes", "Bytes a token", *(["Validation"] if keeps else []))
    for source in sources:
        numbers = ["–"] * 4 if source["train"] is None else _counted(source["train"])
        table.add_row(Text(source["name"]), *numbers, f"{source['val']['tokens']:,}" if source["val"] else "")
    if len(sources) > 1 and splits["train"] is not None:
        table.add_row(
            Text("in all", "bold"), *_counted(splits["train"]), f"{splits['val']['tokens']:,}" if keeps else ""
        )
    for part in [] if keeps else found["validation"]:
        table.add_row(Text(f"{part['name']}, validation"), *_counted(part))
    console.print(table)
    for source in sources:
        for place in source["where"]:
            console.print(Text(_fitting(f"{source['name']}: {place}", console.width), "dim"), soft_wrap=True)
    if found["streaming"]:
        console.print(Text("Tokenized while training: how much text there is shows in its first epoch."))


def _counted(part: dict[str, Any]) -> list[str]:
    known = part["bytes"] is not None
    ratio = f"{'' if known else '~'}{part['bytes_per_token']:.2f}"
    return [f"{part['documents']:,}", f"{part['tokens']:,}", f"{part['bytes']:,}" if known else "", ratio]


def _fitting(text: str, width: int) -> str:
    """One line, whose middle is left out if it is too long."""
    text = printable(text).replace("\n", " ")
    half = width // 2 - 1
    return text if len(text) <= width else f"{text[:half]}…{text[-(width - half - 1) :]}"


def _lengths(found: dict[str, Any], console: Console) -> None:
    sources = found["lengths"]["sources"]
    _heading(console, "Lengths of documents, in tokens")
    for source in sources:
        console.print(Text(_spread(source, found["context_length"])))
    counts = [sum(column) for column in zip(*(source["documents"] for source in sources), strict=True)]
    tokens = [sum(column) for column in zip(*(source["tokens"] for source in sources), strict=True)]
    if sum(counts) < 2:
        return
    labels = [f"{low:,}-{high - 1:,}" if high - 1 > low else f"{low:,}"
              for low, high in pairwise(found["lengths"]["edges"])]  # fmt: skip
    beside = max(map(len, ["Length", *labels])) + len("Documents") + len("of all tokens") + 6
    width = max(8, min(WIDEST_BAR, console.width - beside))
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("Length", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("Documents", justify="right", no_wrap=True)
    table.add_column("of all tokens", justify="right", no_wrap=True, style="dim")
    for label, count, part in zip(labels, counts, tokens, strict=True):
        bar = Text(_bar(count / max(counts), width), "cyan")
        table.add_row(label, bar, f"{count:,}", f"{100 * part / sum(tokens):.1f} %")
    console.print(table)


def _spread(source: dict[str, Any], context: int) -> str:
    """The lengths of a source's documents in a sentence."""
    documents = sum(source["documents"])
    if documents == 1:
        return f"{source['name']}: one document of {source['longest']:,}"
    said = f"{source['name']}: {source['shortest']:,} to {source['longest']:,}, median {source['median']:,.0f}, "
    longer = source["longer_than_context"]
    return f"{said}mean {source['mean']:,.0f}; {longer:,} of {documents:,} longer than a row ({context:,})"


def _bar(share: float, width: int) -> str:
    """A bar of `share` of the width, exact to an eighth of a character; what is more than nothing shows."""
    eighths = max(round(8 * width * share), 1 if share > 0 else 0)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def _rows(found: dict[str, Any], console: Console) -> None:
    packing, context = found["packing"], found["context_length"]
    _heading(console, "Rows")
    what = "whole documents, fitted together" if packing["kind"] == "documents" else "windows of the running text"
    said = [f"{context:,} tokens each: {what}."]
    if packing["document_mask"]:
        counted = "count from 0 in each" if packing["restart_positions"] else "go on through the row"
        said.append(f"No token sees another document; positions {counted}.")
    elif packing["kind"] == "documents" or any(len(window["segments"]) > 1 for window in found["windows"]):
        said.append("A token sees the other documents of its row too.")
    if packing["rows_per_epoch"]:
        said.append(f"{packing['rows_per_epoch']:,} of them have all the text once.")
    if packing["kind"] == "documents":
        said.append(f"{100 * packing['wasted']:.2f} % of their positions are empty.")
    if found["steps"] is not None:
        total = found["rows"]
        run = found["sources"][0].get("run")
        often = f", {run['epochs']:.2f} epochs" if run and len(found["sources"]) == 1 else ""
        size = f"{found['batch_rows']:,}{'' if total == found['steps'] * found['batch_rows'] else ' at first'}"
        said.append(f"The run takes {total:,} in {found['steps']:,} steps of {size}{often}.")
    console.print(Text(" ".join(said)))


def _mixture(found: dict[str, Any], console: Console) -> None:
    stages = found["mixture"]
    _heading(console, "Mixture")
    last = [f"{stage['from_step'] - 1:,}" for stage in stages[1:]] + [
        "" if found["steps"] is None else f"{found['steps']:,}"
    ]
    spans = [f"steps {stage['from_step']:,}-{stop}" for stage, stop in zip(stages, last, strict=True)]
    runs = [source.get("run") for source in found["sources"]]
    packed = found["packing"]["kind"] == "documents"
    whole = ["in the run", "Rows", "Epochs"] if all(runs) else []
    table = _table("", *spans, *whole, *(["Empty"] if packed else []))
    for number, source in enumerate(found["sources"]):
        cells = [f"{100 * share:.2f} %" if (share := stage["shares"][number]) else "–" for stage in stages]
        if run := runs[number]:
            cells += [f"{100 * run['share']:.2f} %", f"{run['rows']:,}", f"{run['epochs']:.2f}"]
        table.add_row(Text(source["name"]), *cells, *([f"{100 * source['wasted']:.2f} %"] if packed else []))
    console.print(table)
    exact = ", then ".join(f"{stage['block_rows']:,}" for stage in stages)
    console.print(Text(f"Exact in every {exact} rows.", "dim"))


def _window(window: dict[str, Any], console: Console) -> None:
    source = "" if window["source"] is None else f", from {window['source']}"
    segments = window["segments"]
    _heading(console, f"Row {window['row']:,}{source}")
    if len(segments) > 1:
        console.print(_spans(segments, min(WIDEST_BAR, console.width)))
    shown = max(FEWEST_TOKENS, SHOWN_TOKENS // len(segments))
    ignored = set(window["ignored"])
    for number, segment in enumerate(segments):
        colour = _colour(number, segment)
        console.print(Text.assemble(("▌ ", colour), (_label(segment, ignored), "dim")))
        if segment["padding"]:
            continue
        stop = min(segment["stop"], segment["start"] + shown)
        text = _tokens(window["pieces"], segment["start"], stop, ignored, colour)
        if stop < segment["stop"]:
            text.append(f" … {segment['stop'] - stop:,} more", "dim")
        for line in text.wrap(console, max(8, console.width - 2), overflow="fold"):
            line.rstrip()
            console.print(Text.assemble(("▌ ", colour), line))


def _colour(number: int, segment: dict[str, Any]) -> str:
    return "bright_black" if segment["padding"] else COLOURS[number % len(COLOURS)]


def _spans(segments: Sequence[dict[str, Any]], width: int) -> Text:
    """The row as a line in which each document has its share."""
    line, total = Text(), segments[-1]["stop"]
    for number, segment in enumerate(segments):
        cells = max(1, round(width * segment["stop"] / total) - len(line))
        line.append(("·" if segment["padding"] else "█▓"[number % 2]) * cells, _colour(number, segment))
    return line


def _label(segment: dict[str, Any], ignored: set[int]) -> str:
    start, stop = segment["start"], segment["stop"]
    size = f"{stop - start:,} position{'' if stop - start == 1 else 's'}"
    if segment["padding"]:
        return f"{size} of padding: nothing is predicted"
    name = "a document" if segment["document"] is None else f"document {segment['document'] + 1:,}"
    left_out = sum(at in ignored for at in range(start, stop))
    said = f"{name}, {size}{', from its beginning' if segment['begins'] else ''}"
    if left_out:
        said += f"; {IGNORED} {left_out:,} not predicted"
    return said


def _tokens(pieces: Sequence[str], start: int, stop: int, ignored: set[int], colour: str) -> Text:
    """The tokens of a document, in turn in its colour and without, so that one sees where they are cut."""
    return Text.assemble(*_styled(pieces, start, stop, ignored, colour))


def _styled(pieces: Sequence[str], start: int, stop: int, ignored: set[int], colour: str) -> Iterator[tuple[str, str]]:
    for at in range(start, stop):
        text = printable(pieces[at])
        yield text.replace("\n", "↵\n"), colour if at % 2 else ""
        if at in ignored:
            yield IGNORED, "bold red"
