#!/usr/bin/env python3
"""Everything a fresh machine needs, in one command: makes .venv beside this file, installs minigpt there, runs it.

    python3 start.py demo          train a story teller in about three minutes, no network needed after the install
    python3 start.py test          the tests
    python3 start.py check         the tests, the linter and the type checker
    python3 start.py COMMAND ...   any other minigpt command

Needs only Python 3.11 or newer. MINIGPT_VENV names another folder for the environment.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("MINIGPT_VENV", ROOT / ".venv"))
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(extras: str) -> None:
    """Install minigpt (editable) with these extras, unless that was done for this very pyproject.toml."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest() + extras
    stamp = VENV / f"installed{extras}.txt"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setting up {VENV} (once; a minute or two)", file=sys.stderr, flush=True)
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    command = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--editable",
        f"{ROOT}{extras}",
    ]
    subprocess.run(command, check=True)
    stamp.write_text(wanted)


def main(arguments: list[str]) -> int:
    """Run a command in the environment; returns its exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file must say so to an older Python)
        print("minigpt needs Python 3.11 or newer", file=sys.stderr)
        return 2
    if not arguments:
        print((__doc__ or "").strip())
        return 2
    testing = arguments[0] in ("test", "check")
    try:
        install("[dev]" if testing else "")
    except subprocess.CalledProcessError as error:
        print(f"start.py: the installation failed (pip's exit status {error.returncode})", file=sys.stderr)
        return 1
    if not testing:
        command = [str(PYTHON), "-m", "minigpt", *arguments]
        if os.name == "nt":
            return subprocess.run(command).returncode
        os.environ.setdefault("MINIGPT_COMMAND", "python3 start.py")  # for commands that minigpt suggests
        os.execv(PYTHON, command)  # in this very process, so that Ctrl-C reaches minigpt alone
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    spread = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    checks = [["pytest", *spread, *arguments[1:]]]
    if arguments[0] == "check":
        checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], *checks]
        # what the pages and the notebook tell people to type: a minute that the tests do without
        checks.append(["pytest", "-m", "slow", "tests/test_notebook.py", "tests/test_docs.py"])
    for check in checks:
        # the threads of several processes would be in each other's way
        environment = {"OMP_NUM_THREADS": "1", **os.environ} if "-n" in check else None
        status = subprocess.run([PYTHON, "-m", *check], cwd=ROOT, env=environment).returncode
        if status:
            print(f"start.py: {check[0]} failed", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
