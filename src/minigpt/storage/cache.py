"""Where downloads and token shards are kept between runs."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from minigpt.config import RequestError
from minigpt.storage.atomic import reason
from minigpt.storage.lock import Lock, wait_lock

CACHE_VARIABLE = "MINIGPT_CACHE"


def cache_dir() -> Path:
    """The cache folder, made if need be: `MINIGPT_CACHE`, or `minigpt` in the place that the system has for caches.

    Raises `RequestError` if it cannot be written.
    """
    try:
        path = _location(os.environ, sys.platform)
    except RuntimeError as error:  # a user without a home folder
        raise RequestError(f"no place for the cache is known: set {CACHE_VARIABLE} to a folder") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "it is not writable")
    except OSError as error:
        raise RequestError(
            f"cache folder {path} cannot be used: {reason(error)}; set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return path


def cache_entry_lock(name: str, *, timeout: float = 3600.0, on_wait: Callable[[str], None] | None = None) -> Lock:
    """Lock one entry of the cache against other processes, waiting for them; a context manager.

    `name` is the entry's key: letters, digits, `.`, `_` and `-`. Raises as `cache_dir` and `wait_lock` do.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
        raise ValueError(f"{name!r} is no name for a cache entry")
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RequestError(f"cache folder {folder} cannot be used: {reason(error)}; set {CACHE_VARIABLE}") from error
    return wait_lock(folder / f"{name}.lock", timeout, on_wait)


def _location(environment: Mapping[str, str], platform: str) -> Path:
    """XDG base directories on Linux, ~/Library/Caches on macOS, LOCALAPPDATA on Windows."""
    if environment.get(CACHE_VARIABLE):
        return Path(environment[CACHE_VARIABLE]).expanduser()
    if platform == "win32" and environment.get("LOCALAPPDATA"):
        return Path(environment["LOCALAPPDATA"]) / "minigpt" / "cache"
    if platform == "darwin":
        return Path("~/Library/Caches/minigpt").expanduser()
    # The XDG specification says that a relative path there is to be ignored.
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "minigpt"
