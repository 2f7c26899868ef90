"""`minigpt plan`: what a run will take, before it."""

from typing import Annotated

import typer

from minigpt.cli import options
from minigpt.cli.output import print_json, say
from minigpt.config import RequestError, load_config


def plan(
    config: options.Config,
    overrides: options.Overrides = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPUxN",
            help="Plan for these instead of this machine, as H100x8; several, or with commas, are compared",
        ),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of the hardware's peak that training reaches  [default: 0.4]"),
    ] = None,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Dollars an hour and GPU  [default: as listed in autumn 2026]")
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what a run will take: parameters, tokens, arithmetic, memory, time and price.

    For example: minigpt plan gpt2-124m --gpus H100x8,A100x8
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise RequestError(f"--mfu={mfu} is not possible: it is a share of the peak, above 0 and up to 1")
    if price is not None and price < 0:
        raise RequestError(f"--price={price} is not possible: dollars an hour cannot be negative")
    settings, notes = load_config(config, [*(overrides or [])])
    for note in notes:
        say(f"minigpt: {note}")

    from minigpt.config.hardware import TYPICAL_MFU, parse_machines

    machines = [machine for text in gpus or [] for machine in parse_machines(text)]

    from minigpt.training.planning.plan import plan as make_plan  # imports torch: now that the request makes sense

    made = make_plan(settings, machines, TYPICAL_MFU if mfu is None else mfu, price)
    if json:
        print_json(made.as_dict())
    else:
        print(*made.lines, sep="\n")
