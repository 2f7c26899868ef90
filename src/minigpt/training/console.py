"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from minigpt.training.loggers import Metrics

PLAIN_SECONDS = 10.0  # a plain log gets a line of training metrics this often; evaluations always


class ConsoleLogger(Protocol):
    """A logger with a beginning."""

    def start(self, step: int, max_steps: int) -> None:
        """Training begins after `step`."""

    def log(self, metrics: Metrics) -> None:
        """Show metrics."""

    def sample(self, step: int, text: str) -> None:
        """Show a generated text."""

    def message(self, text: str) -> None:
        """Show a line."""

    def close(self) -> None:
        """Training is over."""


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def amount(value: float) -> str:
    """Three digits and a unit: 950, 28.1k, 10.7M."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5 or unit == "E":
            return f"{value:.3g}{unit}"
        value /= 1000
    return str(value)


class _State:
    """What both forms show: the newest of each metric, and how long there is to go."""

    def __init__(self) -> None:
        self.values: Metrics = {}
        self.max_steps, self.first, self.began = 0, 0, time.monotonic()

    def start(self, step: int, max_steps: int) -> None:
        self.first, self.max_steps, self.began = step, max_steps, time.monotonic()

    def update(self, metrics: Metrics) -> None:
        self.values |= metrics

    @property
    def eta(self) -> str:
        done = self.values.get("step", 0) - self.first
        if done <= 0:
            return "-:--"
        return duration((time.monotonic() - self.began) / done * (self.max_steps - self.values["step"]))

    def parts(self) -> list[str]:
        """Each figure with its name, the important ones first."""
        v = self.values
        shown = [f"loss {v['train/loss']:.4f}"] if "train/loss" in v else []
        if "val/loss" in v:
            shown.append(f"val {v['val/loss']:.4f}")
        if "train/lr" in v:
            shown.append(f"lr {v['train/lr']:.2e}")
        if "perf/tokens_per_second" in v:
            shown.append(f"{amount(v['perf/tokens_per_second'])} tok/s")
        if v.get("train/skipped"):
            shown.append(f"skipped {v['train/skipped']}")
        return shown


class PlainConsole:
    """Lines of text, few enough for a log file."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._state = _State()
        self._shown = float("-inf")

    def start(self, step: int, max_steps: int) -> None:
        """Training begins after `step`."""
        self._state.start(step, max_steps)

    def log(self, metrics: Metrics) -> None:
        """A line for each evaluation, and every ten seconds."""
        self._state.update(metrics)
        step = metrics["step"]
        if "val/loss" in metrics:
            bpb = f"  bpb {metrics['val/bpb']:.4f}" if "val/bpb" in metrics else ""
            self._print(f"step {step}/{self._state.max_steps}  val loss {metrics['val/loss']:.4f}{bpb}")
        elif "train/loss" in metrics and time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._shown = time.monotonic()
            parts = [part for part in self._state.parts() if not part.startswith("val ")]
            self._print(f"step {step}/{self._state.max_steps}  {'  '.join(parts)}  eta {self._state.eta}")

    def sample(self, step: int, text: str) -> None:
        """The text, indented."""
        self._print(f"step {step} sample: {text}")

    def message(self, text: str) -> None:
        """The line."""
        self._print(text)

    def close(self) -> None:
        """Nothing to put back."""

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class RichConsole:
    """A progress bar with the newest figures; evaluations, samples and messages scroll past above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self._state = _State()
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            expand=True,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("train", total=1, figures="")

    def start(self, step: int, max_steps: int) -> None:
        """Training begins after `step`."""
        self._state.start(step, max_steps)
        self._progress.update(self._task, total=max_steps, completed=step, figures="")
        self._progress.start()

    def log(self, metrics: Metrics) -> None:
        """Update the bar; print evaluations."""
        self._state.update(metrics)
        if "val/loss" in metrics:
            bpb = f"  bits per byte {metrics['val/bpb']:.3f}" if "val/bpb" in metrics else ""
            self.console.print(
                Text(f"step {metrics['step']:>6}  validation loss {metrics['val/loss']:.4f}{bpb}", "bold")
            )
        width = self.console.width - 30  # figures that do not fit beside a readable bar are left out, the last first
        parts = [*self._state.parts(), f"eta {self._state.eta}"]
        while len(parts) > 2 and len("  ".join(parts)) > width:
            parts.pop(-2)
        self._progress.update(self._task, completed=metrics["step"], figures="  ".join(parts))

    def sample(self, step: int, text: str) -> None:
        """The text, dimmed."""
        self.console.print(Text(f"step {step:>6}  ", "bold").append(text.strip(), "dim"))

    def message(self, text: str) -> None:
        """The line."""
        self.console.print(Text(text))

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


class QuietConsole:
    """Only messages: what people must know."""

    def start(self, step: int, max_steps: int) -> None:
        """Nothing to show."""

    def log(self, metrics: Metrics) -> None:
        """Nothing to show."""

    def sample(self, step: int, text: str) -> None:
        """Nothing to show."""

    def message(self, text: str) -> None:
        """The line."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to put back."""


def make_console(kind: str) -> ConsoleLogger:
    """auto, rich, plain or quiet."""
    if kind == "auto":
        kind = "rich" if sys.stderr.isatty() else "plain"
    return {"rich": RichConsole, "plain": PlainConsole, "quiet": QuietConsole}[kind]()
