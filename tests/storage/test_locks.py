"""Locks exclude others, name the holder, and die with the process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from minigpt.config import RequestError, WorkError
from minigpt.storage import lock_folder, wait_lock

HOLDER = """
import sys, time
from pathlib import Path
from minigpt.storage import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_second_lock_is_refused_naming_the_holder(tmp_path):
    run = tmp_path / "new" / "run"
    with (
        lock_folder(run) as lock,
        pytest.raises(RequestError, match=f"{run} is in use by process {os.getpid()} on {socket.gethostname()}"),
    ):
        lock_folder(run)
    lock.release()  # a second time does nothing
    lock_folder(run).release()


def test_a_killed_holder_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RequestError, match=f"in use by process {holder.pid} on "):
            lock_folder(tmp_path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    lock_folder(tmp_path).release()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match=r"run folder .* cannot be used: not a directory"):
        lock_folder(tmp_path / "file" / "run")


def test_file_system_without_locks_is_an_error_not_a_fallback(tmp_path, monkeypatch):
    def refuse(descriptor, shared):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("minigpt.storage.lock._acquire", refuse)
    with pytest.raises(RequestError, match="no locks available"):
        lock_folder(tmp_path)


def test_wait_lock_waits_for_the_holder(tmp_path):
    path = tmp_path / "entry.lock"
    lines = []
    first = wait_lock(path)
    threading.Timer(0.15, first.release).start()
    start = time.monotonic()
    with wait_lock(path, timeout=30, on_wait=lines.append):
        assert time.monotonic() - start >= 0.1
    assert len(lines) == 1 and f"process {os.getpid()}" in lines[0]


def test_wait_lock_gives_up(tmp_path):
    path = tmp_path / "entry.lock"
    with wait_lock(path), pytest.raises(WorkError, match=r"gave up after 0\.05 seconds"):
        wait_lock(path, timeout=0.05)
    with pytest.raises(WorkError, match="could not lock"):
        wait_lock(tmp_path / "absent" / "x.lock")
