"""A published folder is whole, verified against its manifest, and a failed write leaves what was there."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.config import WorkError
from minigpt.storage import CorruptFolderError, atomic_folder, atomic_write, clean_stale, discard_folder, verify_folder
from minigpt.storage.atomic import read_manifest


def publish(final: Path, text: str, replace: bool = False) -> None:
    with atomic_folder(final, replace=replace) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(text.encode() * 100)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_published_folder_has_files_and_true_manifest(tmp_path):
    final = tmp_path / "new" / "out"  # the parent is made too
    publish(final, "hello")
    manifest = json.loads((final / "MANIFEST.json").read_text())
    assert manifest["format"] == 1
    assert set(manifest["files"]) == {"a.txt", "sub/b.bin"}
    for name, entry in manifest["files"].items():
        data = (final / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    verify_folder(final)
    assert names(final.parent) == ["out"]


def test_order_of_the_steps(tmp_path, disk):
    """Files are durable before the manifest, the manifest before the rename, and the rename is made durable."""
    publish(tmp_path / "out", "x")
    assert disk.calls == [
        "make_folder",
        "sync_file",
        "sync_file",
        "write_file",
        "sync_file",
        "sync_folder",
        "sync_folder",
        "rename",
        "sync_folder",
    ]


def test_existing_target_is_an_error_unless_replaced(tmp_path):
    final = tmp_path / "out"
    publish(final, "one")
    with pytest.raises(WorkError, match="exists already"):
        publish(final, "two")
    assert (final / "a.txt").read_text() == "one"
    publish(final, "two", replace=True)
    assert (final / "a.txt").read_text() == "two"
    verify_folder(final)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "no", "/elsewhere/x")])
def test_error_in_the_block_is_passed_on_and_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        raise error
    assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", ["flip", "truncate", "append", "remove", "folder"])
@pytest.mark.parametrize("name", ["a.txt", "sub/b.bin"])
def test_any_change_of_a_file_is_found_and_named(tmp_path, name, change):
    final = tmp_path / "out"
    publish(final, "hello")
    path = final / name
    data = path.read_bytes()
    path.unlink()
    if change == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "truncate":
        path.write_bytes(data[:-1])
    elif change == "append":
        path.write_bytes(data + b"x")
    elif change == "folder":
        path.mkdir()
    with pytest.raises(CorruptFolderError, match=name) as caught:
        verify_folder(final)
    assert str(final) in str(caught.value)
    verify_folder(final, skip=[name])
    (final / "stray.txt").write_text("a file manager's")
    verify_folder(final, skip=[name])


def test_every_flipped_bit_and_every_truncation_of_the_manifest_is_found(tmp_path):
    final = tmp_path / "out"
    publish(final, "hello")
    path = final / "MANIFEST.json"
    data = path.read_bytes()
    damaged = [data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] for i in range(len(data)) for bit in range(8)]
    for content in damaged + [data[:i] for i in range(len(data))] + [data + b"\n", b"[]", b"null", b"[" * 100_000]:
        path.write_bytes(content)
        with pytest.raises(CorruptFolderError, match=r"MANIFEST\.json"):
            read_manifest(final)
    path.unlink()
    with pytest.raises(CorruptFolderError, match=r"MANIFEST\.json is missing"):
        verify_folder(final)


def test_no_permission_to_read_is_not_damage(tmp_path, monkeypatch):
    final = tmp_path / "out"
    publish(final, "hello")

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(WorkError, match="permission denied") as caught:
        verify_folder(final)
    assert not isinstance(caught.value, CorruptFolderError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_disk_error_at_every_call_keeps_the_previous_one(tmp_path, disk, number):
    final = tmp_path / "out"
    publish(final, "old")
    disk.reset()
    publish(final, "new", replace=True)
    for at in range(len(disk.calls)):
        disk.reset()
        publish(final, "old", replace=True)
        disk.reset()
        disk.fail = lambda n, name, at=at: OSError(number, os.strerror(number)) if n == at else None
        try:
            with atomic_folder(final, replace=True, kept="the previous one is kept") as folder:
                (folder / "a.txt").write_text("new")
            expected = ["new"]
        except WorkError as error:
            system = os.strerror(number)
            assert str(error) == f"could not write {final}: {system[0].lower()}{system[1:]}; the previous one is kept"
            expected = ["old", "new"]  # new: only the last fsync failed, after the rename
        assert (final / "a.txt").read_text() in expected
        disk.reset()
        clean_stale(tmp_path, locked=True)  # removes the old one if that is what failed
        verify_folder(final)
        assert (final / "a.txt").read_text() in expected
        assert names(tmp_path) == ["out"]


def test_an_interrupt_at_every_call_keeps_one_of_them(tmp_path, disk):
    """Ctrl-C, unlike a kill, still runs the cleaning up: nothing is left to settle later."""
    final = tmp_path / "out"
    publish(final, "old")
    disk.reset()
    publish(final, "new", replace=True)
    for at in range(len(disk.calls)):
        disk.reset()
        publish(final, "old", replace=True)
        disk.reset()
        disk.fail = lambda n, name, at=at: KeyboardInterrupt() if n == at else None
        with pytest.raises(KeyboardInterrupt):
            publish(final, "new", replace=True)
        verify_folder(final)
        assert (final / "a.txt").read_text() in ("old", "new")
        assert not [name for name in names(tmp_path) if name.startswith(".tmp")]
        disk.reset()
        clean_stale(tmp_path, locked=True)  # an old one, if it was its removal that was interrupted
        assert names(tmp_path) == ["out"]


def test_a_write_over_the_limit_of_the_system(tmp_path):
    """A real refusal in the middle of a file, which any user can provoke: the limit on file sizes."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    publish(tmp_path / "out", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(WorkError, match="file too large"):
            publish(tmp_path / "out", "n" * 1000, replace=True)
        with pytest.raises(WorkError, match=r"could not write .*file too large"):
            atomic_write(tmp_path / "file", b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WorkError, match=r"could not write .*not a directory"):
        publish(tmp_path / "file" / "sub" / "out", "x")


