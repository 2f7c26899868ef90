"""Checkpoints: exact, verified, and the previous one is used when the newest is damaged in any way."""

import errno
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from minigpt.config import RequestError, WorkError
from minigpt.storage import (
    CorruptFolderError,
    best_checkpoint,
    load_checkpoint,
    load_latest,
    newest_good,
    prune,
)

FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "optimizer.safetensors",
    "trainer_state.json",
    "MANIFEST.json",
]


def test_layout_and_exact_round_trip(tmp_path, tokenizer, kit):
    folder = kit.save(tmp_path, 1000, tokenizer, loss=2.5)
    assert folder == tmp_path / "checkpoints" / "step-00001000"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00001000\n"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00001000\n"
    checkpoint = load_checkpoint(folder)
    assert kit.is_exactly(checkpoint, 1000)
    assert checkpoint.loss == 2.5
    assert checkpoint.tokenizer_path == folder / "tokenizer.json"
    assert checkpoint.model_config == kit.config.model_copy(update={"init_from": None})
    assert "/somewhere/else" not in (folder / "config.json").read_text()


def test_equal_states_give_equal_bytes(tmp_path, tokenizer, kit):
    one, two = kit.save(tmp_path / "a", 3, tokenizer), kit.save(tmp_path / "b", 3, tokenizer)
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_nothing_yet(tmp_path):
    assert load_latest(tmp_path, pytest.fail) is None
    assert load_latest(tmp_path / "absent", pytest.fail) is None
    assert newest_good(tmp_path) is None
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(RequestError, match="does not exist"):
        load_checkpoint(tmp_path / "checkpoints" / "step-00000001")


def test_newest_by_number_not_by_name_or_time(tmp_path, kit):
    for step in (99_999_999, 100_000_000, 5):
        kit.save(tmp_path, step)
    assert kit.steps(tmp_path) == ["step-00000005", "step-99999999", "step-100000000"]
    assert load_latest(tmp_path, pytest.fail).step == 100_000_000


def test_pointers_are_only_hints(tmp_path, kit):
    kit.save(tmp_path, 1, loss=1.0)
    kit.save(tmp_path, 2, loss=3.0)
    for content in (b"step-00000001\n", b"\xff\0", b"../../x", None):
        for name in ("last", "best"):
            path = tmp_path / "checkpoints" / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        assert load_latest(tmp_path, pytest.fail).step == 2
        assert best_checkpoint(tmp_path).name == "step-00000001"
        prune(tmp_path, 2, pytest.fail)
        assert len(kit.steps(tmp_path)) == 2
    kit.save(tmp_path, 3)
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000003\n"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000001\n"


