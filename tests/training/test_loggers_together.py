"""A run with every logger on is the run without any, to the last bit, also if it is stopped and killed in between."""

import csv
import json
import signal

import pytest

from minigpt.config import config_yaml
from minigpt.storage import list_checkpoints

pytest.importorskip("tensorboard")
wandb = pytest.importorskip("wandb")

EVERYTHING = {
    "every_steps": 1, "console": "quiet", "csv": True, "tensorboard": True, "histograms_every_steps": 2,
    "wandb": {"enabled": True, "mode": "offline"}, "trackio": {"enabled": True, "project": "together"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_leaves_the_machine(monkeypatch, trackio_folder):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def same_keys_everywhere(folder):
    """The loggers that are rebuilt or purged agree with the log; returns its keys."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = {key for line in lines for key in line}
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert [{k: str(v) for k, v in line.items()} for line in lines] == rows
    board = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    assert set(board.Tags()["scalars"]) == keys - {"step"}
    return keys


def test_all_together_change_nothing(tmp_path, kit):
    kit.train(kit.config(), tmp_path / "off")
    kit.train(kit.config(loggers=EVERYTHING), tmp_path / "on")
    assert kit.outcome(tmp_path / "on") == kit.outcome(tmp_path / "off")
    assert len(same_keys_everywhere(tmp_path / "on")) > 20
    names = {path.name for path in (tmp_path / "on").iterdir()} - {path.name for path in (tmp_path / "off").iterdir()}
    assert names == {"loggers.json", "metrics.csv", "tensorboard", "wandb"}


@pytest.mark.parametrize(
    "label",
    [
        "after _hook on_train_batch_start",
        pytest.param("before log_sample", marks=pytest.mark.slow),
        pytest.param("after _after_step", marks=pytest.mark.slow),
    ],
)
def test_a_sudden_death_changes_nothing(tmp_path, kit, chaos, killed, label):
    """In the middle of the run: some moments are the loggers' own, so they are found by name and not by number."""
    chaos.reset()
    kit.train(kit.config(), tmp_path / "off")
    expected = kit.outcome(tmp_path / "off")
    chaos.reset()
    kit.train(kit.config(loggers=EVERYTHING), tmp_path / "on")
    found = [i for i, moment in enumerate(chaos.moments) if moment.startswith(label)]
    chaos.reset(at=found[len(found) // 2])
    with pytest.raises(killed):
        kit.train(kit.config(loggers=EVERYTHING), tmp_path / "killed")
    assert not (tmp_path / "killed" / "model").exists()
    chaos.reset()
    kit.train(kit.config(loggers=EVERYTHING), tmp_path / "killed")
    assert kit.outcome(tmp_path / "on") == kit.outcome(tmp_path / "killed") == expected
    same_keys_everywhere(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_real_death_changes_nothing(tmp_path, kit, minigpt, number):
    """A process with every logger is killed, or stopped, three times, and goes on each time."""
    settings = {"training__max_steps": 40, "checkpoint__every_steps": 4}
    for name, loggers in (("on", EVERYTHING | {"trackio": {"enabled": False}}), ("off", {"every_steps": 1})):
        (tmp_path / f"{name}.yaml").write_text(config_yaml(kit.config(**settings, loggers=loggers)))
    assert minigpt("train", tmp_path / "off.yaml", "--run-dir", tmp_path / "off").wait() == 0
    run, command = tmp_path / "on", ("train", tmp_path / "on.yaml", "--run-dir", tmp_path / "on")

    def step():
        folders = list_checkpoints(run) if run.exists() else []
        return int(folders[-1].name.removeprefix("step-")) if folders else 0

    for after in (8, 16, 28):
        process = minigpt(*command)
        process.wait_for(lambda least=after: step() >= least)
        process.kill(number)
        assert process.wait() == (-number if number == signal.SIGKILL else 128 + number), process.output
        assert not (run / "model").exists()
    process = minigpt(*command)
    assert process.wait() == 0, process.output
    assert kit.outcome(run) == kit.outcome(tmp_path / "off")
    same_keys_everywhere(run)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 4
    assert len({path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}) == 1
