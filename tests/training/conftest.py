"""A run small enough to be made hundreds of times, what must be equal between two of them, and ways to stop one."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from minigpt.config import Config, load_config
from minigpt.objectives import PretrainObjective
from minigpt.storage import fs, list_checkpoints
from minigpt.training import Result, Trainer, callbacks, run, train, trainer
from minigpt.training.console import ConsoleLogger
from minigpt.training.journal import RowJournal

VARYING = ("time", "perf/", "memory/")  # what may differ between two runs of one config


def text(characters: int = 1500, seed: int = 0) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice("abcdefgh \n") for _ in range(characters))


def config(**changes: Any) -> Config:
    """One block, dropout, two micro-batches a step, and everything that may happen beside the loop."""
    tree = {
        "run": {"seed": 1, "device": "cpu", "threads": 1},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 16, "dropout": 0.1},
        "tokenizer": {"kind": "char"},
        "data": {"train": {"text": text()}},
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_steps": 2},
        "training": {"max_steps": 6, "batch_tokens": 64, "micro_batch": 2},
        "evaluation": {"every_steps": 3, "max_tokens": 64},
        "checkpoint": {"every_steps": 2},
        "loggers": {"every_steps": 1, "console": "quiet"},
        "callbacks": {"sample": {"every_steps": 3, "max_new_tokens": 6, "prompt": "a"}, "monitor": {"every_steps": 4}},
    }
    for key, value in changes.items():
        *sections, leaf = key.split("__")
        node: dict[str, Any] = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return load_config(tree)[0]


class Console(ConsoleLogger):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.metrics: list[dict[str, Any]] = []

    def log(self, metrics: dict[str, Any]) -> None:
        self.metrics.append(metrics)

    def message(self, text: str) -> None:
        self.lines.append(text)


def train_quietly(settings: Config, folder: Path, **options: Any) -> Result:
    options.setdefault("console", Console())
    return train(settings, run_dir=folder, **options)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on how often it was stopped."""
    last = list_checkpoints(folder)[-1]
    state = json.loads((last / "trainer_state.json").read_text())
    for name in ("elapsed", "files"):  # the log holds times, whose digits vary
        state["trainer"].pop(name)
    files = [folder / "model" / "model.safetensors", last / "model.safetensors", last / "optimizer.safetensors"]
    journal = folder / "skipped.jsonl"
    return {
        "files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        "last": last.name,
        "state": state,
        "metrics": metrics(folder),
        "samples": (folder / "samples.jsonl").read_text(),
        "journal": journal.read_text() if journal.exists() else "",
    }


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long and changes nothing here: measuring the machine, waiting for the disk."""
    monkeypatch.setattr(trainer, "peak_flops", lambda *arguments: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def kit() -> SimpleNamespace:
    return SimpleNamespace(
        config=config,
        text=text,
        train=train_quietly,
        outcome=outcome,
        metrics=metrics,
        measure=measure,
        Console=Console,
    )


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Trackio keeps its database: it looks once, when it is imported, so no test may import it before this."""
    if "trackio" in sys.modules:
        pytest.skip("trackio was imported already, and has a database elsewhere")
    folder = tmp_path_factory.mktemp("trackio")
    os.environ["TRACKIO_DIR"] = str(folder)
    pytest.importorskip("trackio")
    return folder


class Killed(BaseException):
    """The process is dead: nothing that runs afterwards reaches the disk or makes a step."""


class Chaos:
    """Counts the moments of a run at which it can be stopped, and stops it at one of them.

    Moments lie before and after (for a write also in the middle of) each change to the disk, each hook, each
    micro-batch of training and evaluation, each drawing of a sample, each line of a log.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moments: list[str] = []
        self.at: int | None = None
        self.dead = False
        self.signal: int | None = None  # what to send instead of a sudden death
        places: list[tuple[Any, str]] = [(fs, n) for n, f in vars(fs).items() if isinstance(f, FunctionType)]
        places += [(PretrainObjective, "training_step"), (PretrainObjective, "validation_step")]
        places += [(callbacks, "generate"), (RowJournal, "_write"), (run, "save_model")]
        places += [
            (Trainer, n) for n in ("_hook", "log", "log_sample", "load", "evaluate", "_clip_factor", "_after_step")
        ]
        for owner, name in places:
            monkeypatch.setattr(owner, name, self._wrap(name, getattr(owner, name)))

    def reset(self, at: int | None = None, signal: int | None = None) -> None:
        self.moments, self.at, self.signal, self.dead = [], at, signal, False

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            label = f"{name} {arguments[1]}" if name == "_hook" else name
            self._moment(f"before {label}")
            if name == "write_file":
                self._moment(f"during {label}", lambda: _half(*arguments))
            result = real(*arguments, **options)
            self._moment(f"after {label}")
            return result

        return call

    def _moment(self, label: str, last_deed: Callable[[], None] = lambda: None) -> None:
        if self.dead:
            raise Killed
        self.moments.append(label)
        if len(self.moments) - 1 != self.at:
            return
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)
            return
        self.dead = True
        last_deed()
        raise Killed


def _half(path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])


def measure(chaos: Chaos, settings: Config, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What an undisturbed run gives, and its moments once the cache is filled."""
    train_quietly(settings, folder / "first")
    chaos.reset()
    train_quietly(settings, folder / "whole")
    assert outcome(folder / "first") == outcome(folder / "whole")
    return outcome(folder / "whole"), list(chaos.moments)


@pytest.fixture
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Chaos:
    return Chaos(monkeypatch)


ZYGOTE = """
import json, os, sys
import torch
import minigpt.training, minigpt.cli.app
from minigpt.cli import main
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.environ.update(request["environment"])
        status = main(request["arguments"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Process:
    """A real process that runs a `minigpt` command."""

    def __init__(self, zygote: subprocess.Popen[str], arguments: list[str], output: Path) -> None:
        self._zygote, self._output = zygote, output
        environment = {"MINIGPT_CACHE": os.environ["MINIGPT_CACHE"]}
        request = {"arguments": arguments, "output": str(output), "environment": environment}
        assert zygote.stdin is not None and zygote.stdout is not None
        zygote.stdin.write(json.dumps(request) + "\n")
        zygote.stdin.flush()
        self.pid = int(zygote.stdout.readline())

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):  # it was done
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status (minus the signal's number if a signal ended it)."""
        assert self._zygote.stdout is not None
        return int(self._zygote.stdout.readline())

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain; the process said: {self.output}"
            time.sleep(0.002)


@pytest.fixture(scope="session")
def _zygote() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported PyTorch once and forks for each command: a real process in a tenth of a second."""
    source = str(Path(run.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def minigpt(_zygote: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Process]:
    """`minigpt("train", ...)` starts the command; one at a time."""
    return lambda *arguments: Process(_zygote, [str(a) for a in arguments], tmp_path / "output.txt")
