"""What is known of a run while it is watched: the newest of each metric, the loss so far, how long there is to go."""

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.training.console.curve import Curve
from minigpt.training.console.figures import amount, memory
from minigpt.training.loggers import Metrics, RunInfo
from minigpt.training.loggers.logbook import METRICS, SAMPLES

SMOOTHING = 0.9  # share of the old value in the running mean of the loss: a mean of about ten lines of metrics
PACE = 200  # lines of metrics that the remaining time is estimated from
NOT_IN_JSON = {str(number): number for number in (math.nan, math.inf, -math.inf)}  # strings in metrics.jsonl
NOTABLE_WAIT = 0.05  # share of a step's time spent waiting for data that is worth a word


@dataclass(frozen=True)
class Evaluation:
    """One validation."""

    step: int
    loss: float
    change: float | None
    """Loss against the evaluation before."""
    bits_per_byte: float | None


class State:
    """Follows a run from `run.step` on; `now` is a time of `time.monotonic`.

    What was logged up to there is read from the run's own files.
    """

    def __init__(self, run: RunInfo, now: float) -> None:
        self.run = run
        self.values: Metrics = {}
        self.curve = Curve()
        self.evaluations: list[Evaluation] = []
        self.best: Evaluation | None = None  # the one with the lowest loss
        self.sample: tuple[int, str] | None = None
        self.step, self._moved, self._logged = run.step, now, now
        self._smooth, self._smoothed = 0.0, 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=PACE)
        if run.step > 0:
            self._read_past(now)
        self._marks.append((now, run.step))

    def _read_past(self, now: float) -> None:
        for line in _lines(self.run.run_dir / METRICS):
            self.log({key: NOT_IN_JSON.get(v, v) if isinstance(v, str) else v for key, v in line.items()}, now)
        for line in _lines(self.run.run_dir / SAMPLES):
            self.add_sample(int(line["step"]), str(line["text"]))
        self.values = {key: value for key, value in self.values.items() if not key.startswith("perf/")}
        self.step = self.run.step
        self._marks.clear()

    def log(self, metrics: Metrics, now: float) -> None:
        """A line of metrics."""
        self.values |= metrics
        self._logged = now
        if "train/loss" in metrics:
            self._train(metrics, now)
        if "val/loss" in metrics:
            self._evaluation(metrics)

    def add_sample(self, step: int, text: str) -> None:
        """A generated text."""
        self.sample = step, text

    def _train(self, metrics: Metrics, now: float) -> None:
        step, loss = int(metrics["step"]), float(metrics["train/loss"])
        if math.isfinite(loss):
            self._smooth, self._smoothed = SMOOTHING * self._smooth + (1 - SMOOTHING) * loss, self._smoothed + 1
            self.curve.add(self.loss)
        self.moved(step, now)
        if len(self._marks) == 1 and step == self._marks[0][1] + 1:
            self._marks.clear()  # the first step of a session may compile the network: no measure of the others
        self._marks.append((now, step))

    def _evaluation(self, metrics: Metrics) -> None:
        loss = float(metrics["val/loss"])
        change = loss - self.evaluations[-1].loss if self.evaluations else None
        self.evaluations.append(Evaluation(int(metrics["step"]), loss, change, metrics.get("val/bpb")))
        if math.isfinite(loss) and (self.best is None or loss < self.best.loss):
            self.best = self.evaluations[-1]

    def moved(self, step: int, now: float) -> None:
        """The run has finished `step`."""
        if step != self.step:
            self.step, self._moved = step, now

    @property
    def max_steps(self) -> int:
        """Where the run ends."""
        return self.run.max_steps

    @property
    def loss(self) -> float:
        """The running mean of the training loss; without the weight that such a mean gives to its start."""
        return self._smooth / (1 - SMOOTHING**self._smoothed) if self._smoothed else math.nan

    @property
    def evaluation_due(self) -> bool:
        """Whether the evaluation of the last step is still to come; only known of a run that has had one."""
        every = self.run.config["evaluation"]["every_steps"]
        due = every is not None and self.step > 0 and self.step % every == 0
        return due and bool(self.evaluations) and self.evaluations[-1].step != self.step

    def elapsed(self, now: float) -> float:
        """Seconds of training, earlier sessions included."""
        return float(self.values.get("time", 0.0)) + now - self._logged

    def remaining(self, now: float) -> float | None:
        """Seconds until the end if it goes on as it did of late; None while nothing is known."""
        if not self._marks or self.step <= self._marks[0][1]:
            return None
        began, first = self._marks[0]
        pace = (self._moved - began) / (self.step - first)
        return max(0.0, pace * (self.max_steps - self.step) - (now - self._moved))

    def figures(self) -> list[tuple[str, str]]:
        """(figure, style) of the newest metrics, the important ones first."""
        v = self.values
        shown: list[tuple[str, str]] = []
        if "train/loss" in v:
            newest = float(v["train/loss"])
            sound = math.isfinite(newest)
            shown.append((f"loss {self.loss if sound else newest:.4f}", "bold" if sound else "bold red"))
        if "train/lr" in v:
            shown.append((f"lr {v['train/lr']:.2e}", ""))
        if "perf/tokens_per_second" in v:
            shown.append((f"{amount(v['perf/tokens_per_second'])} tok/s", ""))
        if v.get("train/skipped"):
            shown.append((f"skipped {v['train/skipped']}", "red"))
        wait = v.get("perf/data_wait_ms", 0.0) / v["perf/step_ms"] if v.get("perf/step_ms") else 0.0
        if wait >= NOTABLE_WAIT:
            shown.append((f"data wait {min(wait, 1.0):.0%}", "yellow"))
        if "perf/mfu" in v:
            shown.append((f"MFU {v['perf/mfu']:.1%}", ""))
        if "train/grad_norm" in v:
            shown.append((f"grad norm {v['train/grad_norm']:.3g}", ""))
        if "memory/peak_mb" in v:
            shown.append((memory(v["memory/peak_mb"]), ""))
        return shown

    def sources(self) -> list[tuple[str, str]]:
        """(figure, style) of each source of a mixture: tokens seen, passes over it, its validation loss."""
        shown = []
        for key, tokens in self.values.items():
            if not (key.startswith("data/") and key.endswith("/tokens")):
                continue
            name = key.removeprefix("data/").removesuffix("/tokens")
            figure = f"{name} {amount(tokens)} tok"
            if epoch := self.values.get(f"data/{name}/epoch"):  # in the first one of a stream, nobody knows its length
                figure += f", {epoch:.2f} epochs"
            loss = self.values.get(f"val/{name}/loss")
            shown.append((figure if loss is None else f"{figure}, val {loss:.4f}", ""))
        return shown


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file of the run; none if there is no such file. A torn line is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "step" in found:
                yield found
