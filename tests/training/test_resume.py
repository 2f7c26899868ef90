"""A run that is killed at any moment and started again ends with the same bytes as one that was left alone."""

import contextlib
import shutil
from pathlib import Path

import pytest

from minigpt.training.trainer import Trainer

LAYOUTS = {
    "background": {},
    "foreground": {"checkpoint__background": False},
    "bf16": {"training__precision": "bf16", "tokenizer": {"kind": "bpe", "vocab_size": 260}},
    "mixture": {
        "data": {
            "train": [
                {"text": "bead cab\nfed " * 60, "weight": 2, "name": "a"},
                {"text": "hag ebb " * 50, "weight": 1, "name": "b"},
            ],
            "stages": [{"from_step": 4, "weights": {"b": 1}}],
        }
    },
    "one_row_at_a_time": {"training__micro_batch": 1, "checkpoint__every_steps": 3},
}


def kill_and_resume(kit, chaos, killed, settings, expected, folder, at):
    chaos.reset(at)
    with contextlib.suppress(killed):  # not raised if it was over before: background saving varies the number a little
        kit.train(settings, folder)
    label = chaos.moments[at] if at < len(chaos.moments) else "the end"
    chaos.reset()
    assert kit.train(settings, folder).exit_status == 0
    assert kit.outcome(folder) == expected, f"killed at moment {at}: {label}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))])
def test_killed_at_some_moments(tmp_path, kit, chaos, killed, layout, part):
    settings = kit.config(**LAYOUTS[layout])
    expected, moments = kit.measure(chaos, settings, tmp_path)
    count = len(moments)
    offset = list(LAYOUTS).index(layout) * 5 + part  # other moments in each of the tests
    for at in range(offset * count // 60, count, count // 3):
        kill_and_resume(kit, chaos, killed, settings, expected, tmp_path / f"killed-{at}", at)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_every_moment(tmp_path, kit, chaos, killed, layout):
    settings = kit.config(**LAYOUTS[layout])
    expected, moments = kit.measure(chaos, settings, tmp_path)
    count = len(moments)
    for at in range(count):
        kill_and_resume(kit, chaos, killed, settings, expected, tmp_path / f"killed-{at}", at)


def test_killed_again_and_again(tmp_path, kit, chaos, killed):
    """Each time a little later than the time before, also while it is resuming."""
    settings = kit.config()
    kit.train(settings, tmp_path / "whole")
    kills = 0
    for at in range(20, 2000, 35):
        chaos.reset(at)
        try:
            kit.train(settings, tmp_path / "run")
            break
        except killed:
            kills += 1
    assert kills >= 3
    chaos.reset()
    kit.train(settings, tmp_path / "run")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_run_that_goes_on_lets_go_of_the_checkpoint(tmp_path, kit, monkeypatch):
    """Otherwise its weights and moments count twice as long as it lasts."""
    real, maps, off = Trainer._train_step, [], []

    def step(self, number, batch):
        if number == 5 and not off:
            off.append(True)
            raise RuntimeError("the power is off")
        maps.append(Path("/proc/self/maps").read_text())
        return real(self, number, batch)

    monkeypatch.setattr(Trainer, "_train_step", step)
    settings = kit.config(checkpoint__every_steps=2)
    with pytest.raises(RuntimeError):
        kit.train(settings, tmp_path)
    maps.clear()
    assert kit.train(settings, tmp_path).exit_status == 0
    assert maps and not any("optimizer.safetensors" in one for one in maps)


def test_two_runs_of_one_config(tmp_path, kit):
    for name in ("a", "b"):
        kit.train(kit.config(), tmp_path / name)
    assert kit.outcome(tmp_path / "a") == kit.outcome(tmp_path / "b")


def test_another_seed_is_another_run(tmp_path, kit):
    kit.train(kit.config(), tmp_path / "a")
    kit.train(kit.config(run__seed=2), tmp_path / "b")
    assert kit.outcome(tmp_path / "a")["files"] != kit.outcome(tmp_path / "b")["files"]
    assert kit.metrics(tmp_path / "a")[0]["train/loss"] != kit.metrics(tmp_path / "b")[0]["train/loss"]


@pytest.mark.slow
def test_killed_after_early_stopping_stays_stopped(tmp_path, kit, chaos, killed):
    """The learning rate is so low that the loss cannot fall: the run ends at its third evaluation."""
    settings = kit.config(
        optimizer__lr=1e-12, evaluation__every_steps=1, callbacks__early_stopping={"patience": 2, "min_delta": 0.5}
    )
    expected, moments = kit.measure(chaos, settings, tmp_path)
    count = len(moments)
    assert expected["last"] == "step-00000003"
    for at in range(count - 60, count, 6):
        kill_and_resume(kit, chaos, killed, settings, expected, tmp_path / f"killed-{at}", at)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_killed_when_compiled(tmp_path, kit, chaos, killed):
    settings = kit.config(training__compile=True)
    expected, moments = kit.measure(chaos, settings, tmp_path)
    for at in range(len(moments) // 4, len(moments), len(moments) // 4):
        kill_and_resume(kit, chaos, killed, settings, expected, tmp_path / f"killed-{at}", at)
