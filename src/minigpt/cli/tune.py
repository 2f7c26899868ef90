"""`minigpt tune`: settings found by trying them."""

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli import options
from minigpt.cli.help import CONTEXT, Command
from minigpt.cli.output import print_json, say
from minigpt.config import Config, RequestError, load_config

app = typer.Typer(help="Find settings by trying them.", rich_markup_mode=None, context_settings=CONTEXT)

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}


@app.command("batch-size", cls=Command)
def batch_size(
    config: options.Config,
    overrides: options.Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that training may take, as 2GB  [default: most of what is free]"),
    ] = None,
    most: Annotated[int | None, typer.Option(metavar="N", help="Try no larger micro-batch", min=1)] = None,
    json: options.Json = False,
) -> None:
    """Find the largest micro-batch that fits the memory; the tokens of a step stay as they are.

    For example: minigpt tune batch-size shakespeare-char data.train=input.txt --memory 1GB
    """
    limit = None if memory is None else parse_size(memory)
    settings = _load(config, overrides)

    from minigpt.training.tuning.batch_size import tune_batch_size

    tuned = tune_batch_size(settings, limit, most, say)
    if json:
        print_json(tuned.as_dict())
    else:
        print(*tuned.lines, sep="\n")
    if tuned.best is None:
        raise typer.Exit(1)


@app.command("lr", cls=Command)
def lr(
    config: options.Config,
    overrides: options.Overrides = None,
    low: Annotated[float, typer.Option("--from", metavar="X", help="Lowest rate")] = 1e-5,
    high: Annotated[float, typer.Option("--to", metavar="X", help="Highest rate")] = 1.0,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of a test", min=10)] = 100,
    seeds: Annotated[int, typer.Option(metavar="N", help="Tests with different seeds", min=1)] = 1,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the curves (needs matplotlib)", show_default=False)
    ] = None,
    json: options.Json = False,
) -> None:
    """Find a learning rate: a short run in which it rises until the loss does.

    For example: minigpt tune lr shakespeare-char data.train=input.txt
    """
    if not 0 < low < high:
        raise RequestError(
            f"--from={low:g} and --to={high:g} are no range: the first must be above 0 and the lower one"
        )
    if png is not None and importlib.util.find_spec("matplotlib") is None:
        raise RequestError("--png needs matplotlib: pip install matplotlib, or leave it out")
    settings = _load(config, overrides)

    from minigpt.training.tuning.learning_rate import tune_lr

    found = tune_lr(settings, low, high, steps, seeds, say)
    if png is not None:
        found.draw(png)
    if json:
        print_json(found.as_dict())
    else:
        print(*found.lines(), sep="\n")


def parse_size(text: str) -> float:
    """`2GB`, `500 MB`, `1.5GiB` in bytes. Raises RequestError for what is no size."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    unit = None if found is None else UNITS.get(found[2].lower())
    if found is None or unit is None or float(found[1]) == 0:
        raise RequestError(f"--memory {text!r} is no size: write it as 2GB or 500MB")
    return float(found[1]) * unit


def _load(config: str, overrides: list[str] | None) -> Config:
    settings, notes = load_config(config, [*(overrides or [])])
    for note in notes:
        say(f"minigpt: {note}")
    return settings
