"""A logger: the numbers of a run as a Markdown table, which a code host or an editor shows as it is.

    minigpt train examples/logger.yaml
    cat runs/logger/table.md

A logger gets every line that metrics.jsonl gets. It runs in a thread of its own and cannot stop the run: should it
fail, one line says so and it is left out from then on.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from minigpt import Logger, Section
from minigpt.training.loggers import RunInfo


class MarkdownTable(Logger):
    """Writes RUN/table.md: a row for each evaluation, with the newest value of each column at that step."""

    class Config(Section):
        columns: list[str] = Field(["tokens", "train/loss", "val/loss"])
        """Names of the metrics to show, as they stand in metrics.jsonl."""

    def __init__(self, config: Config) -> None:
        self.columns = config.columns
        self.newest: dict[str, Any] = {}
        self.rows: dict[int, list[str]] = {}
        self.path = Path()

    def start(self, run: RunInfo) -> None:
        """Training starts or goes on: what was logged up to this step is in metrics.jsonl, what came later is void."""
        self.newest, self.rows, self.path = {}, {}, run.run_dir / "table.md"
        for line in (run.run_dir / "metrics.jsonl").read_text("utf-8").splitlines():
            metrics = json.loads(line)
            if metrics["step"] <= run.step:
                self._take_in(metrics)

    def log(self, metrics: dict[str, Any]) -> None:
        """A line of metrics; an evaluation's makes a row."""
        self._take_in(metrics)
        if "val/loss" in metrics:
            table = [["step", *self.columns], ["---:"] * (len(self.columns) + 1)]
            table += [[f"{step:,}", *row] for step, row in self.rows.items()]
            self.path.write_text("".join(f"| {' | '.join(row)} |\n" for row in table), "utf-8")

    def _take_in(self, metrics: dict[str, Any]) -> None:
        self.newest |= metrics
        if "val/loss" in metrics:
            self.rows[metrics["step"]] = [_shown(self.newest.get(name)) for name in self.columns]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:#.4g}"
    return "" if value is None else f"{value:,}"
