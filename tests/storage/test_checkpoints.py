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

from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.storage import (
    CorruptFolderError,
    best_checkpoint,
    clean_run,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    newest_good,
    prune,
    save_checkpoint,
)

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=5, context_length=4, init_from="/somewhere/else")
FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "optimizer.safetensors",
    "trainer_state.json",
    "MANIFEST.json",
]


def tensors(step: int, size: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "embed.weight": torch.randn(5, 8, generator=generator),
        "norm.weight": torch.randn(size, generator=generator),
    }


def save(run: Path, step: int, tokenizer=None, loss: float | None = None, salt: int = 0, **changes) -> Path:
    arguments = {
        "model_config": CONFIG,
        "model_state": tensors(step + salt),
        "optimizer_state": {f"{name}.exp_avg": -t for name, t in tensors(step + salt).items()},
        "trainer_state": {"step": step, "lr": 0.1 + step * 1e-17, "losses": [1 / 3, math.inf], "salt": salt},
        "tokenizer": tokenizer,
        "loss_for_best": loss,
    }
    return save_checkpoint(run, step, **{**arguments, **changes})


def is_exactly(checkpoint, step: int, salt: int = 0) -> bool:
    return (
        checkpoint.step == step
        and checkpoint.trainer_state
        == {"step": step, "lr": 0.1 + step * 1e-17, "losses": [1 / 3, math.inf], "salt": salt}
        and all(torch.equal(checkpoint.model_state[name], t) for name, t in tensors(step + salt).items())
        and all(torch.equal(checkpoint.optimizer_state[f"{n}.exp_avg"], -t) for n, t in tensors(step + salt).items())
    )


