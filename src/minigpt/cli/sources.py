"""Sources of text named on the command line, and how far reading them is. Needs no torch."""

import sys
import time
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
    """How far the preparation is, how long it will take and how fast it is: on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = ("{task.description}", BarColumn(), "{task.fields[share]}", TimeElapsedColumn(), "elapsed")
    later = (TimeRemainingColumn(compact=True, elapsed_when_finished=False), "{task.fields[left]}")
    with Bars(
        *columns, *later, TextColumn("{task.fields[speed]}"), console=Console(stderr=True), transient=True
    ) as bars:
        tasks = {}
        began: dict[str, float] = {}
        speed = ""

        def report(stage: str, done: int, total: int | None) -> None:
            nonlocal speed
            if stage == "tokens":
                seconds = time.monotonic() - began.setdefault(stage, time.monotonic())
                speed = f"{done:,} tokens" + (f", {done / seconds:,.0f}/s" if seconds > 1 else "")
                return
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, share="", left="", speed="")
            share = f"{done / total:4.0%}" if total else f"{done:,}" if done else ""
            left, fast = "left" if total else "", speed if stage == "tokenize" else ""
            bars.update(tasks[stage], completed=done, total=total, share=share, left=left, speed=fast)

        yield report
