"""Sources of text named on the command line, and how far reading them is. Needs no torch."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minigpt.config import DataConfig, load_config
from minigpt.config.yaml import parse_yaml

Progress = Callable[[str, int, int | None], None]

SOURCE_HELP = "A file, folder, glob, URL, demo:stories, demo:dialogues, or a mapping: '{path: x.jsonl, field: body}'"


def source_data(sources: Sequence[str]) -> DataConfig:
    """All of these sources as one split, nothing kept back for validation. Raises RequestError."""
    values: list[Any] = [parse_yaml(s, f"source {s}") if s.startswith("{") else s for s in sources]
    config, _ = load_config({"data": {"train": values, "val_fraction": 0}})
    return config.data


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """How far the preparation is, on stderr while it lasts, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
