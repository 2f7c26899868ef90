"""`minigpt tune batch-size`: the largest micro-batch that fits, found by running a few steps of each.

Every trial is a process of its own, so that one which runs out of memory spoils nothing; on a CPU it is ended as soon
as it takes more than the limit. Tokens a step stay as they are: gradients of more or fewer micro-batches add up.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minigpt.config import Config, RequestError, WorkError, config_yaml
from minigpt.inference import pick_device
from minigpt.training.console import duration
from minigpt.training.console.figures import memory
from minigpt.training.planning.limits import available_memory
from minigpt.training.planning.rows import USABLE, saves_amid
from minigpt.training.tuning.probe import OUT_OF_MEMORY

STEPS = 3
"""The first makes the optimizer's state; from the second on all are alike."""
POLL_SECONDS = 0.01
FASTER = 1.03
"""A smaller micro-batch is mentioned if it is faster by more than measurements scatter."""


@dataclass(frozen=True)
class Trial:
    """What a micro-batch took."""

    rows: int
    peak: float | None
    """Bytes; None if it was stopped."""
    tokens_per_second: float | None
    fits: bool
    seconds: float
    """How long the trial took."""

    @property
    def line(self) -> str:
        """For people."""
        if not self.fits:
            return f"micro-batch {self.rows:>5}: does not fit ({duration(self.seconds)})"
        assert self.peak is not None
        speed = f"{self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        return f"micro-batch {self.rows:>5}: {memory(self.peak / 1e6)}, {speed} ({duration(self.seconds)})"


@dataclass(frozen=True)
class Tuned:
    """What was found."""

    config: Config
    limit: float
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The largest that fits."""
        return max((trial for trial in self.trials if trial.fits), key=lambda trial: trial.rows, default=None)

    @property
    def fastest(self) -> Trial | None:
        """The one that fits and trains on most tokens a second."""
        fitting = [trial for trial in self.trials if trial.fits]
        return max(fitting, key=lambda trial: trial.tokens_per_second or 0.0, default=None)

    @property
    def lines(self) -> list[str]:
        """What to set."""
        best, fastest, rows = self.best, self.fastest, self.config.batch_rows
        if best is None or fastest is None:
            return [
                f"not even one row fits {memory(self.limit / 1e6)}: `minigpt plan` on this config says what to change"
            ]
        counted = ", with schedule.accumulation changed to match" if self.config.schedule.accumulation else ""
        times = f" {rows // best.rows} times a step" if rows > best.rows else ""
        lines = [
            f"set training.micro_batch={best.rows}: the largest that fits{times}; "
            f"a step stays {rows * self.config.model.context_length:,} tokens{counted}"
        ]
        if (fastest.tokens_per_second or 0) > FASTER * (best.tokens_per_second or 0):
            gain = (fastest.tokens_per_second or 0) / (best.tokens_per_second or 1) - 1
            lines.append(f"training.micro_batch={fastest.rows} was {gain:.0%} faster")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        best = self.best
        return {
            "micro_batch": None if best is None else best.rows,
            "micro_batches": None if best is None else self.config.batch_rows // best.rows,
            "fastest": None if self.fastest is None else self.fastest.rows,
            "batch_tokens": self.config.batch_rows * self.config.model.context_length,
            "limit_bytes": self.limit,
            "trials": [
                {
                    "micro_batch": trial.rows,
                    "fits": trial.fits,
                    "peak_bytes": trial.peak,
                    "tokens_per_second": trial.tokens_per_second,
                }
                for trial in self.trials
            ],
        }


def tune_batch_size(
    config: Config, limit: float | None = None, most: int | None = None, say: Callable[[str], None] = lambda line: None
) -> Tuned:
    """Find the largest micro-batch that divides the batch and fits `limit` bytes (None: most of what is free).

    most: try no larger one. say: gets a line after each trial. Raises RequestError if the config cannot be trained.
    """
    device = pick_device(config.run.device)
    if limit is None:
        free = available_memory(device)
        if free is None:
            raise RequestError("how much memory is free cannot be seen here: give --memory, as --memory 2GB")
        limit = USABLE * free
    mesh = config.distributed.mesh
    if max(mesh.dp or 1, mesh.fsdp, mesh.tp, mesh.pp, mesh.cp) > 1:
        raise RequestError("tune batch-size tries on one process: take distributed.mesh away, or use minigpt plan")
    rows = config.batch_rows
    sizes = [size for size in range(1, min(rows, most or rows) + 1) if rows % size == 0]
    with tempfile.TemporaryDirectory(prefix="minigpt-tune-") as folder:
        bench = _Bench(config, device, limit, Path(folder))
        bench.prepare()
        trials: dict[int, Trial] = {}

        def fits(index: int) -> bool:
            trial = trials[sizes[index]] = bench.run(sizes[index])
            say(trial.line)
            return trial.fits

        largest_fitting(sizes, fits)
    return Tuned(config, limit, [trials[size] for size in sorted(trials)])


def largest_fitting(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The index of the largest size that fits: about twice as large while that goes well, then bisection.

    sizes: ascending; fits(index) is true up to some index and false from there on.
    """
    low, high, at = -1, len(sizes), 0
    while at < high:
        if not fits(at):
            high = at
            break
        low = at
        at = next((i for i in range(at + 1, len(sizes)) if sizes[i] >= 2 * sizes[low]), max(low + 1, len(sizes) - 1))
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low if low >= 0 else None


