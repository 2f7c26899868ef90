"""Where, when and with what each session of a run was made: one line of RUN/environment.jsonl for every start.

A session is one process that trains: the first start of a run, and each time that it goes on. What is written here is
for people and for the report; nothing reads it back to train.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from minigpt.config import WorkError
from minigpt.training.cores import available_cores

ENVIRONMENT_FILE = "environment.jsonl"
PACKAGES = ("minigpt", "torch", "numpy", "tokenizers", "safetensors")
GIT_SECONDS = 5.0  # a repository on a slow network disk must not hold a run up


def record(
    run_dir: Path,
    step: int,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
    processes: int = 1,
) -> None:
    """Add this session, which goes on after `step`, to the run's list. Raises WorkError if the disk refuses.

    processes: how many make it, if more than one; the line is that of the main one.
    """
    path = run_dir / ENVIRONMENT_FILE
    try:
        with open(path, "a+b") as file:
            if file.tell():  # a process that was killed may have left half a line
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            line = session(step, max_steps, device) | ({"processes": processes} if processes > 1 else {})
            file.write((json.dumps(line, ensure_ascii=True) + "\n").encode())
    except OSError as error:
        raise WorkError(f"could not write {path}: {error.strerror}") from error


def session(step: int, max_steps: int | None = None, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What is known of this process and its machine, as plain values; null where the machine does not tell."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "step": step,
        "max_steps": max_steps,
        "command": command_line(),
        "machine": {
            "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
            "cpu": cpu_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "memory_gb": memory_gb(),
            "gpu": gpu_name(torch.device(device)),
        },
        "versions": versions(),
        "git": git_state(Path.cwd()),
    }


def versions() -> dict[str, str | None]:
    """Of Python and the packages that a run computes with."""
    # torch's own word names its build (+cpu, +cu130), which the installed package's version may leave out
    installed = {name: _installed(name) for name in PACKAGES}
    return {"python": platform.python_version()} | installed | {"torch": torch.__version__}


def command_line() -> str:
    """The command as one would type it; `-m` for a package that was run as a module."""
    program = Path(sys.argv[0])
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])


def cpu_name() -> str | None:
    """The processor's name as its maker calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:  # not Linux
        return platform.processor() or None
    return platform.processor() or None


def memory_gb() -> float | None:
    """Main memory of the machine in GB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows, and systems that do not tell
        return None


def gpu_name(device: torch.device) -> str | None:
    """The GPU that the run uses and how much memory it has; None on the CPU."""
    if device.type != "cuda":
        return None if device.type == "cpu" else device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.total_memory / 1e9:.0f} GB)"


def git_state(folder: Path) -> dict[str, Any] | None:
    """`{"commit", "dirty"}` of the repository that `folder` lies in; None outside one, or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    # Optional locks off: `git status` would otherwise refresh the index, a write into a repository that is not ours.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