def damages(data: bytes):
    """Ways to damage a file, by name; None removes it."""
    for place in sorted({0, len(data) // 4, len(data) // 2, 3 * len(data) // 4, len(data) - 1}):
        yield f"flip {place}", data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
    yield "half", data[: len(data) // 2]
    yield "empty", b""
    yield "longer", data + b"\0"
    yield "zeros", bytes(len(data))
    yield "gone", None


@pytest.mark.parametrize("name", FILES)
def test_previous_is_used_whatever_is_damaged(tmp_path, tokenizer, name, kit):
    original = tmp_path / "original"
    kit.save(original, 1000, tokenizer, loss=2.0)
    kit.save(original, 2000, tokenizer, loss=1.0)
    data = (original / "checkpoints" / "step-00002000" / name).read_bytes()
    for number, (_, content) in enumerate(damages(data)):
        run = tmp_path / str(number)
        shutil.copytree(original, run)
        path = run / "checkpoints" / "step-00002000" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        lines = []
        assert kit.is_exactly(load_latest(run, lines.append), 1000)
        assert len(lines) == 1 and "\n" not in lines[0]
        for word in ("step-00002000", name, "damaged-step-00002000", "going on from step-00001000"):
            assert word in lines[0]
        damaged = run / "checkpoints" / "damaged-step-00002000"
        assert {path.name for path in damaged.iterdir()} == set(FILES) - ({name} if content is None else set())
        assert kit.steps(run) == ["step-00001000"]
        assert (run / "checkpoints" / "last").read_text() == "step-00001000\n"
        assert (run / "checkpoints" / "best").read_text() == "step-00001000\n"
        assert kit.is_exactly(load_latest(run, pytest.fail), 1000)  # the second start has nothing to report


def test_a_folder_without_anything_or_with_strange_json_is_damaged(tmp_path, kit):
    kit.save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    lines = []
    assert load_latest(tmp_path, lines.append).step == 1
    assert "MANIFEST.json is missing" in lines[0]
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    assert load_latest(tmp_path, lines.append).step == 1
    assert (tmp_path / "checkpoints" / "damaged-step-00000002-2").is_dir()


def test_two_damaged_ones_are_two_lines(tmp_path, kit):
    for step in (1, 2, 3):
        kit.save(tmp_path, step)
    for step in (2, 3):
        (tmp_path / "checkpoints" / f"step-0000000{step}" / "model.safetensors").write_bytes(b"x")
    lines = []
    assert load_latest(tmp_path, lines.append).step == 1
    assert len(lines) == 2 and all("going on from step-00000001" in line for line in lines)


def test_all_damaged_stops_every_time_and_moves_nothing(tmp_path, kit):
    for step in (1, 2):
        kit.save(tmp_path, step)
        os.truncate(tmp_path / "checkpoints" / f"step-0000000{step}" / "optimizer.safetensors", 10)
    for _ in range(2):
        with pytest.raises(CorruptFolderError, match=r"no usable checkpoint left .*another run folder"):
            load_latest(tmp_path, pytest.fail)
    assert kit.steps(tmp_path) == ["step-00000001", "step-00000002"]


def test_no_permission_is_not_damage(tmp_path, monkeypatch, kit):
    """Moving a good checkpoint aside because of a wrong user id would lose it."""
    for step in (1, 2):
        kit.save(tmp_path, step)
    real = Path.read_bytes

    def refuse(self):
        if "step-00000002" in str(self):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(WorkError, match=r"could not read .*permission denied"):
        load_latest(tmp_path, pytest.fail)
    assert len(kit.steps(tmp_path)) == 2


def test_a_damaged_one_that_cannot_be_moved_does_not_stop_the_run(tmp_path, disk, kit):
    for step in (1, 2):
        kit.save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000002" / "config.json").unlink()
    disk.fail = lambda number, name: OSError(errno.EROFS, "Read-only file system")
    lines = []
    assert load_latest(tmp_path, lines.append).step == 1
    assert len(lines) == 1 and "cannot be moved aside (read-only file system)" in lines[0]


def test_a_model_folder_is_no_checkpoint(tmp_path, kit):
    from minigpt.storage import save_model

    save_model(tmp_path / "model", kit.config, kit.tensors(1), None)
    with pytest.raises(RequestError, match="no checkpoint"):
        load_checkpoint(tmp_path / "model")


def test_prune_keeps_newest_and_best(tmp_path, kit):
    for step, loss in enumerate([3.0, 1.0, None, 2.0, math.nan, 1.0], start=1):
        kit.save(tmp_path, step, loss=loss)
    prune(tmp_path, 3, pytest.fail)
    assert kit.steps(tmp_path) == [f"step-0000000{step}" for step in (2, 4, 5, 6)]
    prune(tmp_path, 0, pytest.fail)  # never fewer than two
    assert kit.steps(tmp_path) == [f"step-0000000{step}" for step in (2, 5, 6)]
    assert kit.leftovers(tmp_path) == []


def test_prune_does_not_count_damaged_ones(tmp_path, kit):
    for step in range(1, 6):
        kit.save(tmp_path, step)
    os.truncate(tmp_path / "checkpoints" / "step-00000005" / "model.safetensors", 5)
    (tmp_path / "checkpoints" / "step-00000004" / "optimizer.safetensors").unlink()
    prune(tmp_path, 2, pytest.fail)
    assert kit.steps(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4, 5)]


def test_a_failed_deletion_is_a_line(tmp_path, disk, kit):
    for step in (1, 2, 3):
        kit.save(tmp_path, step)
    disk.fail = lambda number, name: OSError(errno.EBUSY, "Device or resource busy")
    lines = []
    prune(tmp_path, 2, lines.append)
    assert len(lines) == 1 and "step-00000001" in lines[0] and "device or resource busy" in lines[0]


def test_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path, kit):
    with pytest.raises(TypeError, match=r"state\.trainer\.rng is a tuple"):
        kit.save(tmp_path, 1, trainer_state={"rng": (1, 2)})
    assert not (tmp_path / "checkpoints").exists()


def test_full_disk_for_real(tmp_path, tokenizer, kit):
    """256 KiB of disk: the save that does not fit leaves the previous checkpoint whole and no temporary files."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "minigpt-test", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        kit.save(tmp_path, 1, tokenizer)
        used = shutil.disk_usage(tmp_path).used
        # model too large; optimizer too large
        for change in ({"model_state": {"x": torch.zeros(80_000)}}, {"optimizer_state": {"x": torch.zeros(55_000)}}):
            with pytest.raises(WorkError) as caught:
                kit.save(tmp_path, 2, tokenizer, **change)
            assert str(caught.value) == (
                f"could not write {tmp_path}/checkpoints/step-00000002: no space left on device; "
                "the previous checkpoint step-00000001 is kept"
            )
            assert kit.leftovers(tmp_path) == [] and shutil.disk_usage(tmp_path).used == used
            assert kit.is_exactly(load_latest(tmp_path, pytest.fail), 1)
        kit.save(tmp_path, 2, tokenizer)
        assert kit.is_exactly(load_latest(tmp_path, pytest.fail), 2)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_disk_error_at_every_call_of_a_save(tmp_path, disk, tokenizer, no_space, kit):
    kit.save(tmp_path, 1, tokenizer, loss=1.0)
    disk.reset()
    kit.save(tmp_path, 2, tokenizer, loss=0.5)
    for at in range(len(disk.calls)):
        shutil.rmtree(tmp_path / "checkpoints" / "step-00000002", ignore_errors=True)
        disk.reset()
        disk.fail = lambda number, name, at=at: no_space if number == at else None
        with pytest.raises(
            WorkError, match=r"no space left on device; the .*checkpoint step-0000000[12] .*(kept|whole)"
        ):
            kit.save(tmp_path, 2, tokenizer, loss=0.5)
        disk.reset()
        assert kit.leftovers(tmp_path) == []
        latest = load_latest(tmp_path, pytest.fail)
        assert kit.is_exactly(latest, latest.step) and latest.step in (1, 2)


def test_trainer_state_is_plain_json(tmp_path, kit):
    folder = kit.save(tmp_path, 4, loss=1.5)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (state["step"], state["loss"], state["trainer"]["salt"]) == (4, 1.5, 0)
