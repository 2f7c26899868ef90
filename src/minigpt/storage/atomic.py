"""Folders and files that are there whole or not at all, whenever the process dies or the disk fills up.

A folder is written under a temporary name, each file is fsynced, `MANIFEST.json` (size and sha256 of every file) comes
last, and one rename puts it in place. `verify_folder` checks a folder against its manifest. Temporary names are
`.tmp-NAME-PID-RANDOM` (being written or deleted) and `.old-NAME-PID-RANDOM` (moved aside by a replacement);
`clean_stale` finishes what a killed process left. The order of the steps is that of "All File Systems Are Not Created
Equal" (Pillai et al., OSDI 2014): data before name, name before the old copy goes.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from minigpt.config import WorkError
from minigpt.storage import fs

MANIFEST = "MANIFEST.json"
MANIFEST_FORMAT = 1
STALE_SECONDS = 3600.0  # a temporary name in a shared folder is only called stale after an hour without a change
_TEMPORARY = re.compile(r"\.(?P<kind>tmp|old)-(?P<name>.+)-(?P<pid>\d+)-[0-9a-f]{8}", re.DOTALL)
# What a damaged disk or a half-copied folder answers. Other errors (no permission, too many open files) say nothing
# about the folder, which must then not be treated as damaged.
_DAMAGE = {errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, getattr(errno, "EUCLEAN", errno.EIO)}


class CorruptFolderError(WorkError):
    """A folder is not what its manifest says; `reason` names the file and what is wrong with it."""

    def __init__(self, folder: Path, reason: str, message: str | None = None) -> None:
        super().__init__(message or f"{folder} is damaged: {reason}")
        self.folder = folder
        self.reason = reason


@contextlib.contextmanager
def atomic_folder(
    final: Path, *, replace: bool = False, kept: str | None = None, called: Path | None = None
) -> Iterator[Path]:
    """Yield an empty temporary folder beside `final`; when the block ends well, publish it as `final` with a manifest.

    If the block raises, or the process dies, `final` is as it was. With `replace` an existing `final` is moved aside
    first and removed afterwards (`clean_stale` puts it back if the process dies between the two renames). Disk errors
    become a `WorkError` about `called` (None: `final`) that ends with `kept`, a few words on what is still there.
    """
    parent = final.parent
    temporary = parent / temporary_name("tmp", final.name)
    try:
        if os.path.lexists(final) and not replace:
            raise WorkError(f"could not write {final}: it exists already")
        parent.mkdir(parents=True, exist_ok=True)
        fs.make_folder(temporary)
        yield temporary
        _seal(temporary)
        _publish(temporary, final)
    except BaseException as error:
        # The first error is the one to tell; what cannot be removed now is found by clean_stale later.
        with contextlib.suppress(OSError):
            if os.path.lexists(temporary):
                fs.remove_tree(temporary)
        if isinstance(error, OSError) and _concerns(error, parent):
            raise write_error(called or final, error, kept) from error
        raise


def atomic_write(path: Path, data: bytes | str, *, kept: str | None = None) -> None:
    """Write or replace one file, durably, in one step; text is UTF-8. Disk errors become a `WorkError` as above."""
    temporary = path.parent / temporary_name("tmp", path.name)
    try:
        fs.write_file(temporary, data.encode() if isinstance(data, str) else data)
        fs.sync_file(temporary)
        fs.replace_file(temporary, path)
        fs.sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            if os.path.lexists(temporary):
                fs.remove_file(temporary)
        if isinstance(error, OSError):
            raise write_error(path, error, kept) from error
        raise


def discard_folder(folder: Path) -> None:
    """Delete a folder such that a kill never leaves half of it under its name. Raises `OSError`."""
    doomed = folder.parent / temporary_name("tmp", folder.name)
    fs.rename(folder, doomed)
    fs.remove_tree(doomed)


def verify_folder(folder: Path, *, skip: Collection[str] = (), hashes: bool = True) -> None:
    """Check every file but those in `skip` against the manifest; `hashes=False` compares names and sizes only.

    Raises `CorruptFolderError` naming the first file that is wrong; files that the manifest does not list are ignored
    (a file manager may leave some).
    """
    for name, entry in read_manifest(folder)["files"].items():
        if name in skip:
            continue
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["size"]:
                raise CorruptFolderError(folder, f"{name} has {size} bytes instead of {entry['size']}")
            if hashes and _sha256(path) != entry["sha256"]:
                raise CorruptFolderError(folder, f"{name} does not match its sha256")
        except OSError as error:
            raise read_error(folder, name, error) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, `{"format", "files": {name: {"size", "sha256"}}, "sha256"}`; `CorruptFolderError` if not intact."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise read_error(folder, MANIFEST, error) from error
    try:
        manifest = json.loads(data)
        intact = data == _manifest_bytes(manifest["format"], manifest["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptFolderError(folder, f"{MANIFEST} does not match its own sha256")
    if manifest["format"] != MANIFEST_FORMAT:
        raise WorkError(
            f"{folder} was written by another version of minigpt (manifest format {manifest['format']}, this one reads "
            f"{MANIFEST_FORMAT}): use that version"
        )
    return dict(manifest)


def recover_replaced(parent: Path) -> None:
    """Put back what a replacement had moved aside when the process died before the new one was in place.

    Only for a caller that knows that no replacement is going on. Raises `OSError`.
    """
    for path in sorted(parent.glob(".old-*")):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and not os.path.lexists(parent / match["name"]):
            fs.rename(path, parent / match["name"])
            fs.sync_folder(parent)


def clean_stale(parent: Path, *, locked: bool = False, log: Callable[[str], None] | None = None) -> None:
    """Finish what killed processes left in `parent`: remove temporary folders and files, put back what was moved aside.

    `locked` says that the caller holds the lock under which every writer of `parent` works and writes nothing there at
    the moment: all are stale then. Otherwise only those whose process is gone and that nobody changed for an hour.
    """
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return
    found = [match for name in names if name.startswith(".") and (match := _TEMPORARY.fullmatch(name))]
    for match in sorted(found, key=lambda match: match.string):  # few of many: a cache may have thousands of entries
        path = parent / match.string
        if not (locked or _is_stale(path, int(match["pid"]))):
            continue
        try:
            if match["kind"] == "old" and not os.path.lexists(parent / match["name"]):
                fs.rename(path, parent / match["name"])  # this one alone: others may be on their way
                fs.sync_folder(parent)
            elif path.is_dir():
                fs.remove_tree(path)
            else:
                fs.remove_file(path)
        except OSError as error:
            if log is not None:
                log(f"could not clean up {path}, left by a killed process: {reason(error)}")


def write_error(path: Path, error: OSError, kept: str | None = None) -> WorkError:
    """The sentence for a write that the system refused."""
    return WorkError(f"could not write {path}: {reason(error)}" + (f"; {kept}" if kept else ""))


def read_error(folder: Path, name: str, error: OSError) -> WorkError:
    """The sentence for a file that cannot be read: damage only if the error means that, and not, say, no permission."""
    if error.errno == errno.ENOENT:
        return CorruptFolderError(folder, f"{name} is missing")
    if error.errno in _DAMAGE:
        return CorruptFolderError(folder, f"{name} cannot be read ({reason(error)})")
    return WorkError(f"could not read {folder / name}: {reason(error)}")


def reason(error: OSError) -> str:
    """What the system says, as it fits into a sentence: `no space left on device`."""
    text = error.strerror or str(error) or type(error).__name__
    return text[0].lower() + text[1:]


def temporary_name(kind: str, name: str) -> str:
    """A name for something on its way in (`tmp`) or moved aside (`old`), which `clean_stale` recognises."""
    return f".{kind}-{name}-{os.getpid()}-{secrets.token_hex(4)}"


def _seal(folder: Path) -> None:
    """Make every file durable, then write the manifest, durable too."""
    files: dict[str, dict[str, int | str]] = {}
    folders = [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
            continue
        fs.sync_file(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    fs.write_file(folder / MANIFEST, _manifest_bytes(MANIFEST_FORMAT, files))
    fs.sync_file(folder / MANIFEST)
    for path in reversed(folders):
        fs.sync_folder(path)


def _publish(temporary: Path, final: Path) -> None:
    aside = final.parent / temporary_name("old", final.name)
    try:
        if os.path.lexists(final):
            fs.rename(final, aside)
        fs.rename(temporary, final)
    except BaseException:  # an interrupt between the two must not leave the place empty either
        if os.path.lexists(aside) and not os.path.lexists(final):
            fs.rename(aside, final)
        raise
    fs.sync_folder(final.parent)
    if os.path.lexists(aside):
        with contextlib.suppress(OSError):  # the new one is in place; clean_stale removes the old one later
            fs.remove_tree(aside)


def _manifest_bytes(version: int, files: dict[str, Any]) -> bytes:
    """The one way in which a manifest is written, so that any flipped bit makes it differ from its own content."""
    content = {"format": version, "files": files}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _concerns(error: OSError, parent: Path) -> bool:
    """Whether a disk error is about our own files (one without a name is from a write), not about a source read."""
    if error.filename is None or not isinstance(error.filename, str | bytes | os.PathLike):
        return True
    name = Path(os.path.abspath(os.fsdecode(error.filename)))
    parent = Path(os.path.abspath(parent))
    return name.is_relative_to(parent) or parent.is_relative_to(name)


def _is_stale(path: Path, pid: int) -> bool:
    if _is_alive(pid):
        return False
    try:
        newest = max(item.stat().st_mtime for item in (path, *path.rglob("*")))
    except OSError:  # vanishing under our eyes: somebody is at work on it
        return False
    return time.time() - newest > STALE_SECONDS


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
