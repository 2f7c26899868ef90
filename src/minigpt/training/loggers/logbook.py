"""A run's log: its own two files, which are the truth and are resumed exactly, and everybody else who listens."""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt.config import Config, RequestError, resolved
from minigpt.storage import atomic_write
from minigpt.training.loggers.background import BackgroundLogger
from minigpt.training.loggers.base import Histogram, Logger, Metrics, RunInfo
from minigpt.training.loggers.jsonl import JsonlLogger

METRICS, SAMPLES, IDENTITY = "metrics.jsonl", "samples.jsonl", "loggers.json"


class LogBook:
    """Passes everything that is logged to `metrics.jsonl`, `samples.jsonl`, the loggers and the console, in this order.

    Only the files can stop a run (a full disk): each of the loggers works in a thread of its own.
    """

    def __init__(self, run_dir: Path, loggers: Sequence[Logger] = (), console: Logger | None = None) -> None:
        self.run_dir = run_dir
        self.files = {name: JsonlLogger(run_dir / name) for name in (METRICS, SAMPLES)}
        self.console = console or Logger()
        self.loggers = [BackgroundLogger(logger, self.console.message) for logger in loggers]
        self._listeners: list[Logger] = [*self.loggers, self.console]

    def start(self, config: Config, step: int, max_steps: int) -> None:
        """Training starts, goes on, or goes back: `step` is done, `max_steps` is the last."""
        name = config.run.name or self.run_dir.name
        run = RunInfo(self.run_dir, resolved(config), name, step, max_steps, self._identity() if self.loggers else "")
        for listener in self._listeners:
            listener.start(run)

    def log(self, line: Metrics) -> None:
        """One line of metrics."""
        self.files[METRICS].log(line)
        for listener in self._listeners:
            listener.log(line)

    def histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """Histograms of a step: too large for `metrics.jsonl`, so only for the loggers."""
        for listener in self._listeners:
            listener.histograms(step, values)

    def sample(self, step: int, text: str) -> None:
        """A generated text."""
        self.files[SAMPLES].log({"step": step, "text": text})
        for listener in self._listeners:
            listener.sample(step, text)

    def message(self, text: str) -> None:
        """A line for people."""
        for listener in self._listeners:
            listener.message(text)

    def positions(self) -> dict[str, int]:
        """How long the files are, in bytes."""
        return {name: file.position for name, file in self.files.items()}

    def truncate(self, positions: Mapping[str, int]) -> None:
        """Cut the files to what they were; one that is not named becomes empty."""
        for name, file in self.files.items():
            file.truncate(positions.get(name, 0))

    def sync(self) -> None:
        """Wait until the files are on the disk: a checkpoint that counts on them must not outlive them."""
        for file in self.files.values():
            file.sync()

    def failed(self, error: BaseException) -> None:
        """Training ends with this error."""
        for listener in self._listeners:
            listener.failed(error)

    def close(self) -> None:
        """Close everything, the console last of the listeners: the others may have something to say."""
        for logger in self.loggers:
            logger.end()
        for listener in self._listeners:
            listener.close()
        for file in self.files.values():
            file.close()

    def _identity(self) -> str:
        """The run's id, which loggers elsewhere know it by; made when it is first needed."""
        path = self.run_dir / IDENTITY
        if not path.exists():
            atomic_write(path, json.dumps({"id": secrets.token_hex(8)}) + "\n")
        try:
            return str(json.loads(path.read_text("utf-8"))["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is damaged: delete it, and the loggers begin a new run") from error


class SilentLogBook(LogBook):
    """Of a process that is not the one that logs."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.files, self.console, self.loggers, self._listeners = run_dir, {}, Logger(), [], []

    def log(self, line: Metrics) -> None:
        """Nothing."""

    def sample(self, step: int, text: str) -> None:
        """Nothing."""