def test_atomic_write(tmp_path, disk, killed):
    path = tmp_path / "last"
    atomic_write(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()
    assert disk.calls == ["write_file", "sync_file", "replace_file", "sync_folder"]
    for at in range(4):
        for moment in ("before", "during", "after"):
            atomic_write(path, "old")
            disk.reset(kill=(at, moment))
            with pytest.raises(killed):
                atomic_write(path, "new")
            disk.reset()
            assert path.read_text() in ("old", "new")
            clean_stale(tmp_path, locked=True)
            assert names(tmp_path) == ["last"]


def test_discard_never_leaves_half_a_folder_under_its_name(tmp_path, disk, killed):
    for at in range(2):
        for moment in ("before", "during", "after"):
            publish(tmp_path / "out", "x", replace=True)
            disk.reset(kill=(at, moment))
            with pytest.raises(killed):
                discard_folder(tmp_path / "out")
            disk.reset()
            if (tmp_path / "out").exists():
                verify_folder(tmp_path / "out")
            clean_stale(tmp_path, locked=True)
            assert names(tmp_path) in ([], ["out"])


def test_stale_needs_a_dead_process_and_an_hour_unless_locked(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = time.time() - 7200
    made = {}
    for name, pid, when in [
        ("dead-old", gone.pid, old),
        ("dead-new", gone.pid, None),
        ("alive-old", os.getpid(), old),
    ]:
        folder = tmp_path / f".tmp-{name}-{pid}-0123abcd"
        folder.mkdir()
        (folder / "file").write_text("x")
        if when:
            os.utime(folder / "file", (when, when))
            os.utime(folder, (when, when))
        made[name] = folder
    (tmp_path / ".tmp-not-ours").mkdir()
    clean_stale(tmp_path)
    assert {name for name, folder in made.items() if folder.exists()} == {"dead-new", "alive-old"}
    clean_stale(tmp_path, locked=True)
    assert names(tmp_path) == [".tmp-not-ours"]
    clean_stale(tmp_path / "absent")


def test_what_cannot_be_cleaned_is_a_line(tmp_path, disk):
    folder = tmp_path / ".tmp-x-1-0123abcd"
    folder.mkdir()
    disk.fail = lambda n, name: PermissionError(errno.EACCES, "Permission denied")
    lines = []
    clean_stale(tmp_path, locked=True, log=lines.append)
    assert len(lines) == 1 and str(folder) in lines[0] and "permission denied" in lines[0]


WRITER = """
import sys
from pathlib import Path
from minigpt.storage import atomic_folder
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    with atomic_folder(Path(sys.argv[1]) / "out", replace=True) as folder:
        for name in "abc":
            (folder / name).write_text(str(number) * 50_000)
"""


def test_really_killed_writers_leave_a_whole_folder(tmp_path):
    """SIGKILL at arbitrary instants: what is there is one write, whole, and never older than the one before."""
    publish(tmp_path / "out", "0")
    last = 0
    for delay in (0.0, 0.003, 0.01, 0.017, 0.031):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(last)], stdout=subprocess.PIPE, env=os.environ
        )
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        clean_stale(tmp_path, locked=True)
        assert names(tmp_path) == ["out"]
        verify_folder(tmp_path / "out")
        if (tmp_path / "out" / "a").exists():
            texts = {(tmp_path / "out" / name).read_text() for name in "abc"}
            assert len(texts) == 1
            (text,) = texts
            number = int(text[: len(text) // 50_000])
            assert number >= last
            last = number
