"""Claim: SIGKILL of any process, while it trains or while all of them save, changes nothing about how a run ends.

Trains a small network on several processes under `torchrun --max-restarts`: once undisturbed; then again and again,
with a random process killed at random steps and in the middle of saves. torchrun starts all processes anew each time,
and they go on from the newest checkpoint. Weights, optimizer state, samples and metrics (bar time, perf/* and memory/*)
must be equal to those of the undisturbed run, to the bit, and nothing half-written may be left. Prints a table; exit
status 1 if anything differs. Linux only.

    python benchmarks/kill_processes.py [--kills 20] [--mesh fsdp=2] [--seed 0] [--keep FOLDER]
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kill_resume import SETTINGS, SOURCE, VARYING, is_saving, newest, sha256, steps_logged, wait_for

STEPS = 120
KILLS_PER_RUN = 5  # then a run may end, and its bytes are compared


class Bench:
    """A folder with the input, the undisturbed run, and the runs that are disturbed."""

    def __init__(self, folder: Path, mesh: dict[str, int], seed: int) -> None:
        self.folder, self.draw, self.processes = folder, random.Random(seed), math.prod(mesh.values())
        words = ["the", "a", "cat", "dog", "house", "sees", "has", "red", "blue", "ball", "and", "in"]
        (folder / "text.txt").write_text(" ".join(self.draw.choice(words) for _ in range(6000)))
        settings = SETTINGS | {
            "data": {"train": str(folder / "text.txt")},
            "training": SETTINGS["training"] | {"max_steps": STEPS},
            "distributed": {"mesh": mesh},
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        source = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = os.environ | {
            "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MINIGPT_CACHE": str(folder / "cache"),
        }  # fmt: skip
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.restart_seconds: list[float] = []

    def start(self, run: Path) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"),
            *(f"--max-restarts={KILLS_PER_RUN}", "-m", "minigpt", "train", str(self.folder / "settings.json")),
            *("--run-dir", str(run)),
        ]
        with open(self.folder / f"output-{run.name}.txt", "ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment)

    def kill_once(self, run: Path, launcher: subprocess.Popen[bytes]) -> bool:
        """Kill one of the processes at a random step or in a save; False if the run has ended before."""
        kind = self.draw.choice(["while training", "while saving"])
        target = min(steps_logged(run) + self.draw.randint(1, STEPS // KILLS_PER_RUN), STEPS - 1)
        wait_for(lambda: steps_logged(run) >= target or launcher.poll() is not None)
        if kind == "while saving":
            wait_for(lambda: is_saving(run) or launcher.poll() is not None)
            time.sleep(self.draw.random() * 0.05)
        else:
            time.sleep(self.draw.random() * 0.05)
        victims = processes_of(launcher.pid)
        if launcher.poll() is not None or len(victims) < self.processes:
            return launcher.poll() is None
        rank = self.draw.randrange(self.processes)
        saving = is_saving(run)
        os.kill(victims[rank], signal.SIGKILL)
        self.counts["kills"] += 1
        self.counts[kind] += 1
        self.counts["with a save unfinished"] += saving
        self.counts["of the first process"] += rank == 0
        began = time.monotonic()
        wait_for(lambda: not set(victims.values()) & set(processes_of(launcher.pid).values()), 90.0)
        seconds = time.monotonic() - began
        self.restart_seconds.append(seconds)
        if seconds > 60:
            self.problems.append(f"{run.name}: the others went on for {seconds:.0f} s without process {rank}")
        return launcher.poll() is None

    def compare(self, run: Path, expected: dict[str, Any]) -> None:
        found = outcome(run)
        for name in expected:
            if found[name] != expected[name]:
                self.counts[f"{name} differ"] += 1
                self.problems.append(f"{run.name}: {name} differ")
        left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        if left:
            self.problems.append(f"{run.name}: left behind: {left}")


def processes_of(launcher: int) -> dict[int, int]:
    """The processes that torchrun has started and that live, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == launcher and state != "Z":
                environment = dict(p.split("=", 1) for p in (folder / "environ").read_text().split("\0") if "=" in p)
                found[int(environment["RANK"])] = int(folder.name)
        except (OSError, KeyError, ValueError):  # gone meanwhile, or none of the run's
            continue
    return found


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = newest(run)[0]
    return {
        "weights": [sha256(run / "model" / "model.safetensors"), sha256(last / "model.safetensors")],
        "optimizer states": [last.name, *map(sha256, sorted(last.glob("optimizer*.safetensors")))],
        "metrics": [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines],
        "samples": sha256(run / "samples.jsonl"),
    }


def killing(bench: Bench, kills: int, expected: dict[str, Any]) -> None:
    """Kill until it has been done often enough; compare each run when it has come to its end."""
    number = 0
    while bench.counts["kills"] < kills and not bench.problems:
        number += 1
        run = bench.folder / f"killed-{number}"
        launcher = bench.start(run)
        try:
            before = bench.counts["kills"]
            while bench.counts["kills"] < min(kills, before + KILLS_PER_RUN) and bench.kill_once(run, launcher):
                pass
            status = launcher.wait(timeout=600)
        finally:
            launcher.kill()
        if status != 0:
            bench.problems.append(f"{run.name} ended with status {status}: see its output with --keep")
            return
        bench.counts["runs"] += 1
        bench.compare(run, expected)
        print(f"  {bench.counts['kills']} kills, {bench.counts['runs']} runs compared", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often to kill (default 20)")
    parser.add_argument("--mesh", default="fsdp=2", help="such as dp=2,tp=2 (default fsdp=2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of steps, delays and victims (default 0)")
    parser.add_argument("--keep", type=Path, help="do it in this folder and leave everything there")
    arguments = parser.parse_args()
    mesh = {name: int(size) for name, _, size in (pair.partition("=") for pair in arguments.mesh.split(","))}
    with tempfile.TemporaryDirectory(prefix="minigpt-kill-processes-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, mesh, arguments.seed)
        print(f"undisturbed run of {bench.processes} processes", flush=True)
        if bench.start(folder / "whole").wait() != 0:
            print((folder / "output-whole.txt").read_text(errors="replace"))
            return 1
        expected = outcome(folder / "whole")
        print("killing", flush=True)
        killing(bench, arguments.kills, expected)
    for problem in bench.problems:
        print(problem)
    kinds = ["while training", "while saving", "with a save unfinished", "of the first process"]
    for row in ["kills", *kinds, "runs", *(f"{name} differ" for name in expected)]:
        print(f"{'  ' if row in kinds else ''}{row:{26 if row in kinds else 28}}{bench.counts[row]:6}")
    if bench.restart_seconds:
        print(f"{'seconds until all had ended':28}{max(bench.restart_seconds):6.1f} at most")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
