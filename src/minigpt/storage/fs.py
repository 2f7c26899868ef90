"""The few calls by which storage changes the disk.

Everything that storage does to a disk goes through here, so that a test can stop the program before, in the middle of
and after each call and look at what is left (tests/storage/conftest.py).
"""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make one folder whose parent exists."""
    os.mkdir(path)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file; `FileExistsError` if there is one already."""
    with open(path, "xb") as file:
        file.write(data)


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a new file piece by piece; `FileExistsError` if there is one already."""
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    # Windows wants a descriptor that may write; elsewhere reading is enough and works on a read-only file too.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the folder's list of names is on the disk: a rename is durable only after that."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some network file systems say: they have no such operation
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a folder (or file) another name, in one step; the target must not exist."""
    os.rename(source, target)


def replace_file(source: Path, target: Path) -> None:
    """Put a file in the place of another, in one step."""
    os.replace(source, target)


def remove_file(path: Path) -> None:
    """Delete a file."""
    os.unlink(path)


def remove_tree(path: Path) -> None:
    """Delete a folder and what is in it."""
    shutil.rmtree(path)
