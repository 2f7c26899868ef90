"""`minigpt report`: a page about one run, or about several in the same charts."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="A run folder", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page  [default: RUN/report.html, of several runs report.html here]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a page about a run, finished or not, or compare several.

    For example: minigpt report runs/a runs/b --out compared.html
    """
    from minigpt.reporting import write_report

    print(write_report(runs, out))
