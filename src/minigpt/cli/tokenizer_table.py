"""How `minigpt tokenizer info` looks: one tokenizer as a list of its properties, several as a table."""

import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.table import Table

from minigpt.cli.output import UNPRINTABLE, write

SHOWN_SPECIALS = 8
TEXT_COLUMNS = ("tokens", "bytes/token", "used")
NAME_WIDTH = 16
PIPED_WIDTH = 160


def print_one(facts: dict[str, Any]) -> None:
    """A line for each property."""
    names = [f"{name} ({number})" for name, number in facts["special_tokens"].items()]
    if len(names) > SHOWN_SPECIALS:
        names = [*names[:SHOWN_SPECIALS], f"and {len(names) - SHOWN_SPECIALS:,} more"]
    lines = {
        "kind": facts["kind"],
        "vocab size": f"{facts['vocab_size']:,}",
        "pattern": facts["pattern"],
        "eot id": facts["eot_id"],
        "special tokens": ", ".join(names) or None,
        "fingerprint": facts["fingerprint"],
    }
    text = facts.get("text", {})
    if "failure" in text:
        lines["text"] = f"cannot be encoded: {text['failure']}"
    elif text:
        lines["text"] = f"{text['bytes']:,} bytes, {text['tokens']:,} tokens"
        lines["bytes a token"] = "none" if text["bytes_per_token"] is None else f"{text['bytes_per_token']:.3f}"
        lines["ids used"] = f"{text['ids_used']:,} of {facts['vocab_size']:,}"
        lines["decoded"] = "the same text" if text["exact"] else "not quite the same text"
    for name, value in lines.items():
        write(f"{name:<15} {'none' if value is None else value}\n")


def print_several(facts: Sequence[dict[str, Any]]) -> None:
    """A row for each tokenizer, and a line for each that cannot encode the text or does not give it back."""
    names = [name.translate(UNPRINTABLE) for name in _short_names([one["path"] for one in facts])]
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tokenizer", overflow="fold", min_width=min(NAME_WIDTH, max(map(len, names))))
    table.add_column("kind", no_wrap=True)
    for name in ("ids", *(TEXT_COLUMNS if "text" in facts[0] else ("special tokens",))):
        table.add_column(name, justify="right", no_wrap=True)
    notes: list[str] = []
    for name, one in zip(names, facts, strict=True):
        kind = " ".join(filter(None, (one["kind"], one["pattern"])))
        table.add_row(name, kind, f"{one['vocab_size']:,}", *_last_cells(one))
        text = one.get("text", {"exact": True})
        if "failure" in text:
            notes.append(f"{name} cannot encode the text: {text['failure']}")
        elif not text["exact"]:
            notes.append(f"{name} does not give exactly the same text back")
    console.print(table)
    sizes = [one["text"]["bytes"] for one in facts if "bytes" in one.get("text", {})]
    if sizes:
        notes.insert(0, f"The text has {sizes[0]:,} bytes.")
    for note in notes:
        console.print(note.translate(UNPRINTABLE), soft_wrap=not sys.stdout.isatty())


def _last_cells(one: dict[str, Any]) -> list[str]:
    text = one.get("text")
    if text is None:
        return [f"{len(one['special_tokens']):,}"]
    if "failure" in text:
        return ["-"] * len(TEXT_COLUMNS)
    ratio = text["bytes_per_token"]
    return [f"{text['tokens']:,}", "-" if ratio is None else f"{ratio:.3f}", f"{text['ids_used']:,}"]


def _short_names(paths: Sequence[str]) -> list[str]:
    """The ends of the paths, just so long that they differ."""
    longest = max(len(PurePath(path).parts) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(PurePath(path).parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)
