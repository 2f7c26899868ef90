"""The cache is where the variable or the system says, and says so when it cannot be written."""

import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.config import RequestError, WorkError
from minigpt.storage import cache_dir, cache_entry_lock
from minigpt.storage.cache import _location


def test_variable_wins_and_the_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b"
    assert cache_dir().is_dir()


def test_places_of_the_systems(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert _location({"MINIGPT_CACHE": "~/x", "XDG_CACHE_HOME": "/y"}, "linux") == Path("/home/ann/x")
    assert _location({"MINIGPT_CACHE": "", "XDG_CACHE_HOME": "/y"}, "linux") == Path("/y/minigpt")
    assert _location({"XDG_CACHE_HOME": "relative"}, "linux") == Path("/home/ann/.cache/minigpt")
    assert _location({}, "linux") == Path("/home/ann/.cache/minigpt")
    assert _location({}, "darwin") == Path("/home/ann/Library/Caches/minigpt")
    assert _location({"LOCALAPPDATA": "/local"}, "win32") == Path("/local/minigpt/cache")


def test_unwritable_cache_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RequestError, match=r"cache folder .*not a directory.*MINIGPT_CACHE"):
        cache_dir()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RequestError, match=r"not writable.*MINIGPT_CACHE"):
        cache_dir()


def test_entry_lock_excludes_and_is_per_entry():
    with cache_entry_lock("shards-1"):
        with pytest.raises(WorkError, match="gave up"):
            cache_entry_lock("shards-1", timeout=0.02)
        cache_entry_lock("shards-2", timeout=0.02).release()
    cache_entry_lock("shards-1", timeout=0.02).release()
    for name in ("../x", "", "a/b"):
        with pytest.raises(ValueError):
            cache_entry_lock(name)


def test_importing_storage_needs_no_torch():
    code = "import sys, minigpt.storage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
