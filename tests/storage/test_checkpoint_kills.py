"""A process killed at any instant of saving, replacing, pruning or cleaning up leaves a run that goes on."""

import shutil

import pytest

from minigpt.storage import (
    best_checkpoint,
    clean_run,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    newest_good,
    prune,
)


def crash_everywhere(disk, killed, prepare, action, check):
    """Kill `action` before, in the middle of and after each of its calls; `check()` looks at what is left."""
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


def test_a_kill_at_any_instant_of_a_save_leaves_the_old_or_the_new(tmp_path, disk, killed, tokenizer, kit):
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        kit.save(run, 1, tokenizer, loss=1.0)

    def check():
        latest = load_latest(run, pytest.fail)  # pytest.fail: a kill must not even look like damage
        assert latest.step in (1, 2) and kit.is_exactly(latest, latest.step)
        assert newest_good(run, pytest.fail).name == f"step-0000000{latest.step}"
        clean_run(run, pytest.fail)
        assert kit.leftovers(run) == []
        kit.save(run, 2, tokenizer, loss=0.5)
        assert kit.is_exactly(load_latest(run, pytest.fail), 2)
        assert best_checkpoint(run).name == "step-00000002"

    crash_everywhere(disk, killed, prepare, lambda: kit.save(run, 2, tokenizer, loss=0.5), check)


@pytest.mark.parametrize("clean_first", [True, False])
def test_a_kill_while_the_same_step_is_saved_again(tmp_path, disk, killed, clean_first, kit):
    """The only checkpoint of the run is being replaced: it or its successor must be there."""
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        kit.save(run, 7, salt=0)

    def check():
        if clean_first:
            clean_run(run, pytest.fail)
        latest = load_latest(run, pytest.fail)
        assert any(kit.is_exactly(latest, 7, salt) for salt in (0, 100))
        clean_run(run, pytest.fail)
        assert kit.leftovers(run) == [] and kit.steps(run) == ["step-00000007"]

    crash_everywhere(disk, killed, prepare, lambda: kit.save(run, 7, salt=100), check)


def test_a_kill_while_pruning(tmp_path, disk, killed, kit):
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        for step, loss in ((1, 0.1), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5)):
            kit.save(run, step, loss=loss)

    def check():
        for folder in list_checkpoints(run):
            load_checkpoint(folder)
        kept = {1, 4, 5}
        assert {int(name[-1]) for name in kit.steps(run)} >= kept
        clean_run(run, pytest.fail)
        prune(run, 2, pytest.fail)
        assert {int(name[-1]) for name in kit.steps(run)} == kept and kit.leftovers(run) == []

    crash_everywhere(disk, killed, prepare, lambda: prune(run, 2, pytest.fail), check)


def test_a_kill_while_a_damaged_one_is_moved_aside_or_leftovers_are_cleaned(tmp_path, disk, killed, kit):
    run = tmp_path / "run"

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        for step in (1, 2):
            kit.save(run, step)
        (run / "checkpoints" / "step-00000002" / "config.json").write_text("{}")
        for name in (".tmp-step-00000003-1-0123abcd", ".old-step-00000001-1-0123abcd"):
            shutil.copytree(run / "checkpoints" / "step-00000001", run / "checkpoints" / name)
        (run / ".tmp-config.yaml-1-0123abcd").write_text("x")

    def action():
        clean_run(run, pytest.fail)
        load_latest(run, lambda line: None)

    def check():
        action()
        assert kit.is_exactly(load_latest(run, pytest.fail), 1)
        assert kit.leftovers(run) == [] and not (run / ".tmp-config.yaml-1-0123abcd").exists()
        assert (run / "checkpoints" / "damaged-step-00000002").is_dir()

    crash_everywhere(disk, killed, prepare, action, check)
