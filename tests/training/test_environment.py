"""What is written down of the machine and the programs at the start of each session."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt.config import WorkError
from minigpt.training import environment


def sessions(folder):
    return [json.loads(line) for line in (folder / "environment.jsonl").read_text().splitlines()]


def test_each_session_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/minigpt", "train", "demo", "data.train=a b.txt"])
    environment.record(tmp_path, 0, 300, "cpu")
    environment.record(tmp_path, 120, 300, torch.device("cpu"))
    first, second = sessions(tmp_path)
    assert (first["step"], second["step"], first["max_steps"]) == (0, 120, 300)
    assert first["command"] == "minigpt train demo 'data.train=a b.txt'"
    assert first["versions"]["torch"] == torch.__version__ and first["versions"]["python"] == platform.python_version()
    machine = first["machine"]
    assert machine["threads"] == torch.get_num_threads() and machine["gpu"] is None
    assert 1 <= machine["cores"] <= (os.cpu_count() or 1)
    if sys.platform == "linux":
        pages = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
        assert machine["memory_gb"] == pytest.approx(pages * 1024 / 1e9, rel=0.02)


def test_a_module_that_was_run_is_named_as_one(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/site-packages/minigpt/__main__.py", "train", "demo"])
    assert environment.command_line() == "python -m minigpt train demo"


def test_half_a_line_of_a_process_that_was_killed_is_left_alone(tmp_path):
    (tmp_path / "environment.jsonl").write_text('{"started": "2026')
    environment.record(tmp_path, 0)
    lines = (tmp_path / "environment.jsonl").read_text().splitlines()
    assert lines[0] == '{"started": "2026' and json.loads(lines[1])["step"] == 0


def test_the_commit_and_whether_anything_was_changed(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                       capture_output=True)  # fmt: skip

    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert environment.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "-m", "first")
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert environment.git_state(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "new.txt").write_text("not part of the commit, so no change of it")
    assert environment.git_state(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "a.txt").write_text("b")
    assert environment.git_state(tmp_path) == {"commit": head, "dirty": True}


def test_no_git_and_no_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert environment.git_state(tmp_path) is None


def test_a_disk_that_refuses(tmp_path):
    (tmp_path / "environment.jsonl").mkdir()
    with pytest.raises(WorkError, match=r"could not write .*environment\.jsonl"):
        environment.record(tmp_path, 0)
