"""Claim: a run killed with SIGKILL at random instants and resumed ends with the bytes of one that was left alone.

Trains a small network (dropout, accumulation, evaluation, samples, background saving) with `python -m minigpt train`
in processes of its own: once undisturbed; then again and again, killed at chosen steps, after random delays and inside
saves, and started again until it is done. Weights, optimizer state, samples and metrics (bar time, perf/* and
memory/*) must be equal. Then every file of the newest checkpoint is flipped and cut in turn: the one before must be
used, with one line about it, and the result must be the same again. Prints a table; exit status 1 if anything differs.

    python benchmarks/kill_resume.py [--kills 50] [--seed 0] [--keep FOLDER]
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
VARYING = ("time", "perf/", "memory/")  # metrics that differ between any two runs
KILLS_PER_RUN = 8  # then a run may end, and its bytes are compared
STEPS = 240

SETTINGS = {
    "run": {"seed": 7, "device": "cpu", "threads": 1},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 32, "dropout": 0.1},
    "tokenizer": {"kind": "char"},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 20},
    "training": {"max_steps": STEPS, "batch_tokens": 512, "micro_batch": 4},
    "evaluation": {"every_steps": 30, "max_tokens": 2048},
    "checkpoint": {"every_steps": 6},
    "loggers": {"every_steps": 1, "console": "plain"},
    "callbacks": {"sample": {"every_steps": 40, "max_new_tokens": 20, "prompt": "the "}},
}


class Bench:
    """A folder with the input, the undisturbed run, and the runs that are disturbed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        words = ["the", "a", "cat", "dog", "house", "sees", "has", "red", "blue", "ball", "and", "in"]
        text = " ".join(self.draw.choice(words) for _ in range(6000))
        (folder / "text.txt").write_text(text)
        settings = SETTINGS | {"data": {"train": str(folder / "text.txt")}}
        (folder / "settings.json").write_text(json.dumps(settings))
        source = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = os.environ | {
            "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MINIGPT_CACHE": str(folder / "cache"),
        }  # fmt: skip
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def start(self, run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "minigpt", "train", str(self.folder / "settings.json"), "--run-dir", str(run)]
        with open(self.folder / "output.txt", "wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def finish(self, run: Path) -> bool:
        """Run to the end; whether that was possible."""
        if self.start(run).wait() == 0:
            return True
        self.counts["unusable"] += 1
        self.problems.append(f"{run.name} could not go on: {self.output.strip().splitlines()[-1:]}")
        return False

    def compare(self, run: Path, expected: dict[str, Any], what: str) -> None:
        found = outcome(run)
        for name in expected:
            if found[name] != expected[name]:
                self.counts[f"{name} differ"] += 1
                self.problems.append(f"{run.name} ({what}): {name} differ")

    def kill_once(self, run: Path, startup: float, seconds: float) -> str | None:
        """Start the run and kill it: at a step, or after a delay. The kind of kill; None if it was done before."""
        kind = self.draw.choice(["at a step", "after a delay", "inside a save"])
        process = self.start(run)
        if kind != "after a delay":
            target = min(steps_logged(run) + self.draw.randint(1, STEPS // KILLS_PER_RUN), STEPS)
            wait_for(lambda: steps_logged(run) >= target or process.poll() is not None)
            if kind == "inside a save":
                wait_for(lambda: is_saving(run) or process.poll() is not None)
                time.sleep(self.draw.random() * 0.01)
            else:
                time.sleep(self.draw.random() * seconds / STEPS)
        else:
            delay = startup * 0.8 + self.draw.random() * (startup * 0.2 + seconds / KILLS_PER_RUN)
            wait_for(lambda: process.poll() is not None, delay)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            return None
        if status != -signal.SIGKILL:
            self.counts["unusable"] += 1
            self.problems.append(f"{run.name} ended by itself: {self.output.strip().splitlines()[-1:]}")
            return None
        self.counts["with a save unfinished"] += is_saving(run)
        return kind


def steps_logged(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b'"train/loss"')
    except FileNotFoundError:
        return 0


def is_saving(run: Path) -> bool:
    """Whether a save has begun and not ended (in a run that was killed: never will)."""
    return any((run / "checkpoints").glob(".tmp-*"))


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def newest(run: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = newest(run)[0]
    return {
        "weights": [sha256(run / "model" / "model.safetensors"), sha256(last / "model.safetensors")],
        "optimizer states": [last.name, sha256(last / "optimizer.safetensors")],
        "metrics": [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines],
        "samples": sha256(run / "samples.jsonl"),
    }


def killing(bench: Bench, kills: int, expected: dict[str, Any], startup: float, seconds: float) -> None:
    """Kill until it has been done often enough; compare each run when it has come to its end."""
    number = 0
    while bench.counts["kills"] < kills and not bench.counts["unusable"]:
        number += 1
        run = bench.folder / f"killed-{number}"
        for _ in range(min(KILLS_PER_RUN, kills - bench.counts["kills"])):
            kind = bench.kill_once(run, startup, seconds)
            if kind is None:
                break
            bench.counts["kills"] += 1
            bench.counts[kind] += 1
        if (run / "model").exists() or bench.finish(run):
            bench.counts["runs"] += 1
            bench.compare(run, expected, "killed and resumed")
        print(f"  {bench.counts['kills']} kills, {bench.counts['runs']} runs compared", flush=True)


def damaging(bench: Bench, expected: dict[str, Any]) -> None:
    """Flip a bit of, then cut, each file of a run's newest checkpoint."""
    base = bench.folder / "base"
    process = bench.start(base)
    wait_for(lambda: steps_logged(base) >= STEPS - 60 or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        bench.problems.append(f"SIGTERM ended the run with status {process.returncode}")
    damaged, previous = newest(base)[:2]
    for file in sorted(path for path in damaged.rglob("*") if path.is_file()):
        name = file.relative_to(damaged).as_posix()
        for how in ("flipped", "cut"):
            run = bench.folder / f"{how}-{name}"
            shutil.copytree(base, run)
            spoil(run / "checkpoints" / damaged.name / name, how, bench.draw)
            bench.counts["damaged files"] += 1
            if not bench.finish(run):
                continue
            said = [line for line in bench.output.splitlines() if "is damaged" in line]
            if len(said) != 1 or damaged.name not in said[0] or f"going on from {previous.name}" not in said[0]:
                bench.counts["messages wrong"] += 1
                bench.problems.append(f"{run.name}: instead of one clear line it said {said}")
            bench.compare(run, expected, "damaged and resumed")
            shutil.rmtree(run)
        print(f"  {name}: flipped and cut", flush=True)


def spoil(path: Path, how: str, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[draw.randrange(len(data)) :]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often to kill (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of steps, delays and damage (default 0)")
    parser.add_argument("--keep", type=Path, help="do it in this folder and leave everything there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minigpt-kill-resume-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, arguments.seed)
        print("undisturbed run", flush=True)
        began = time.monotonic()
        process = bench.start(folder / "whole")
        wait_for(lambda: steps_logged(folder / "whole") >= 1 or process.poll() is not None)
        startup = time.monotonic() - began
        if process.wait() != 0:
            print(bench.output)
            return 1
        seconds = time.monotonic() - began - startup
        expected = outcome(folder / "whole")
        print(f"  {STEPS} steps in {seconds:.1f} s after a start of {startup:.1f} s\nkilling", flush=True)
        killing(bench, arguments.kills, expected, startup, seconds)
        print("damaging", flush=True)
        damaging(bench, expected)
    for problem in bench.problems:
        print(problem)
    kinds = ["at a step", "after a delay", "inside a save", "with a save unfinished"]
    rows = ["kills", *kinds, "runs", "damaged files", "unusable"]
    for row in [*rows, *(f"{name} differ" for name in expected), "messages wrong"]:
        print(f"{'  ' if row in kinds else ''}{row:{26 if row in kinds else 28}}{bench.counts[row]:6}")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