class _Bench:
    """Starts the trials, one at a time."""

    def __init__(self, config: Config, device: torch.device, limit: float, folder: Path) -> None:
        self.config, self.device, self.limit, self.folder = config, device, limit, folder

    def prepare(self) -> None:
        """Fill the cache with tokens, so that no trial pays for it."""
        status, answer, _ = self._ask(1, only_prepare=True)
        if status != 0:
            self._refuse(status, answer)

    def run(self, rows: int) -> Trial:
        """A few steps with this micro-batch."""
        began = time.monotonic()
        status, answer, stopped = self._ask(rows, only_prepare=False)
        seconds = time.monotonic() - began
        if stopped or status in (OUT_OF_MEMORY, -signal.SIGKILL):
            return Trial(rows, None, None, False, seconds)
        if status != 0 or "peak" not in answer:
            self._refuse(status, answer)
        fits = self.device.type == "cuda" or answer["peak"] <= self.limit
        return Trial(rows, answer["peak"], answer["tokens_per_second"], fits, seconds)

    def _ask(self, rows: int, only_prepare: bool) -> tuple[int, dict[str, Any], bool]:
        """(exit status, answer, whether it took too much and was ended)."""
        file = self.folder / f"{rows}.yaml"
        file.write_text(config_yaml(_short(self.config, rows, self.device)), encoding="utf-8")
        request = {
            "config": str(file),
            "run_dir": str(self.folder / f"run-{rows}"),
            "only_prepare": only_prepare,
            "limit": self.limit,
            "copies": saves_amid(self.config),
        }
        # a session of its own: Ctrl-C reaches this process, which then ends that one
        with subprocess.Popen(
            [sys.executable, "-m", "minigpt.training.tuning.probe"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            stopped = False
            try:
                assert process.stdin is not None and process.stdout is not None and process.stderr is not None
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                while process.poll() is None:
                    if self.device.type == "cpu" and not only_prepare and _resident(process.pid) > self.limit:
                        stopped = True
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            said, wrong = process.stdout.read().decode(), process.stderr.read().decode()
        lines = [line for line in said.splitlines() if line.startswith("{")]
        answer = json.loads(lines[-1]) if lines else {"error": (wrong.strip().splitlines() or [""])[-1]}
        return process.returncode, answer, stopped

    def _refuse(self, status: int, answer: dict[str, Any]) -> None:
        if answer.get("request"):
            raise RequestError(answer["error"])
        raise WorkError(f"a trial ended with status {status}: {answer.get('error') or 'it said nothing'}")


def _short(config: Config, rows: int, device: torch.device) -> Config:
    """A few steps of the run with at most two micro-batches of `rows` each, and nothing besides."""
    passes = min(2, config.batch_rows // rows)
    training = {
        "micro_batch": rows, "batch_tokens": passes * rows * config.model.context_length, "max_steps": STEPS,
        "max_tokens": None, "epochs": None,
    }  # fmt: skip
    none = {"accumulation": None, "context_length": None, "window": None, "warmup_steps": 0}
    tokens = rows * config.model.context_length
    evaluation = {"every_steps": None, "max_tokens": min(tokens, config.evaluation.max_tokens or tokens)}
    saving = {"every_steps": None, "every_minutes": None, "best": False}
    callbacks = config.callbacks
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": "trial", "device": str(device)}),
            "training": config.training.model_copy(update=training),
            "schedule": config.schedule.model_copy(update=none),
            "evaluation": config.evaluation.model_copy(update=evaluation),
            "checkpoint": config.checkpoint.model_copy(update=saving),
            "callbacks": callbacks.model_copy(
                update={"sample": callbacks.sample.model_copy(update={"every_steps": None}), "own": []}
            ),
            "loggers": type(config.loggers)(console="quiet", every_steps=1),
        }
    )


def _resident(pid: int) -> float:
    """Resident set of a process in bytes; 0 if it is gone or the system does not tell."""
    try:
        return float(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0.0
