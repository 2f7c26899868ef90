"""SIGINT and SIGTERM at any moment save everything; the same command then ends with the bytes of an unstopped run."""

import json
import random
import signal
import time

import pytest

from minigpt.config import config_yaml
from minigpt.storage import list_checkpoints, load_checkpoint
from minigpt.training import Callback

SETTINGS = {"checkpoint__best": False, "checkpoint__every_steps": 4}


def stop_and_resume(kit, chaos, settings, expected, folder, at, number=signal.SIGTERM):
    chaos.reset(at, number)
    result = kit.train(settings, folder)
    label = chaos.moments[at] if at < len(chaos.moments) else "the end"
    if result.exit_status:
        assert result.exit_status == 128 + number and "saved in" in result.message, label
        assert list_checkpoints(folder) and not (folder / "model").exists(), label
    else:  # too late to stop: it was over
        assert (folder / "model").exists(), label
    chaos.reset()
    assert kit.train(settings, folder).exit_status == 0
    assert kit.outcome(folder) == expected, f"stopped at moment {at}: {label}"
    return result.exit_status


@pytest.fixture
def whole(tmp_path, kit, chaos):
    """(settings, what an unstopped run gives, its moments)."""
    settings = kit.config(**SETTINGS)
    return settings, *kit.measure(chaos, settings, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_each_kind_of_work(tmp_path, kit, chaos, whole, number):
    """In a step, between micro-batches, in an evaluation, in a sample, in saving, and before the first step."""
    settings, expected, moments = whole
    stopped = 0
    for label in (
        "before _hook on_train_start", "after training_step", "before _clip_factor", "before validation_step",
        "before generate", "before make_folder", "during write_file", "before log_sample",
    ):  # fmt: skip
        at = moments.index(label, moments.index("before _hook on_train_start"))
        folder = tmp_path / label.replace(" ", "-")
        stopped += stop_and_resume(kit, chaos, settings, expected, folder, at, number) != 0
    assert stopped == 8


@pytest.mark.slow
def test_stopped_at_every_moment(tmp_path, kit, chaos, whole):
    settings, expected, moments = whole
    for at in range(moments.index("before _hook on_train_start"), len(moments)):
        stop_and_resume(kit, chaos, settings, expected, tmp_path / str(at), at)


def test_stopped_again_and_again(tmp_path, kit, chaos, whole):
    """Each attempt gets a few moments further, stopping in the evaluation that the one before had abandoned, too."""
    settings, expected, moments = whole
    stops = 0
    for attempt in range(60):
        chaos.reset(moments.index("before _hook on_train_start") + 12 + 2 * attempt, signal.SIGTERM)
        if kit.train(settings, tmp_path / "run").exit_status == 0:
            break
        stops += 1
    assert stops >= 4
    assert kit.outcome(tmp_path / "run") == expected


def test_before_the_first_step(tmp_path, kit):
    """There is nothing to lose yet, and the checkpoint of step 0 is one like any other."""

    class Stop(Callback):
        def on_train_batch_start(self, trainer, step):
            trainer.signals.request(signal.SIGINT)

    settings = kit.config(**SETTINGS)
    assert kit.train(settings, tmp_path / "run", callbacks=[Stop()]).exit_status == 130
    assert load_checkpoint(list_checkpoints(tmp_path / "run")[-1]).step == 0
    kit.train(settings, tmp_path / "run")
    kit.train(settings, tmp_path / "whole")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "whole")


def test_an_abandoned_evaluation_is_made_again(tmp_path, kit, chaos, whole):
    settings, expected, moments = whole
    chaos.reset(moments.index("before validation_step"), signal.SIGTERM)
    kit.train(settings, tmp_path / "run")
    checkpoint = load_checkpoint(list_checkpoints(tmp_path / "run")[-1])
    assert checkpoint.step == 3 and checkpoint.trainer_state["settled"] is False
    assert not any("val/loss" in line for line in kit.metrics(tmp_path / "run"))
    chaos.reset()
    kit.train(settings, tmp_path / "run")
    assert kit.outcome(tmp_path / "run") == expected
    assert [line["step"] for line in kit.metrics(tmp_path / "run") if "val/loss" in line] == [3, 6]


# ---- real processes ----------------------------------------------------------------------------------------------


def write_config(kit, folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(kit.text(3000))
    settings = kit.config(
        data__train=str(folder / "text.txt"), loggers__every_steps=1, training__max_steps=24,
        evaluation={"every_steps": 10}, checkpoint={"every_steps": 6}, **changes,
    )  # fmt: skip
    (folder / "settings.yaml").write_text(config_yaml(settings))
    return folder / "settings.yaml"


def steps_logged(run):
    path = run / "metrics.jsonl"
    return path.read_text().count("train/loss") if path.exists() else 0


def run_whole(kit, minigpt, settings, run):
    process = minigpt("train", settings, "--run-dir", run)
    assert process.wait() == 0, process.output
    return kit.outcome(run)


@pytest.mark.parametrize("kills", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_sigkill_at_random_instants(tmp_path, kit, minigpt, kills):
    settings = write_config(kit, tmp_path / "input")
    expected = run_whole(kit, minigpt, settings, tmp_path / "whole")
    draw, done = random.Random(kills), 0
    while done < kills:
        run = tmp_path / f"run-{done}"
        while True:
            process = minigpt("train", settings, "--run-dir", run)
            if done < kills:
                target = steps_logged(run) + draw.randint(0, 12)
                process.wait_for(lambda: steps_logged(run) >= target or (run / "model").exists())  # noqa: B023
                time.sleep(draw.random() * 0.02)
                process.kill()
            status = process.wait()
            if status == 0:
                break
            assert status == -signal.SIGKILL, process.output
            done += 1
        assert kit.outcome(run) == expected


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_the_command_stops_with_the_shells_status(tmp_path, kit, minigpt, number, status):
    settings = write_config(kit, tmp_path / "input")
    expected = run_whole(kit, minigpt, settings, tmp_path / "whole")
    run = tmp_path / "run"
    process = minigpt("train", settings, "--run-dir", run)
    process.wait_for(lambda: steps_logged(run) >= 7)
    began = time.monotonic()
    process.kill(number)
    assert process.wait() == status and time.monotonic() - began < 5
    assert "the same command goes on" in process.output.splitlines()[-1] and "Traceback" not in process.output
    assert run_whole(kit, minigpt, settings, run) == expected
    assert "is finished" in minigpt_says(minigpt, settings, run)


def minigpt_says(minigpt, settings, run):
    process = minigpt("train", settings, "--run-dir", run)
    assert process.wait() == 0
    return process.output


def test_a_second_signal_leaves_at_once(tmp_path, kit, minigpt):
    """The step takes long, so the process is still in it when the second signal comes, and nothing is saved."""
    settings = write_config(
        kit, tmp_path / "input", model={"n_layer": 8, "n_head": 8, "n_embd": 256, "context_length": 256},
        training__batch_tokens=64 * 256, training__micro_batch=64,
    )  # fmt: skip
    run = tmp_path / "run"
    process = minigpt("train", settings, "--run-dir", run)
    process.wait_for(lambda: (run / "config.yaml").exists() and "parameters" in process.output)
    time.sleep(0.5)
    process.kill(signal.SIGINT)
    time.sleep(0.2)
    began = time.monotonic()
    process.kill(signal.SIGTERM)
    assert process.wait() == 143 and time.monotonic() - began < 2
    assert not list_checkpoints(run) and "Traceback" not in process.output
    assert json.loads((run / "metrics.jsonl").read_text() or "[]") == []