def steps(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


def leftovers(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def test_layout_and_exact_round_trip(tmp_path, tokenizer):
    folder = save(tmp_path, 1000, tokenizer, loss=2.5)
    assert folder == tmp_path / "checkpoints" / "step-00001000"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00001000\n"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00001000\n"
    checkpoint = load_checkpoint(folder)
    assert is_exactly(checkpoint, 1000)
    assert checkpoint.loss == 2.5
    assert checkpoint.tokenizer_path == folder / "tokenizer.json"
    assert checkpoint.model_config == CONFIG.model_copy(update={"init_from": None})
    assert "/somewhere/else" not in (folder / "config.json").read_text()


def test_equal_states_give_equal_bytes(tmp_path, tokenizer):
    one, two = save(tmp_path / "a", 3, tokenizer), save(tmp_path / "b", 3, tokenizer)
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_nothing_yet(tmp_path):
    assert load_latest(tmp_path, pytest.fail) is None
    assert load_latest(tmp_path / "absent", pytest.fail) is None
    assert newest_good(tmp_path) is None
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(RequestError, match="does not exist"):
        load_checkpoint(tmp_path / "checkpoints" / "step-00000001")


def test_newest_by_number_not_by_name_or_time(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-00000005", "step-99999999", "step-100000000"]
    assert load_latest(tmp_path, pytest.fail).step == 100_000_000


def test_pointers_are_only_hints(tmp_path):
    save(tmp_path, 1, loss=1.0)
    save(tmp_path, 2, loss=3.0)
    for content in (b"step-00000001\n", b"\xff\0", b"../../x", None):
        for name in ("last", "best"):
            path = tmp_path / "checkpoints" / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        assert load_latest(tmp_path, pytest.fail).step == 2
        assert best_checkpoint(tmp_path).name == "step-00000001"
        prune(tmp_path, 2, pytest.fail)
        assert len(steps(tmp_path)) == 2
    save(tmp_path, 3)
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
def test_previous_is_used_whatever_is_damaged(tmp_path, tokenizer, name):
    original = tmp_path / "original"
    save(original, 1000, tokenizer, loss=2.0)
    save(original, 2000, tokenizer, loss=1.0)
    data = (original / "checkpoints" / "step-00002000" / name).read_bytes()
    for number, (_, content) in enumerate(damages(data)):
        run = tmp_path / str(number)
        shutil.copytree(original, run)
        path = run / "checkpoints" / "step-00002000" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        lines = []
        assert is_exactly(load_latest(run, lines.append), 1000)
        assert len(lines) == 1 and "\n" not in lines[0]
        for word in ("step-00002000", name, "damaged-step-00002000", "going on from step-00001000"):
            assert word in lines[0]
        damaged = run / "checkpoints" / "damaged-step-00002000"
        assert {path.name for path in damaged.iterdir()} == set(FILES) - ({name} if content is None else set())
        assert steps(run) == ["step-00001000"]
        assert (run / "checkpoints" / "last").read_text() == "step-00001000\n"
        assert (run / "checkpoints" / "best").read_text() == "step-00001000\n"
        assert is_exactly(load_latest(run, pytest.fail), 1000)  # the second start has nothing to report


def test_a_folder_without_anything_or_with_strange_json_is_damaged(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    lines = []
    assert load_latest(tmp_path, lines.append).step == 1
    assert "MANIFEST.json is missing" in lines[0]
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    assert load_latest(tmp_path, lines.append).step == 1
    assert (tmp_path / "checkpoints" / "damaged-step-00000002-2").is_dir()


def test_two_damaged_ones_are_two_lines(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (2, 3):
        (tmp_path / "checkpoints" / f"step-0000000{step}" / "model.safetensors").write_bytes(b"x")
    lines = []
    assert load_latest(tmp_path, lines.append).step == 1
    assert len(lines) == 2 and all("going on from step-00000001" in line for line in lines)


def test_all_damaged_stops_every_time_and_moves_nothing(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
        os.truncate(tmp_path / "checkpoints" / f"step-0000000{step}" / "optimizer.safetensors", 10)
    for _ in range(2):
        with pytest.raises(CorruptFolderError, match=r"no usable checkpoint left .*another run folder"):
            load_latest(tmp_path, pytest.fail)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"]


def test_no_permission_is_not_damage(tmp_path, monkeypatch):
    """Moving a good checkpoint aside because of a wrong user id would lose it."""
    for step in (1, 2):
        save(tmp_path, step)
    real = Path.read_bytes

    def refuse(self):
        if "step-00000002" in str(self):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(WorkError, match=r"could not read .*permission denied"):
        load_latest(tmp_path, pytest.fail)
    assert len(steps(tmp_path)) == 2


def test_a_damaged_one_that_cannot_be_moved_does_not_stop_the_run(tmp_path, disk):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000002" / "config.json").unlink()
    disk.fail = lambda number, name: OSError(errno.EROFS, "Read-only file system")
    lines = []
    assert load_latest(tmp_path, lines.append).step == 1
    assert len(lines) == 1 and "cannot be moved aside (read-only file system)" in lines[0]


def test_a_model_folder_is_no_checkpoint(tmp_path):
    from minigpt.storage import save_model

    save_model(tmp_path / "model", CONFIG, tensors(1), None)
    with pytest.raises(RequestError, match="no checkpoint"):
        load_checkpoint(tmp_path / "model")


def test_prune_keeps_newest_and_best(tmp_path):
    for step, loss in enumerate([3.0, 1.0, None, 2.0, math.nan, 1.0], start=1):
        save(tmp_path, step, loss=loss)
    prune(tmp_path, 3, pytest.fail)
    assert steps(tmp_path) == [f"step-0000000{step}" for step in (2, 4, 5, 6)]
    prune(tmp_path, 0, pytest.fail)  # never fewer than two
    assert steps(tmp_path) == [f"step-0000000{step}" for step in (2, 5, 6)]
    assert leftovers(tmp_path) == []


def test_prune_does_not_count_damaged_ones(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    os.truncate(tmp_path / "checkpoints" / "step-00000005" / "model.safetensors", 5)
    (tmp_path / "checkpoints" / "step-00000004" / "optimizer.safetensors").unlink()
    prune(tmp_path, 2, pytest.fail)
    assert steps(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4, 5)]


def test_a_failed_deletion_is_a_line(tmp_path, disk):
    for step in (1, 2, 3):
        save(tmp_path, step)
    disk.fail = lambda number, name: OSError(errno.EBUSY, "Device or resource busy")
    lines = []
    prune(tmp_path, 2, lines.append)
    assert len(lines) == 1 and "step-00000001" in lines[0] and "device or resource busy" in lines[0]


def test_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"state\.trainer\.rng is a tuple"):
        save(tmp_path, 1, trainer_state={"rng": (1, 2)})
    assert not (tmp_path / "checkpoints").exists()


def test_full_disk_for_real(tmp_path, tokenizer):
    """256 KiB of disk: the save that does not fit leaves the previous checkpoint whole and no temporary files."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "minigpt-test", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        save(tmp_path, 1, tokenizer)
        used = shutil.disk_usage(tmp_path).used
        # model too large; optimizer too large
        for change in ({"model_state": {"x": torch.zeros(80_000)}}, {"optimizer_state": {"x": torch.zeros(55_000)}}):
            with pytest.raises(WorkError) as caught:
                save(tmp_path, 2, tokenizer, **change)
            assert str(caught.value) == (
                f"could not write {tmp_path}/checkpoints/step-00000002: no space left on device; "
                "the previous checkpoint step-00000001 is kept"
            )
            assert leftovers(tmp_path) == [] and shutil.disk_usage(tmp_path).used == used
            assert is_exactly(load_latest(tmp_path, pytest.fail), 1)
        save(tmp_path, 2, tokenizer)
        assert is_exactly(load_latest(tmp_path, pytest.fail), 2)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_disk_error_at_every_call_of_a_save(tmp_path, disk, tokenizer, no_space):
    save(tmp_path, 1, tokenizer, loss=1.0)
    disk.reset()
    save(tmp_path, 2, tokenizer, loss=0.5)
    for at in range(len(disk.calls)):
        shutil.rmtree(tmp_path / "checkpoints" / "step-00000002", ignore_errors=True)
        disk.reset()
        disk.fail = lambda number, name, at=at: no_space if number == at else None
        with pytest.raises(
            WorkError, match=r"no space left on device; the .*checkpoint step-0000000[12] .*(kept|whole)"
        ):
            save(tmp_path, 2, tokenizer, loss=0.5)
        disk.reset()
        assert leftovers(tmp_path) == []
        latest = load_latest(tmp_path, pytest.fail)
        assert is_exactly(latest, latest.step) and latest.step in (1, 2)


def crash_everywhere(disk, killed, prepare, action, check):
    """Kill `action` before, in the middle of and after each of its calls; `check(done)` looks at what is left."""
    prepare()
    disk.reset()
    action()
    calls = list(disk.calls)
    assert calls
    for at in range(len(calls)):
        for moment in ("before", "during", "after"):
            disk.reset()
            prepare()
            disk.reset(kill=(at, moment))
            with pytest.raises(killed):
                action()
            disk.reset()
            check()


def test_a_kill_at_any_instant_of_a_save_leaves_the_old_or_the_new(tmp_path, disk, killed, tokenizer):
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        save(run, 1, tokenizer, loss=1.0)

    def check():
        latest = load_latest(run, pytest.fail)  # pytest.fail: a kill must not even look like damage
        assert latest.step in (1, 2) and is_exactly(latest, latest.step)
        assert newest_good(run, pytest.fail).name == f"step-0000000{latest.step}"
        clean_run(run, pytest.fail)
        assert leftovers(run) == []
        save(run, 2, tokenizer, loss=0.5)
        assert is_exactly(load_latest(run, pytest.fail), 2)
        assert best_checkpoint(run).name == "step-00000002"

    crash_everywhere(disk, killed, prepare, lambda: save(run, 2, tokenizer, loss=0.5), check)


@pytest.mark.parametrize("clean_first", [True, False])
def test_a_kill_while_the_same_step_is_saved_again(tmp_path, disk, killed, clean_first):
    """The only checkpoint of the run is being replaced: it or its successor must be there."""
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        save(run, 7, salt=0)

    def check():
        if clean_first:
            clean_run(run, pytest.fail)
        latest = load_latest(run, pytest.fail)
        assert any(is_exactly(latest, 7, salt) for salt in (0, 100))
        clean_run(run, pytest.fail)
        assert leftovers(run) == [] and steps(run) == ["step-00000007"]

    crash_everywhere(disk, killed, prepare, lambda: save(run, 7, salt=100), check)


def test_a_kill_while_pruning(tmp_path, disk, killed):
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        for step, loss in ((1, 0.1), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5)):
            save(run, step, loss=loss)

    def check():
        for folder in list_checkpoints(run):
            load_checkpoint(folder)
        kept = {1, 4, 5}
        assert {int(name[-1]) for name in steps(run)} >= kept
        clean_run(run, pytest.fail)
        prune(run, 2, pytest.fail)
        assert {int(name[-1]) for name in steps(run)} == kept and leftovers(run) == []

    crash_everywhere(disk, killed, prepare, lambda: prune(run, 2, pytest.fail), check)


def test_a_kill_while_a_damaged_one_is_moved_aside_or_leftovers_are_cleaned(tmp_path, disk, killed):
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        for step in (1, 2):
            save(run, step)
        (run / "checkpoints" / "step-00000002" / "config.json").write_text("{}")
        for name in (".tmp-step-00000003-1-0123abcd", ".old-step-00000001-1-0123abcd"):
            shutil.copytree(run / "checkpoints" / "step-00000001", run / "checkpoints" / name)
        (run / ".tmp-config.yaml-1-0123abcd").write_text("x")

    def action():
        clean_run(run, pytest.fail)
        load_latest(run, lambda line: None)

    def check():
        action()
        assert is_exactly(load_latest(run, pytest.fail), 1)
        assert leftovers(run) == [] and not (run / ".tmp-config.yaml-1-0123abcd").exists()
        assert (run / "checkpoints" / "damaged-step-00000002").is_dir()

    crash_everywhere(disk, killed, prepare, action, check)


def test_trainer_state_is_plain_json(tmp_path):
    folder = save(tmp_path, 4, loss=1.5)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (state["step"], state["loss"], state["trainer"]["salt"]) == (4, 1.5, 0)
